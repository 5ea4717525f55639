"""GPU names as drivers and benchmarks write them, as the catalogue spells them."""

from __future__ import annotations

import re

from hw_profiles.catalog import load
from hw_profiles.loading import CatalogError

# What a driver's name has beside the part's own: maker, memory, form.
BESIDE = re.compile(r"\b(nvidia|amd|intel|instinct|tesla|geforce|graphics|tensor core|gpu|hbm\d?e?|oam|\d+ ?gi?b)\b")


def gpu_name(said: str) -> str:
    """The catalogue's name; the name as it was said where the catalogue has none.

    >>> gpu_name("NVIDIA H100 80GB HBM3"), gpu_name("NVIDIA H100 PCIe"), gpu_name("gb200"), gpu_name("Abacus 9")
    ('h100_sxm', 'h100_pcie', 'gb200', 'Abacus 9')
    """
    plain = " ".join(BESIDE.sub(" ", said.lower().replace("_", " ").replace("-", " ")).split())
    for spelling in (said, plain, plain.replace(" ", "_"), plain.replace(" ", "-")):
        try:
            return load(spelling).name
        except CatalogError:
            continue
    return said

"""The catalogue: accelerator files by name, alias or path, joined with prices and efficiency."""

from __future__ import annotations

import difflib
import os
import re
from functools import lru_cache
from pathlib import Path

from hw_profiles.efficiency import DEFAULT_STACK, load_efficiency
from hw_profiles.loading import CatalogError, build, read_toml
from hw_profiles.profile import HardwareProfile, profile_of
from hw_profiles.schema import Accelerator, Price, PriceList

__all__ = ["CatalogError", "load", "names", "read_accelerator", "read_folder", "read_prices"]

DATA = Path(__file__).parent / "data"


def names() -> list[str]:
    """Every accelerator of the catalogue."""
    return sorted(_catalogue())


def load(name_or_path: str | Path, stack: str = DEFAULT_STACK) -> HardwareProfile:
    """Profile of a catalogue part (name or alias, any case, - or _), or of a .toml file of one's own."""
    part = _find(name_or_path)
    own = tuple(Price(accelerator=part.name, convention=c, usd_per_hour=f) for c, f in part.prices.items())
    listed = tuple(p for p in _prices() if p.accelerator == part.name and p.convention not in part.prices)
    efficiency = load_efficiency(part.name, part.generation, stack, DATA / "efficiency")
    return profile_of(part, efficiency, own + listed)


def read_accelerator(path: Path) -> Accelerator:
    """One accelerator file; CatalogError names file and key of whatever is wrong with it."""
    return build(Accelerator, read_toml(path), path)


def read_folder(folder: Path) -> tuple[dict[str, Accelerator], dict[str, str]]:
    """All accelerator files of a folder: parts by name, and names by every normalised name and alias."""
    parts: dict[str, Accelerator] = {}
    owner: dict[str, str] = {}
    for path in sorted(folder.glob("*.toml")):
        part = read_accelerator(path)
        if part.name != path.stem:
            raise CatalogError(f"{path.name}: name = {part.name!r} must be the file's own name, {path.stem!r}")
        parts[part.name] = part
        for key, word in [("name", part.name), *(("aliases", alias) for alias in part.aliases)]:
            taken = owner.setdefault(_normal(word), part.name)
            if taken != part.name:
                raise CatalogError(f"{path.name}: {key}: {word!r} already stands for {taken}; choose another")
    return parts, owner


def read_prices(path: Path) -> tuple[Price, ...]:
    """All figures of a price file."""
    listed = build(PriceList, read_toml(path), path).root
    return tuple(
        Price(accelerator=part, convention=convention, usd_per_hour=figure)
        for part, table in listed.items()
        for convention, figure in table.items()
    )


def _normal(word: str) -> str:
    """'H200-SXM', 'h200 sxm' and 'h200_sxm' are one."""
    return re.sub(r"[^a-z0-9]+", "_", word.lower()).strip("_")


@lru_cache(maxsize=1)
def _read_catalogue() -> tuple[dict[str, Accelerator], dict[str, str]]:
    return read_folder(DATA / "accelerators")


def _catalogue() -> dict[str, Accelerator]:
    return _read_catalogue()[0]


@lru_cache(maxsize=1)
def _prices() -> tuple[Price, ...]:
    return read_prices(DATA / "prices.toml")


def _find(name_or_path: str | Path) -> Accelerator:
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(".toml") or os.sep in text:
        return read_accelerator(Path(name_or_path).expanduser())
    parts, owner = _read_catalogue()
    word = _normal(text)
    if word in owner:
        return parts[owner[word]]
    close = list(dict.fromkeys(owner[m] for m in difflib.get_close_matches(word, owner, n=5, cutoff=0.5)))
    hint = f"the closest names are {', '.join(close[:3])}" if close else f"use one of {', '.join(parts)}"
    raise CatalogError(f"unknown accelerator {text!r}; {hint}, or give the path of a .toml file")

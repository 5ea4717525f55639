"""Accelerators that are one part in some respects and another in the rest: what each respect is worth."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Literal, get_args

from hw_profiles.efficiency import ClassEfficiency, Efficiency, Situation
from hw_profiles.profile import HardwareProfile

Respect = Literal["compute", "memory", "network", "host", "capacity"]
RESPECTS: tuple[Respect, ...] = get_args(Respect)

PART_FIELDS: dict[Respect, tuple[str, ...]] = {
    "compute": ("peaks",),
    "memory": ("memory_bandwidth",),
    "network": ("scale_up_domain", "scale_up_bandwidth", "scale_out_bandwidth"),
    "host": ("host_bandwidth",),
    "capacity": ("memory_bytes",),
}
STACK_FIELDS: dict[Respect, tuple[str, ...]] = {
    "compute": (),
    "memory": (),
    "network": ("exit_latency_s",),
    "host": ("step_overhead_s", "kernel_overhead_s", "sequence_overhead_s", "request_overhead_s", "acceptance"),
    "capacity": ("memory_utilisation",),
}
CLASS_FIELDS: dict[Respect, tuple[str, ...]] = {
    "compute": ("matrix_fraction", "matrix_fraction_by", "tile_rows", "exponent"),
    "memory": ("memory_fraction", "memory_fraction_by", "short_row_factor", "reread_share", "reread_share_by"),
    "network": ("network_fraction",),
    "host": ("latency_s", "latency_s_by", "depth_s", "depth_s_by"),
    "capacity": (),
}
# Factors of situations, see simulator.model.engine.Factor.
FACTORS: dict[Respect, tuple[str, ...]] = {
    "compute": ("matrix", "attention", "experts"),
    "memory": ("memory",),
    "network": ("network", "exit_latency_s"),
    "host": ("kernel_overhead_s", "sequence_overhead_s", "request_overhead_s", "acceptance"),
    "capacity": (),
}


def hybrid(base: HardwareProfile, other: HardwareProfile, respects: Collection[Respect]) -> HardwareProfile:
    """`base` under its stack, and in the named respects `other` under its own. Prices and power stay those of `base`.

    Attention and expert factors of a fit, which are of all rates of their kernels, go with compute.
    """
    taken = {name: getattr(other, name) for respect in respects for name in PART_FIELDS[respect]}
    return replace(base, efficiency=_efficiency(base.efficiency, other.efficiency, respects), **taken)


def _efficiency(base: Efficiency, other: Efficiency, respects: Collection[Respect]) -> Efficiency:
    classes = {
        name: _rates(base.classes.get(name, other.classes.get(name)), other.classes.get(name), respects)
        for name in {*base.classes, *other.classes}
    }
    kept = [factor for respect in RESPECTS if respect not in respects for factor in FACTORS[respect]]
    came = [factor for respect in respects for factor in FACTORS[respect]]
    update = {name: getattr(other, name) for respect in respects for name in STACK_FIELDS[respect]}
    situations = (*_only(base.situations, kept), *_only(other.situations, came))
    return base.model_copy(update={"classes": classes, "situations": situations, **update})


def _rates(
    base: ClassEfficiency | None, other: ClassEfficiency | None, respects: Collection[Respect]
) -> ClassEfficiency:
    assert base is not None
    if other is None:
        return base
    return base.model_copy(
        update={name: getattr(other, name) for respect in respects for name in CLASS_FIELDS[respect]}
    )


def _only(situations: tuple[Situation, ...], factors: Collection[str]) -> tuple[Situation, ...]:
    """The situations with those factors alone."""
    cut = (
        (situation, {name: value for name, value in situation.factors.items() if name in factors})
        for situation in situations
    )
    return tuple(situation.model_copy(update={"factors": left}) for situation, left in cut if left)

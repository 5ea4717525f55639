"""Units that hardware files may use, and how figures read on a screen. Inside, everything is SI."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from hw_profiles.schema import Sourced

Dimension = Literal["compute rate", "capacity", "bandwidth", "power", "count", "price"]

KB, MB, GB, TB = 1e3, 1e6, 1e9, 1e12
KIB, MIB, GIB, TIB = 2.0**10, 2.0**20, 2.0**30, 2.0**40
GFLOP, TFLOP, PFLOP = 1e9, 1e12, 1e15
NS, US, MS = 1e-9, 1e-6, 1e-3
GBIT = 1e9 / 8  # bytes

# spelling -> (dimension, SI units in one). FLOP/s and OP/s alike count a multiply-add as two.
UNITS: dict[str, tuple[Dimension, float]] = {
    "TFLOP/s": ("compute rate", TFLOP),
    "PFLOP/s": ("compute rate", PFLOP),
    "TOP/s": ("compute rate", TFLOP),
    "B": ("capacity", 1.0),
    "MB": ("capacity", MB),
    "GB": ("capacity", GB),
    "TB": ("capacity", TB),
    "MiB": ("capacity", MIB),
    "GiB": ("capacity", GIB),
    "TiB": ("capacity", TIB),
    "GB/s": ("bandwidth", GB),
    "TB/s": ("bandwidth", TB),
    "GiB/s": ("bandwidth", GIB),
    "Gbit/s": ("bandwidth", GBIT),
    "W": ("power", 1.0),
    "kW": ("power", 1e3),
    "accelerators": ("count", 1.0),
    "units": ("count", 1.0),
    "USD/h": ("price", 1.0),
}


def spellings(dimension: Dimension) -> str:
    """Every spelling of a dimension, for error messages."""
    return ", ".join(unit for unit, (kind, _) in UNITS.items() if kind == dimension)


def dimension_of(unit: str) -> Dimension:
    """What a unit measures; ValueError names the spellings that are known."""
    if unit not in UNITS:
        raise ValueError(f"unknown unit {unit!r}; use one of {', '.join(UNITS)}")
    return UNITS[unit][0]


def to_si(figure: Sourced) -> float:
    """Value of a figure in FLOP/s, B, B/s, W or USD/h.

    >>> from datetime import date
    >>> from hw_profiles.schema import Sourced
    >>> to_si(Sourced(value=400, unit="Gbit/s", source="NIC datasheet", accessed=date(2026, 8, 22)))
    50000000000.0
    """
    dimension_of(figure.unit)
    return figure.value * UNITS[figure.unit][1]


def _human(value: float, steps: Sequence[tuple[float, str]], bare: str) -> str:
    """`value` in the largest step that it reaches, else in the unit `bare`."""
    step, unit = next(((s, u) for s, u in steps if abs(value) >= s), (1.0, bare))
    return f"{value / step:.4g} {unit}"


_PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def human_bytes(num_bytes: float) -> str:
    """Decimal bytes, as data sheets print them.

    >>> human_bytes(850.7e9), human_bytes(3514)
    ('850.7 GB', '3.514 kB')
    """
    return _human(num_bytes, [(step, prefix + "B") for step, prefix in _PREFIXES], "B")


def human_rate(rate: float, unit: str = "B/s") -> str:
    """A rate with a decimal prefix.

    >>> human_rate(3.35e12), human_rate(989e12, "FLOP/s")
    ('3.35 TB/s', '989 TFLOP/s')
    """
    return _human(rate, [(step, prefix + unit) for step, prefix in _PREFIXES], unit)


def human_seconds(seconds: float) -> str:
    """A duration in its natural unit.

    >>> human_seconds(0.0042), human_seconds(76e-6)
    ('4.2 ms', '76 us')
    """
    return _human(seconds, [(1.0, "s"), (MS, "ms"), (US, "us"), (NS, "ns")], "s")

"""Units that hardware files may use, and how figures read on a screen. Inside, everything is SI."""

from __future__ import annotations

from typing import Literal

Dimension = Literal["compute rate", "capacity", "bandwidth", "power", "count", "price"]

MB, GB, TB = 1e6, 1e9, 1e12  # [B]
MIB, GIB, TIB = 2.0**20, 2.0**30, 2.0**40  # [B]
TFLOP, PFLOP = 1e12, 1e15  # [FLOP]
NS, US, MS = 1e-9, 1e-6, 1e-3  # [s]
GBIT = 1e9 / 8  # [B]

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


_PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def human_rate(rate: float, unit: str = "B/s") -> str:
    """A rate with the largest decimal prefix that it reaches.

    >>> human_rate(3.35e12), human_rate(989e12, "FLOP/s")
    ('3.35 TB/s', '989 TFLOP/s')
    """
    step, prefix = next(((s, p) for s, p in _PREFIXES if abs(rate) >= s), (1.0, ""))
    return f"{rate / step:.4g} {prefix}{unit}"


def human_bytes(num_bytes: float) -> str:
    """Decimal bytes, as data sheets print them.

    >>> human_bytes(850.7e9), human_bytes(3514)
    ('850.7 GB', '3.514 kB')
    """
    return human_rate(num_bytes, "B")

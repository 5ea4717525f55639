"""The unit of a trace's times, told from the file itself."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.scenario import Trace
from simulator.traces.columns import TraceError
from simulator.traces.layouts import UNITS, Layout

NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
EPOCH_S = (1e9, 4e9)  # seconds since 1970 of the years 2001 to 2096
FASTEST_TOKEN_S = 1e-3  # no answer comes faster than 1,000 tokens a second for one user [s; assumed]
USUAL_PAUSE_S = 60.0  # of a reader between two turns [s; assumed]
LONGEST_PAUSE_S = 86_400.0  # median pause between the turns of a conversation: below a day [s; assumed]
# Mean requests per second of a recorded trace; public ones have 0.1 to 60 [assumed]
RATES = (1e-2, 1e4)
RATES_OF_FRACTIONS = (0.05, 1e4)  # likewise, to take fractions of a unit for those of a second [assumed]


class Pauses(NamedTuple):
    """Between a turn of a conversation and the one before it: in the file's unit; with the tokens of the answer."""

    raw: NDArray[np.float64]
    answer_tokens: NDArray[np.int64]


def time_unit(
    stamps: NDArray[np.float64], layout: Layout, keys: Trace, pauses: Pauses | None = None
) -> tuple[str, str]:
    """The unit, and a sentence on why where it is not the format's own. Raises TraceError where the key contradicts
    the file."""
    epoch = _epoch_unit(stamps)
    if keys.time_unit is not None:
        _check_key(keys, epoch, pauses)
        return keys.time_unit, ""
    if epoch is not None:
        return epoch, _told(epoch, layout, "they count from 1970")
    usual = layout.time_unit or "s"
    if pauses is not None and len(pauses.raw) and not _possible(usual, pauses):
        unit = _likeliest(pauses)
        if unit is not None:
            return unit, _told(unit, layout, "no answer would come between the turns of its conversations otherwise")
    if layout.name == "columns" and layout.time_unit is not None:
        return usual, ""
    rates = {unit: _rate(stamps, scale) for unit, scale in UNITS.items()}
    if usual == "ms" and _has_fractions(stamps) and _within(rates["s"], RATES_OF_FRACTIONS):
        return "s", _told("s", layout, "they have fractions")
    if rates[usual] and not _within(rates[usual], RATES):
        likely = [unit for unit in UNITS if _within(rates[unit], RATES)]
        if likely:
            unit = min(likely, key=lambda unit: abs(np.log(rates[unit])))
            return unit, _told(unit, layout, f"{NAMES[usual]} would make {rates[usual]:.3g} requests/s")
    return usual, ""


def _told(unit: str, layout: Layout, why: str) -> str:
    """A sentence where the unit is not the format's own."""
    if layout.time_unit == unit:
        return ""
    return f"times are read as {NAMES[unit]}, for {why}; workload.time_unit (--time-unit) overrides it"


def _epoch_unit(stamps: NDArray[np.float64]) -> str | None:
    least, most = float(stamps.min()), float(stamps.max())
    low, high = EPOCH_S
    return next((u for u, scale in UNITS.items() if low <= least * scale and most * scale <= high), None)


def _possible(unit: str, pauses: Pauses) -> bool:
    """At the median a turn comes after the answer before it, and not days later."""
    pause_s = pauses.raw * UNITS[unit]
    return bool(
        np.median(pause_s - pauses.answer_tokens * FASTEST_TOKEN_S) >= 0 and np.median(pause_s) <= LONGEST_PAUSE_S
    )


def _likeliest(pauses: Pauses) -> str | None:
    """Of the units that are possible the one whose median pause is nearest to USUAL_PAUSE_S."""
    possible = [unit for unit in UNITS if _possible(unit, pauses)]
    return min(possible, key=lambda u: abs(np.log(np.median(pauses.raw) * UNITS[u] / USUAL_PAUSE_S)), default=None)


def _check_key(keys: Trace, epoch: str | None, pauses: Pauses | None) -> None:
    unit = keys.time_unit
    assert unit is not None
    if epoch is not None and epoch != unit:
        raise TraceError(
            f"workload.time_unit='{unit}' contradicts {keys.path}, whose times are {NAMES[epoch]} since 1970; "
            f"leave it out, or give '{epoch}'"
        )
    if pauses is not None and len(pauses.raw) and not _possible(unit, pauses):
        unit_told = _likeliest(pauses)
        likely = f", or give '{unit_told}'" if unit_told else ""
        raise TraceError(
            f"workload.time_unit='{unit}' contradicts {keys.path}: half of its turns would come "
            f"{np.median(pauses.raw) * UNITS[unit]:.3g} s after the turn before, whose answer has "
            f"{np.median(pauses.answer_tokens):.0f} tokens; leave it out{likely}"
        )


def _rate(stamps: NDArray[np.float64], scale: float) -> float:
    """Mean requests per second; 0 where all come at once."""
    span = float(stamps.max() - stamps.min()) * scale
    return len(stamps) / span if span > 0 else 0.0


def _within(rate: float, bounds: tuple[float, float]) -> bool:
    return bounds[0] <= rate <= bounds[1]


def _has_fractions(stamps: NDArray[np.float64]) -> bool:
    """Most are no whole number of tenths: whoever counts milliseconds writes few digits behind the point."""
    tenths = stamps * 10
    return bool(np.mean(np.abs(tenths - np.round(tenths)) > 1e-6) > 0.5)

"""Times and rates as people write them: `3s`, `50ms`, `10/s`; a bare number is in the unit that the option names.

A bare number that can only be the other unit asks back: nobody waits 3,000 s for a first token.
"""

from __future__ import annotations

import math
import re

import typer

SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
PERIODS = {"s": 1.0, "sec": 1.0, "second": 1.0, "min": 60.0, "minute": 60.0, "h": 3600.0, "hour": 3600.0}  # [s]
LONGEST_BARE_TTFT_S = 120.0  # beyond it a bare number is taken for milliseconds (assumed)
LONGEST_BARE_TPOT_S = 1.0  # likewise, of a token (assumed)
NUMBER = r"(-?[0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)"


def _seconds(text: str, longest_bare_s: float) -> float:
    found = re.fullmatch(rf"\s*{NUMBER}\s*([a-z]*)\s*", text.lower())
    if found is None or found[2] not in ("", *SECONDS):
        raise typer.BadParameter(f"{text!r} is not a time; write it as 3s or 50ms")
    value = float(found[1])
    if not found[2] and value > longest_bare_s:
        raise typer.BadParameter(
            f"{text} would be {value:g} seconds; write {text}ms for milliseconds, or {text}s if seconds are meant"
        )
    seconds = value * SECONDS[found[2] or "s"]
    if not (math.isfinite(seconds) and seconds > 0):
        raise typer.BadParameter(f"{text} is not a finite time above 0; write it as 3s or 50ms")
    return seconds


def ttft_seconds(text: str) -> float:
    """
    >>> ttft_seconds("3"), ttft_seconds("3s"), ttft_seconds("500 ms"), ttft_seconds("2min")
    (3.0, 3.0, 0.5, 120.0)
    """
    return _seconds(text, LONGEST_BARE_TTFT_S)


def tpot_seconds(text: str) -> float:
    """
    >>> tpot_seconds("0.05"), tpot_seconds("50ms")
    (0.05, 0.05)
    """
    return _seconds(text, LONGEST_BARE_TPOT_S)


def requests_per_s(text: str) -> float:
    """
    >>> requests_per_s("10"), requests_per_s("10/s"), requests_per_s("600/min"), requests_per_s("36000 / hour")
    (10.0, 10.0, 10.0, 10.0)
    """
    found = re.fullmatch(rf"\s*{NUMBER}\s*(?:/\s*([a-z]+))?\s*", text.lower())
    if found is None or (found[2] or "s") not in PERIODS:
        raise typer.BadParameter(f"{text!r} is not a rate; write it as 10/s or 600/min")
    rate = float(found[1]) / PERIODS[found[2] or "s"]
    if not (math.isfinite(rate) and rate > 0):
        raise typer.BadParameter(f"{text} is not a finite rate above 0; write it as 10/s or 600/min")
    return rate


def draft_depth(text: str) -> int | str:
    """
    >>> draft_depth("auto"), draft_depth("off"), draft_depth("2")
    ('auto', 0, 2)
    """
    word = text.strip().lower()
    if word in ("auto", "off"):
        return "auto" if word == "auto" else 0
    if not word.isdigit():
        raise typer.BadParameter(f"{text!r} is not a number of drafts; write auto, off or a whole number")
    return int(word)

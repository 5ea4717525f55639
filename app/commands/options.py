"""Options that several commands share."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

MOST = 1_000_000_000  # tokens of a request, requests of a run: counts stay inside 64-bit sums
LAST_PORT = 65535  # of TCP


def above_zero(value: float | None) -> float | None:
    """Typer callback: refuse what is not a finite number above 0."""
    if value is not None and not (math.isfinite(value) and value > 0):
        raise typer.BadParameter(f"{value:g} is not a finite number above 0")
    return value


def whole_above_zero(value: int | None) -> int | None:
    """Typer callback: refuse a count below 1, or beyond any real one."""
    if value is not None and not 1 <= value <= MOST:
        raise typer.BadParameter(f"{value} is not between 1 and {MOST}")
    return value


JsonOutput = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write everything as JSON; `-` is stdout, without the table."),
]
TraceInput = Annotated[
    Path | None,
    typer.Option("--trace", metavar="FILE", help="Replay a recorded trace as the traffic; see `import traffic`."),
]
SeedInput = Annotated[int | None, typer.Option("--seed", min=0, help="Seed of every random draw.")]

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


def share_of_memory(value: float | None) -> float | None:
    """Typer callback: refuse what is no share of a device."""
    if value is not None and not 0 < value <= 1:
        raise typer.BadParameter(f"{value:g} is not between 0 and 1; write 0.95 for 95%")
    return value


MemoryShare = Annotated[
    float | None,
    typer.Option(
        "--share",
        metavar="SHARE",
        help="Share of each accelerator's memory that the engine takes: 0.95; left out: the stack's usual one.",
        callback=share_of_memory,
    ),
]
KvDtype = Annotated[
    str | None, typer.Option("--kv-dtype", metavar="DTYPE", help="Storage of KV: bf16 or fp8; left out: the model's.")
]
PowerCap = Annotated[
    float | None,
    typer.Option("--power-cap", metavar="WATTS", help="Power cap of each accelerator.", callback=above_zero),
]
OwnPrice = Annotated[
    float | None,
    typer.Option("--usd-per-hour", metavar="USD", min=0, help="Price of an accelerator-hour of your own."),
]
Prices = Annotated[
    str | None,
    typer.Option(
        "--prices",
        metavar="CONVENTION",
        help="hyperscaler_ownership, neocloud_ownership, rental_3yr, on_demand or spot.",
    ),
]


def set_knobs(
    share: float | None, kv_dtype: str | None, power_cap_w: float | None, usd_per_hour: float | None
) -> dict[str, float | str]:
    """Keys of `simulator.scenario.Knobs` that options set."""
    given = {
        "memory_share": share,
        "kv_dtype": kv_dtype,
        "power_cap_w": power_cap_w,
        "usd_per_hour": usd_per_hour,
    }
    return {name: value for name, value in given.items() if value is not None}


JsonOutput = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write everything as JSON; `-` is stdout, without the table."),
]
TraceInput = Annotated[
    Path | None,
    typer.Option("--trace", metavar="FILE", help="Replay a recorded trace as the traffic; see `import traffic`."),
]
SeedInput = Annotated[int | None, typer.Option("--seed", min=0, help="Seed of every random draw.")]

"""Looks that all tables share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

# Units shown in one unit of SI.
MS_PER_S = 1e3
US_PER_S = 1e6
PERCENT = 100.0


def simple_table(*headers: str, title: str | None = None, tight: bool = False) -> Table:
    """A table with a ruled header; the first column reads left, the others right.

    tight: no space to spare; a narrow screen folds the first column alone, which holds names, before any figure.
    """
    table = Table(
        box=box.SIMPLE_HEAD,
        title=title,
        title_justify="left",
        pad_edge=False,
        collapse_padding=True,
        header_style="bold",
        padding=(0, 0) if tight else (0, 1),
    )
    for place, header in enumerate(headers):
        table.add_column(
            header, justify="left" if place == 0 else "right", overflow="fold", no_wrap=tight and place > 0
        )
    return table


def assumptions_text(assumptions: Sequence[str]) -> Text:
    """What the figures rest on that nobody has published or measured."""
    if not assumptions:
        return Text()
    lines = "\n".join(f"- {line}" for line in assumptions)
    return Text(f"Assumed:\n{lines}", style="dim")


def grounds_text(uncertainties: Sequence[Mapping[str, Any]]) -> str:
    """What the bands of an answer rest on: each reason once, with its accelerators."""
    named: dict[str, list[str]] = {}
    for uncertainty in uncertainties:
        for accelerator, reason in uncertainty["reasons"].items():
            named.setdefault(reason, []).append(accelerator)
    said = [f"{', '.join(dict.fromkeys(names))}: {reason}." for reason, names in named.items()]
    return "\n".join(
        (
            "p10-p90: what would be measured; rates and costs at what is offered, less what slower engines would leave "
            "behind.",
            *said,
        )
    )


def band_text(band: Mapping[str, float] | None, scale: float = 1.0) -> str:
    """p10 to p90 of a band to two digits and whole numbers, '' for one that does not exist.

    >>> band_text({"p10": 0.0123, "p50": 0.1, "p90": 4.07}), band_text({"p10": 987.6, "p50": 1e3, "p90": 23456.0})
    ('0.012-4.1', '988-23,456')
    """
    if band is None:
        return ""
    ends = [band[end] * scale for end in ("p10", "p90")]
    return "-".join(number(end, max(0, 1 - math.floor(math.log10(end))) if end > 0 else 0) for end in ends)


def number(value: float | None, digits: int, scale: float = 1.0) -> str:
    """A figure for a table; '-' for one that does not exist."""
    return "-" if value is None or value != value else f"{value * scale:,.{digits}f}"

"""Table of what fits on an accelerator."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType

from app.render.tables import assumptions_text, simple_table
from hw_profiles.units import GIB

NOTICED = 1e-3  # share by which two counts differ visibly


def fits_report(found: dict[str, Any]) -> RenderableType:
    """Memory of one accelerator in GiB, as engines log it, and what the instance holds."""
    title = f"{found['model']} as {found['cut']} on {found['gpus']} {found['gpu']}, stack {found['stack']}"
    table = simple_table("One accelerator", "GiB", title=title)
    for name, key in (
        ("Memory that a program can have", "device_bytes"),
        ("Weights", "weight_bytes"),
        ("Working memory of a step", "working_bytes"),
        ("Contexts and communication buffers", "outside_bytes"),
        (f"Room for KV at a memory share of {found['memory_share']:g}", "kv_bytes"),
    ):
        table.add_row(name, f"{found[key] / GIB:,.2f}")
    held = simple_table("The instance", "Each rank", "In all")
    held.add_row(f"Tokens of KV ({found['kv_dtype']})", f"{found['tokens_per_rank']:,}", f"{found['tokens']:,}")
    held.add_row(
        f"Sequences of {found['context']:,} tokens",
        f"{found['sequences_per_rank']:,.1f}",
        f"{found['sequences']:,.1f}",
    )
    if abs(found["sequences_logged"] - found["sequences"]) > NOTICED * found["sequences"]:
        logged = found["sequences_logged"]
        held.add_row("as its start-up log counts", f"{logged / found['ranks']:,.1f}", f"{logged:,.1f}")
    return Group(table, held, assumptions_text(found["assumptions"]))

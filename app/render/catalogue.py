"""Catalogue tables."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from app.catalogue import CONTEXTS
from app.render.tables import assumptions_text, simple_table
from hw_profiles.efficiency import ORIGINS
from hw_profiles.units import GB, TB, TFLOP, human_bytes

KIB = 1024  # [tokens, B]
TABLE_CONTEXT = 65_536  # whose KV the table of all models shows; one of CONTEXTS [tokens]
BILLION = 1e9  # parameters
MARKS = {"measured": "m", "served": "s", "published": "p"}


def gpus_table(parts: list[dict[str, Any]]) -> RenderableType:
    """One row per accelerator; rates as on data sheets."""
    table = simple_table(
        "Name",
        "Mem.\nGB",
        "HBM\nTB/s",
        "bf16\nTF/s",
        "fp8\nTF/s",
        "fp4\nTF/s",
        "Dom.\nGPUs",
        "Link\nGB/s",
        "USD\n/h",
        "By",
        tight=True,
    )
    for part in parts:
        si = part["si"]
        published = part["matrix"]
        table.add_row(
            part["name"] + (" *" if part["status"] == "announced" else ""),
            f"{si['memory_bytes'] / GB:.0f}",
            f"{si['memory_bandwidth'] / TB:.2f}",
            *(f"{si['matrix_peak'][d] / TFLOP:.0f}" if d in published else "-" for d in ("bf16", "fp8", "fp4")),
            str(si["scale_up_domain"]),
            f"{si['scale_up_bandwidth'] / GB:.0f}" if si["scale_up_bandwidth"] else "-",
            _price(part),
            "".join(mark for origin, mark in MARKS.items() if origin in {s["origin"] for s in part["speeds"]}) or "a",
        )
    notes = (
        "Dense peaks, TF/s: 10^12 FLOP/s; domain: GPUs of a scale-up fabric; link: its rate\n"
        "one way per accelerator.\n"
        "USD/h is neocloud ownership, else the range known. By: speeds measured with\n"
        "the runtime (m), fitted to serving points of your own (s), fitted from published\n"
        "tables (p), or only assumed (a).\n"
        "* announced, not shipping. Sources: moeplan catalogue gpus NAME"
    )
    return Group(table, Text(notes, style="dim"))


def _price(part: dict[str, Any]) -> str:
    prices = {key: figure["value"] for key, figure in part["prices"].items()}
    if not prices:
        return "-"
    if "neocloud_ownership" in prices:
        return f"{prices['neocloud_ownership']:.2f}"
    low, high = min(prices.values()), max(prices.values())
    return f"{low:.2f}" if low == high else f"{low:.2f}-{high:.2f}"


def gpu_table(part: dict[str, Any]) -> RenderableType:
    """Every figure of one accelerator with its source."""
    table = simple_table(
        "Figure", "Value", "Source", title=f"{part['display_name']} ({part['vendor']}, {part['status']})"
    )
    table.columns[2].justify = "left"
    table.columns[2].overflow = "fold"
    for key, figure in _figures(part):
        source = f"{figure['source']} ({figure['accessed']})"
        note = f"\n{figure['note']}" if figure.get("note") else ""
        flag = " assumed" if figure.get("assumed") else ""
        table.add_row(key, f"{figure['value']:g} {figure['unit']}{flag}", source + note)
    return Group(table, _speeds(part["speeds"]), assumptions_text(part["assumptions"]))


def _speeds(speeds: list[dict[str, Any]]) -> RenderableType:
    """Each stack: where its speed comes from, and what of it is assumed all the same."""
    table = simple_table("Stack", "Speed", "Assumed parts", title="Achieved speeds")
    for column in table.columns[1:]:
        column.justify = "left"
    for one in speeds:
        parts = "all" if one["origin"] == "assumed" else ", ".join(one["assumed"]) or "none"
        table.add_row(one["stack"], ORIGINS[one["origin"]] + _held_out(one["held_out_error"]), parts)
    return table


def _held_out(errors: dict[str, float]) -> str:
    """Median over op classes."""
    return f", held-out error {median(errors.values()):.0%}" if errors else ""


def _figures(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every sourced figure with its dotted key."""
    for key, value in data.items():
        if isinstance(value, dict):
            if "source" in value and "unit" in value:
                yield prefix + key, value
            else:
                yield from _figures(value, f"{prefix}{key}.")


def models_table(specs: list[dict[str, Any]]) -> RenderableType:
    """One row per model preset."""
    table = simple_table(
        "Name",
        "Total\nB",
        "Active\nB",
        "Weight\nGB",
        "Layers",
        "Experts",
        "KV B\n/token",
        "KV MiB\nat 64k",
        "Attention",
        tight=True,
    )
    table.columns[-1].justify = "left"
    table.columns[-1].no_wrap = False
    for spec in specs:
        experts = f"{spec['experts_per_token']} of {spec['experts']}" if spec["experts"] else "dense"
        table.add_row(
            spec["name"],
            f"{spec['params_total'] / BILLION:.1f}",
            f"{spec['params_active'] / BILLION:.2f}",
            f"{spec['weight_bytes'] / GB:.1f}",
            str(spec["layers"]),
            experts,
            f"{spec['kv_bytes_per_token']:.0f}",
            f"{spec['kv_bytes'][TABLE_CONTEXT] / KIB**2:.0f}",
            " ".join(spec["attention"]),
        )
    notes = "Parameters without draft heads. KV of one sequence over the whole instance, one copy."
    return Group(table, Text(notes, style="dim"))


def _parts(sizes: dict[str, float]) -> str:
    """Bytes by name, the largest first."""
    parts = sorted(sizes.items(), key=lambda item: -item[1])
    return ", ".join(f"{name.replace('_', ' ')} {human_bytes(size)}" for name, size in parts)


def model_table(spec: dict[str, Any]) -> RenderableType:
    """One model in full."""
    table = simple_table("Figure", "Value", title=spec["name"])
    table.columns[1].justify = "left"
    rows = {
        "Family": spec["family"],
        "Layers": f"{spec['layers']} ({', '.join(f'{n} {kind}' for kind, n in spec['attention'].items())})",
        "Experts": f"{spec['experts_per_token']} of {spec['experts']}" if spec["experts"] else "none (dense)",
        "Parameters": f"{spec['params_total'] / BILLION:.2f} B{_published(spec['published_total'])}",
        "Active per token": f"{spec['params_active'] / BILLION:.2f} B{_published(spec['published_active'])}",
        "Active without embedding": f"{spec['params_active_no_embedding'] / BILLION:.2f} B",
        "Stored weights": human_bytes(spec["weight_bytes"]),
        "by tensor": _parts(spec["weight_bytes_by_tensor"]),
        "by type": _parts(spec["weight_bytes_by_dtype"]),
        "Draft head": f"{spec['draft_params'] / BILLION:.2f} B, {human_bytes(spec['draft_weight_bytes'])}"
        if spec["draft_params"]
        else "none",
        "KV per token": f"{spec['kv_bytes_per_token']:.0f} B",
        **{
            f"KV of a sequence at {context // KIB}k": human_bytes(spec["kv_bytes"][context])
            + (f" (beyond the model's {spec['max_positions']} positions)" if context > spec["max_positions"] else "")
            for context in CONTEXTS
        },
        "Source": spec["source"],
    }
    for key, value in rows.items():
        table.add_row(key, value)
    return Group(table, assumptions_text(spec["assumptions"]))


def _published(figure: str) -> str:
    return f" (published: {figure})" if figure else ""

"""Tables of what the real engine did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from app.render.tables import MS_PER_S

if TYPE_CHECKING:
    from rich.console import Group

_ROWS = (
    ("queue_s", "Queue"),
    ("ttft_s", "TTFT"),
    ("tpot_s", "TPOT"),
    ("itl_s", "Token gap"),
    ("e2e_s", "End to end"),
)
_COLUMNS = ("mean", "p50", "p90", "p95", "p99", "max")
_SHOWN_ERRORS = 3  # requests


def replay_report(summary: dict[str, Any]) -> Group:
    """Throughput in one line, latencies in a table (milliseconds)."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Latency [ms]", title_justify="left")
    table.add_column("")
    for column in _COLUMNS:
        table.add_column(column, justify="right")
    rows = [*_ROWS]
    values = dict(summary)
    for name, label in (("export_s", "KV export"), ("import_s", "KV import"), ("prefill_to_decode_s", "Hand-over")):
        if "handover" in summary:
            values[name] = summary["handover"][name]
            rows.append((name, label))
    for name, label in rows:
        spread = values[name]
        if spread is not None:
            table.add_row(label, *(f"{spread[column] * MS_PER_S:.1f}" for column in _COLUMNS))
    lines = [
        f"{summary['num_finished']} of {summary['num_requests']} requests finished "
        f"in {summary['duration_s']:.1f} s ({summary['num_failed']} failed)",
        f"{summary['requests_per_s']:.2f} requests/s, {summary['output_tokens_per_s']:.1f} output tokens/s, "
        f"{summary['total_tokens_per_s']:.1f} tokens/s in all",
        f"{summary['cached_tokens']} prompt tokens reused, {summary['preemptions']} preemptions",
    ]
    errors = summary.get("errors", {})
    lines += [f"{name}: {error}" for name, error in list(errors.items())[:_SHOWN_ERRORS]]
    return Group(Text("\n".join(lines)), table)

"""Traffic that was read from a trace or from metrics, as tables."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table

from app.render.tables import PERCENT, number, simple_table

MOST_HOURS = 24  # shown; longer traces show their busiest and quietest


def trace_report(summary: dict[str, Any], written: str) -> Group:
    """A trace's lengths, rates, prefix hits and sessions."""
    title = f"{summary['requests']:,} requests of a {summary['format']} trace in {summary['duration_s']:,.0f} s"
    quantiles = list(summary["prompt"]["quantiles"])
    table = simple_table("Tokens", "mean", *quantiles, "most", title=title)
    for side in ("prompt", "output"):
        found = summary[side]
        figures = [number(found["quantiles"][q], 0) for q in quantiles]
        table.add_row(side, number(found["mean"], 0), *figures, number(found["most"], 0))
    said = [f"Mean rate: {number(summary['mean_rate'], 3)} requests/s."] if summary["mean_rate"] else []
    if summary["hit_share"] is not None:
        said.append(
            f"A prefix cache without bound finds {summary['hit_tokens']:,} prompt tokens "
            f"({summary['hit_share'] * PERCENT:.1f}%), in blocks of {summary['block_tokens']}."
        )
    if summary["sessions"]:
        said.append(f"{summary['sessions']:,} sessions of {summary['turns_per_session']:.1f} requests.")
    if summary["failed"]:
        said.append(f"Left out as failed: {summary['failed']:,} rows.")
    said += [f"Left out: {problem}" for problem in summary["unreadable"]]
    said += [f"Note: {note}." for note in summary["notes"]]
    return Group(table, *_hours(summary["rate_by_hour"]), *said, f"Written: {written}")


def metrics_report(seen: dict[str, Any], written: str) -> Group:
    """What a server's metrics tell of its traffic."""
    title = f"{seen['requests']:,.0f} requests in {seen['seconds']:,.0f} s, from metrics of {seen['engine']}"
    table = simple_table("Tokens", "mean", "sigma of the log", title=title)
    for side in ("prompt", "output"):
        table.add_row(side, number(seen[f"mean_{side}_tokens"], 1), number(seen[f"{side}_sigma"], 2))
    said = [
        f"Rate: {seen['requests_per_s']:.3f} requests/s; {seen['aborted']:,.0f} of them were aborted.",
        f"Prefix hits: {seen['prefix_hit_rate'] * PERCENT:.1f}% of the prompt tokens.",
    ]
    said += [f"Left out: {problem}" for problem in seen.get("left_out", ())]
    return Group(table, *_hours(seen["rate_by_hour"]), *said, f"Written: {written}")


def _hours(rates: tuple[float, ...]) -> list[Table | str]:
    """Requests per second by hour from the first request on."""
    if len(rates) < 2:
        return []
    if len(rates) > MOST_HOURS:
        return [f"Requests/s by hour, {len(rates)} hours: {min(rates):.3f} to {max(rates):.3f}."]
    table = simple_table("Hour", "Requests/s")
    for hour, rate in enumerate(rates):
        table.add_row(str(hour), number(rate, 3))
    return [table]

"""Tables of a simulation, made from the dictionary that JSON output has."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from app.render.tables import MS_PER_S, PERCENT, assumptions_text, band_text, grounds_text, number, simple_table
from simulator.scenario import Scenario

BAND = "p10-p90"
STATISTICS = ("mean", "p50", "p90", "p95", "p99")
# key of the summary -> (label, digits, factor to the shown unit)
LATENCIES = {
    "ttft_s": ("TTFT [s]", 3, 1.0),
    "tpot_s": ("TPOT [ms]", 2, MS_PER_S),
    "e2e_s": ("End to end [s]", 2, 1.0),
    "tok_s_per_user": ("tok/s/user", 1, 1.0),
}
TENANT_COLUMNS = ("Priority", "Requests", "TTFT\np50 [s]", "TTFT\np99 [s]", "TPOT\np50 [ms]", "TPOT\np99 [ms]",
                  "Output\ntok/s", "In limits\n%")  # fmt: skip
GROUP_ROWS = ("Requests of pool [%]", "Input tok/s", "Output tok/s", "Own tok/s/GPU", "TTFT p50 [s]", "TTFT p99 [s]",
              "TPOT p50 [ms]", "TPOT p99 [ms]", "USD/Mtok own")  # fmt: skip
RATES = {
    "total_tok_s_per_gpu": ("Input + output tok/s/GPU", 1, 1.0),
    "output_tok_s_per_gpu": ("Output tok/s/GPU", 1, 1.0),
    "requests_per_s": ("Requests/s", 3, 1.0),
    "goodput_requests_per_s": ("Requests/s inside every limit", 3, 1.0),
    "attainment": ("Share of requests inside every limit [%]", 1, PERCENT),
}
USAGE = {
    "instances": ("Instances", 0, 1.0),
    "gpus": ("GPUs", 0, 1.0),
    "busy_fraction": ("Busy\n%", 1, PERCENT),
    "batch_mean": ("Batch\nmean", 1, 1.0),
    "kv_occupancy": ("KV full\n%", 1, PERCENT),
    "link_fraction": ("Link busy\n%", 1, PERCENT),
}
COSTS = {
    "usd_per_hour": ("USD/hour", 2, 1.0),
    "usd_per_mtok_input": ("USD/Mtok input", 4, 1.0),
    "usd_per_mtok_output": ("USD/Mtok output", 4, 1.0),
    "usd_per_mtok_blended": ("USD/Mtok blended", 4, 1.0),
    "usd_per_request": ("USD/request", 6, 1.0),
    "power_kw": ("Power as provisioned [kW]", 1, 1.0),
    "joule_per_token": ("J/token, input + output", 2, 1.0),
}
SHARED = {
    "duration_s": ("Duration [s]", 1, 1.0),
    "gpu_hours": ("GPU-hours", 2, 1.0),
    "input_tok_s": ("Input tok/s", 0, 1.0),
    "output_tok_s": ("Output tok/s", 0, 1.0),
    "requests_per_s": ("Requests/s", 3, 1.0),
    "goodput_requests_per_s": ("Requests/s inside every limit", 3, 1.0),
}
SHARED_COSTS = {key: COSTS[key] for key in ("usd_per_hour", "usd_per_mtok_blended", "usd_per_request")}
ENERGY = {
    "kwh": ("Whole run [kWh]", 3, 1.0),
    "power_kw": ("Mean power [kW]", 2, 1.0),
    "joule_per_token": ("J/token, input + output", 3, 1.0),
    "joule_per_request": ("J/request", 1, 1.0),
}


def simulation_report(scenario: Scenario, summary: dict[str, Any]) -> RenderableType:
    """Requests, latencies, throughput, utilisation and cost of one run."""
    sure = summary["uncertainty"]
    return Group(
        Text(_headline(scenario, summary), style="bold"),
        _latency_table(summary["metrics"], sure["bands"]),
        *(Text(line) for line in _limit_lines(summary["slo"], sure["limits"])),
        *([_tenant_table(summary["tenants"])] if summary["tenants"] else []),
        _listing("Throughput", RATES, summary["throughput"], sure["bands"]),
        _usage_table(summary["utilization"]),
        *([_group_table(summary["groups"])] if summary["groups"] else []),
        *(Text(line) for line in _lifecycle_lines(summary)),
        *([_listing("Cost", COSTS, summary["cost"], sure["bands"])] if summary["cost"] else []),
        *([_listing("Energy of the accelerators alone", ENERGY, summary["energy"])] if summary["energy"] else []),
        Text(grounds_text([sure]), style="dim"),
        assumptions_text(summary["assumptions"]),
    )


def shared_report(scenarios: dict[str, Scenario], summary: dict[str, Any]) -> RenderableType:
    """The cluster, and then each model."""
    cluster = summary["cluster"]
    table = simple_table("Accelerators", "Total", *scenarios, "Free")
    for name, seen in cluster["gpus"].items():
        parts = (seen["models"].get(model, 0) for model in scenarios)
        table.add_row(name, *(number(count, 0) for count in (seen["total"], *parts, seen["free"])))
    return Group(
        Text(f"{cluster['name']}: {len(scenarios)} models on {cluster['gpus_total']} GPUs", style="bold"),
        table,
        _listing("All models", SHARED, cluster | cluster["throughput"]),
        *([_listing("Cost, free accelerators included", SHARED_COSTS, cluster["cost"])] if cluster["cost"] else []),
        *([_listing("Energy, free accelerators idle", ENERGY, cluster["energy"])] if cluster["energy"] else []),
        *(
            part
            for model, scenario in scenarios.items()
            for part in (Text(), simulation_report(scenario, summary["models"][model]))
        ),
    )


def _headline(scenario: Scenario, summary: dict[str, Any]) -> str:
    requests = summary["requests"]
    counts = ", ".join(f"{requests[key]:,} {key}" for key in ("total", "finished", "failed", "rejected"))
    lines = [
        f"{scenario.model} on {summary['gpus_total']} GPUs: {scenario.name}",
        f"Requests: {counts}; tokens: {summary['tokens_in']:,} in, {summary['tokens_out']:,} out; "
        f"{summary['duration_s']:,.1f} s of traffic.",
    ]
    lines += [f"Rejected, {reason}: {count:,}" for reason, count in summary["rejections"].items()]
    return "\n".join(lines)


def _latency_table(metrics: dict[str, Any], bands: dict[str, Any]) -> RenderableType:
    """One column a latency: figures, and below each its p10-p90 band."""
    table = simple_table("Latency", *(label for label, _, _ in LATENCIES.values()), tight=True)
    for statistic in STATISTICS:
        cells = LATENCIES.items()
        table.add_row(statistic, *(number(metrics[key][statistic], digits, scale) for key, (_, digits, scale) in cells))
        ranges = (band_text(bands.get(f"metrics.{key}.{statistic}"), scale) for key, (_, _, scale) in cells)
        table.add_row(BAND, *ranges, style="dim")
    return table


def _limit_lines(slo: dict[str, Any], sure: dict[str, Any]) -> list[str]:
    """One line per limit: kept or missed, by how much, and how surely."""
    lines = []
    for key, seen in slo["limits"].items():
        at = seen["at_percentile"]
        verdict = "never reached" if at is None else "kept" if at <= seen["limit"] else "missed"
        lines.append(
            f"Limit {key} {seen['limit']:g}: {verdict}; p{slo['percentile']:g} is {number(at, 4)}, "
            f"{seen['attainment']:.1%} of requests are inside"
            + (f"; the limit holds with a chance of {sure[key]['chance']:.0%}." if key in sure else ".")
        )
    return lines


def _lifecycle_lines(summary: dict[str, Any]) -> list[str]:
    """What broke, what became of the requests, and what was paid for where the pools' sizes changed."""
    lines = []
    for pool, seen in summary["lifecycle"].items():
        least, most = seen["instances_least"], seen["instances_most"]
        if seen["faults"]:
            counts = ", ".join(f"{count} x {kind}" for kind, count in seen["faults"].items())
            lines.append(f"Faults, {pool}: {counts}; instances were up {seen['availability']:.2%} of the time.")
        if least != most:
            lines.append(f"Size, {pool}: {least} to {most} instances, {seen['gpu_hours']:,.2f} GPU-hours in all.")
    if summary["retries"]:
        lines.append(f"Retries after faults: {summary['retries']:,}.")
    return lines


def _tenant_table(tenants: dict[str, dict[str, Any]]) -> RenderableType:
    """One row a tenant: what it sent, what it got, and whether its own limits are kept."""
    table = simple_table("Tenant", *TENANT_COLUMNS, tight=True)
    for name, seen in tenants.items():
        metrics, slo = seen["metrics"], seen["slo"]
        table.add_row(
            name,
            "offline" if seen["offline"] else f"{seen['priority']}",
            number(seen["requests"]["total"], 0),
            number(metrics["ttft_s"]["p50"], 3),
            number(metrics["ttft_s"]["p99"], 3),
            number(metrics["tpot_s"]["p50"], 1, MS_PER_S),
            number(metrics["tpot_s"]["p99"], 1, MS_PER_S),
            number(seen["throughput"]["output_tok_s"], 0),
            number(slo["attainment"], 1, PERCENT) if slo["limits"] else "none",
        )
    return table


def _listing(
    title: str,
    rows: dict[str, tuple[str, int, float]],
    figures: dict[str, Any],
    bands: dict[str, Any] | None = None,
) -> RenderableType:
    """bands: by dotted key, whose first part is the title in lower case."""
    table = simple_table(title, "", *([BAND] if bands else []))
    for key, (label, digits, factor) in rows.items():
        band = [band_text(bands.get(f"{title.lower()}.{key}"), factor)] if bands else []
        table.add_row(label, number(figures[key], digits, factor), *band)
    return table


def _usage_table(utilization: dict[str, dict[str, float]]) -> RenderableType:
    table = simple_table("Pool", *(label for label, _, _ in USAGE.values()), tight=True)
    for pool, figures in utilization.items():
        table.add_row(pool, *(number(figures[key], digits, factor) for key, (_, digits, factor) in USAGE.items()))
    return table


def _group_table(groups: dict[str, dict[str, Any]]) -> RenderableType:
    """One column a group: its share of the pool's requests, what it delivered, at what price."""
    table = simple_table("Group", *groups)
    columns = []
    for seen in groups.values():
        ttft, tpot = seen["ttft_s"] or {}, seen["tpot_s"] or {}
        columns.append(
            (
                number(seen["request_share"], 1, PERCENT),
                number(seen["input_tok_s"], 0),
                number(seen["output_tok_s"], 0),
                number(seen["tok_s_per_gpu"], 1),
                number(ttft.get("p50"), 3),
                number(ttft.get("p99"), 3),
                number(tpot.get("p50"), 2, MS_PER_S),
                number(tpot.get("p99"), 2, MS_PER_S),
                number(seen["usd_per_mtok"], 4),
            )
        )
    for label, *figures in zip(GROUP_ROWS, *columns, strict=True):
        table.add_row(label, *figures)
    return table


def replication_report(seen: dict[str, Any]) -> RenderableType:
    """Means over several runs with the half-widths of their intervals."""
    bands = seen["uncertainty"]["bands"]
    table = simple_table("Over all runs", "mean", f"+- {seen['confidence']:.0%}", BAND)
    for key, found in seen["estimates"].items():
        if key.startswith(("metrics.", "throughput.")):
            interval = f"{found['half_width']:.2g}"
            table.add_row(key.split(".", 1)[1], f"{found['mean']:.5g}", interval, band_text(bands.get(key)))
    cuts = ", ".join(f"{cut:,}" for cut in seen["warmup_requests_mser5"])
    return Group(
        Text(f"{len(seen['seeds'])} runs with independent seeds", style="bold"),
        table,
        Text(f"MSER-5 would leave out the first {cuts} requests of the runs."),
        Text(grounds_text([seen["uncertainty"]]), style="dim"),
    )

"""Tables of a plan, made from the dictionary that JSON output has."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from app.tables import assumptions_text, number, simple_table
from simulator.des.scenario import Scenario, Slo

ROLES = ("prefill", "decode", "colocated")


def plan_report(scenario: Scenario, answer: dict[str, Any]) -> RenderableType:
    """What was asked, the ranked designs, and what they rest on."""
    parts: list[RenderableType] = [Text(question(scenario, answer["traffic"]), style="bold")]
    if answer["designs"]:
        parts += [design_table(scenario.slo, answer["designs"]), Text(_legend(scenario), style="dim")]
    if binding := answer["binding"]:
        parts.append(Text(f"No design meets the limits. {binding}", style="bold red"))
    if answer["rejected"]:
        counts = "; ".join(f"{reason}: {count}" for reason, count in answer["rejected"].items())
        parts.append(Text(f"Turned down: {counts}.", style="dim"))
    parts.append(assumptions_text(answer["assumptions"]))
    return Group(*parts)


def question(scenario: Scenario, traffic: str) -> str:
    """The scenario in one line."""
    return f"{scenario.model}: {traffic}; {limits_text(scenario.slo)}"


def limits_text(slo: Slo) -> str:
    """'TTFT <= 3 s, TPOT <= 50 ms for 90% of requests'."""
    limits = [
        text
        for text, limit in (
            (f"TTFT <= {slo.ttft_s:g} s" if slo.ttft_s else "", slo.ttft_s),
            (f"TPOT <= {slo.tpot_s * 1e3:g} ms" if slo.tpot_s else "", slo.tpot_s),
            (f"end to end <= {slo.e2e_s:g} s" if slo.e2e_s else "", slo.e2e_s),
        )
        if limit
    ]
    return f"{', '.join(limits)} for {slo.percentile:g}% of requests" if limits else "no latency limits"


def design_table(slo: Slo, designs: list[dict[str, Any]]) -> RenderableType:
    """Ranked designs, one line per pool."""
    tail = f"p{slo.percentile:g}"
    latencies = (f"TTFT\n{tail} s", f"TPOT\n{tail} ms")
    rates = ("tok/s\n/user", "tok/s\n/GPU", "USD/h", "USD\n/Mtok")
    table = simple_table("#", "Pools", "GPUs", *latencies, *rates, "SLO", "By")
    table.columns[1].justify = "left"
    for rank, design in enumerate(designs, 1):
        seen = shown_metrics(design)
        table.add_row(
            str(rank),
            "\n".join(pool_text(role, design[role]) for role in ROLES if role in design),
            str(design["gpus_total"]),
            number(_metric(seen, "ttft_s", tail), 2),
            number(_metric(seen, "tpot_s", tail), 1, 1e3),
            number(_metric(seen, "tok_s_per_user", "mean"), 0),
            number(seen["total_tok_s_per_gpu"], 0),
            number(design["usd_per_hour"], 2),
            number(design["usd_per_mtok_blended"], 3),
            "yes" if design["meets_slo"] else "no",
            "DES" if design["simulated"] else "est.",
        )
    return table


def shown_metrics(design: dict[str, Any]) -> dict[str, Any]:
    """Simulated figures where the design was simulated, else the steady-state estimate."""
    return design["simulated"] or design["steady_state"]


def _metric(metrics: dict[str, Any], key: str, statistic: str) -> float | None:
    return metrics[key].get(statistic)


def pool_text(role: str, pool: dict[str, Any]) -> str:
    """'prefill 3 x b300_sxm TP8 EP8'."""
    cut = " ".join(f"{k.upper()}{pool[k]}" for k in ("tp", "dp", "ep", "pp", "cp") if pool.get(k, 1) > 1)
    return f"{role} {pool['instances']} x {pool['gpu']} {cut or 'TP1'}"


def _legend(scenario: Scenario) -> str:
    return (
        "GPUs: all pools. tok/s/GPU: input and output tokens over all GPUs. USD/Mtok: input and output "
        f"blended, at {scenario.price_convention} prices.\n"
        "By: DES = re-run request by request in the discrete-event model; est. = steady-state estimate only."
    )

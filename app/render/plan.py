"""Tables of a plan, made from the dictionary that JSON output has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from app.render.tables import MS_PER_S, assumptions_text, band_text, grounds_text, number, simple_table
from simulator.scenario import Scenario, Slo

ROLES = {"prefill": "P", "decode": "D", "colocated": "C"}  # and their letters where room is short
WIDE = 100  # that the full table needs [columns]
NARROW = 80  # below which what follows from other figures is left out: speed per user, cost per hour [columns]


def plan_report(scenario: Scenario, answer: dict[str, Any], width: int) -> RenderableType:
    """What was asked, the ranked designs, and what they rest on. width: columns of the screen."""
    parts: list[RenderableType] = [Text(question(scenario, answer["traffic"]), style="bold")]
    if answer["designs"]:
        parts += [
            design_table(scenario.slo, answer["designs"], width),
            Text(_legend(scenario), style="dim"),
            Text(grounds(answer["designs"]), style="dim"),
        ]
    if reason := no_design_text(answer):
        parts.append(Text(reason, style="bold red"))
    if answer["rejected"]:
        counts = "; ".join(f"{reason}: {count}" for reason, count in answer["rejected"].items())
        parts.append(Text(f"Turned down: {counts}.", style="dim"))
    parts.append(assumptions_text(answer["assumptions"]))
    return Group(*parts)


def no_design_text(answer: dict[str, Any]) -> str | None:
    """Why nothing can be recommended: the limit that binds, and by how much. None if something can."""
    if answer["binding"]:
        return f"No design meets the limits. {answer['binding']}"
    if any(design["meets_slo"] for design in answer["designs"]):
        return None
    slo = answer["slo"]
    misses = []
    for design in answer["designs"]:
        seen = shown_metrics(design)
        for key in ("ttft_s", "tpot_s", "e2e_s"):
            at = _metric(seen, key, f"p{slo['percentile']:g}")
            if slo[key] and at and at > slo[key]:
                misses.append((at / slo[key], key, at))
    if not misses and answer["confidence"]:
        chance, limit = max(_weakest(design) for design in answer["designs"])
        return (
            f"No design meets the limits with a chance of {answer['confidence']:.0%}: the best holds {limit} with "
            f"{chance:.0%}; lower --confidence, relax the limit or raise search.max_gpus"
        )
    if not misses:
        return "No design serves every request of this traffic; see JSON output for what was refused."
    ratio, key, at = min(misses)
    return (
        f"No design meets the limits. {key}: the limit is {slo[key]:g} s and the design that comes closest takes "
        f"{at:.4g} s at p{slo['percentile']:g}, {ratio:,.1f} times the limit; relax the limit or raise search.max_gpus"
    )


def _weakest(design: dict[str, Any]) -> tuple[float, str]:
    """Chance and name of the limit that is least sure to hold."""
    return min((limit["chance"], name) for name, limit in design["uncertainty"]["limits"].items())


def question(scenario: Scenario, traffic: str) -> str:
    """The scenario in one line."""
    return f"{scenario.model}: {traffic}; {limits_text(scenario.slo)}"


def limits_text(slo: Slo) -> str:
    """'TTFT <= 3 s, TPOT <= 50 ms for 90% of requests'."""
    limits = [
        text
        for text, limit in (
            (f"TTFT <= {slo.ttft_s:g} s" if slo.ttft_s else "", slo.ttft_s),
            (f"TPOT <= {slo.tpot_s * MS_PER_S:g} ms" if slo.tpot_s else "", slo.tpot_s),
            (f"end to end <= {slo.e2e_s:g} s" if slo.e2e_s else "", slo.e2e_s),
        )
        if limit
    ]
    return f"{', '.join(limits)} for {slo.percentile:g}% of requests" if limits else "no latency limits"


def design_table(slo: Slo, designs: list[dict[str, Any]], width: int) -> RenderableType:
    """Ranked designs, one line per pool. width: columns of the screen."""
    narrow = width < WIDE
    tail = f"p{slo.percentile:g}"
    latencies = (f"TTFT\n{tail} s", f"TPOT\n{tail} ms")
    rates = ("tok/s\n/user", "tok/s\n/GPU", "USD/h", "USD\n/Mtok")
    headers = ("#", "Pools", "GPUs", *latencies, *rates, "SLO", "By")
    left_out = {rates[0], rates[2]} if width < NARROW else set()
    shown = [place for place, header in enumerate(headers) if header not in left_out]
    table = simple_table(*(headers[place] for place in shown), tight=narrow)
    table.columns[1].justify = "left"
    table.columns[1].no_wrap = False
    for rank, design in enumerate(designs, 1):
        seen, bands, chance = shown_metrics(design), design["uncertainty"]["bands"], least_chance(design)

        def cell(figure: str, key: str, scale: float = 1.0, bands: Any = bands) -> str:
            """A figure over its band; short screens have no room for the bands of rates."""
            shown = not narrow or key in ("ttft_s", "tpot_s")
            return f"{figure}\n{band_text(bands.get(key), scale)}" if shown else figure

        cells = (
            str(rank),
            "\n".join(pool_text(ROLES[role] if narrow else role, design[role]) for role in ROLES if role in design),
            str(design["gpus_total"]),
            cell(number(_metric(seen, "ttft_s", tail), 2), "ttft_s"),
            cell(number(_metric(seen, "tpot_s", tail), 1, MS_PER_S), "tpot_s", MS_PER_S),
            cell(number(_metric(seen, "tok_s_per_user", "mean"), 0), "tok_s_per_user"),
            cell(number(seen["total_tok_s_per_gpu"], 0), "total_tok_s_per_gpu"),
            number(design["usd_per_hour"], 2),
            cell(number(design["usd_per_mtok_blended"], 3), "usd_per_mtok_blended"),
            ("yes" if design["meets_slo"] else "no") + ("" if chance is None else f"\n{chance:.0%}"),
            "DES" if design["simulated"] else "est.",
        )
        table.add_row(*(cells[place] for place in shown))
    return table


def grounds(designs: Sequence[dict[str, Any]]) -> str:
    """What the bands rest on."""
    return grounds_text([design["uncertainty"] for design in designs])


def least_chance(design: dict[str, Any]) -> float | None:
    """Chance of the limit that is least sure to hold; None without limits."""
    return min((limit["chance"] for limit in design["uncertainty"]["limits"].values()), default=None)


def shown_metrics(design: dict[str, Any]) -> dict[str, Any]:
    """Simulated figures where the design was simulated, else the steady-state estimate."""
    return design["simulated"] or design["steady_state"]


def _metric(metrics: dict[str, Any], key: str, statistic: str) -> float | None:
    return metrics[key].get(statistic)


def pool_text(label: str, pool: dict[str, Any]) -> str:
    """'prefill 3 x b300_sxm TP8 EP8'."""
    cut = " ".join(f"{k.upper()}{pool[k]}" for k in ("tp", "dp", "ep", "pp", "cp") if pool.get(k, 1) > 1)
    return f"{label} {pool['instances']} x {pool['gpu']} {cut or 'TP1'}"


def _legend(scenario: Scenario) -> str:
    return (
        "GPUs: all pools. tok/s/GPU: input + output tokens over all GPUs.\n"
        f"USD/Mtok: input and output blended, at {scenario.price_convention} prices.\n"
        "Second line: p10-p90 of the figure; under SLO the chance of the limit that is least sure to hold.\n"
        "By: DES = re-run request by request in the discrete-event model; est. = steady-state estimate only."
    )

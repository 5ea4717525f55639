"""Tables of a plan, made from the dictionary that JSON output has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from app.render.tables import MS_PER_S, assumptions_text, band_text, grounds_text, number, simple_table
from simulator.scenario import Scenario, Slo

LATENCIES = ("ttft_s", "tpot_s")
ROLES = {"prefill": "P", "decode": "D", "colocated": "C"}  # and their letters where room is short
WIDE = 100  # that the full table needs [columns]
NARROW = 80  # below which what follows from other figures is left out: speed per user, cost per hour [columns]


def plan_report(scenario: Scenario, answer: dict[str, Any], width: int) -> RenderableType:
    """What was asked, the verdict, the ranked designs, and what they rest on. width: columns of the screen."""
    parts: list[RenderableType] = [Text(question(scenario, answer["traffic"]), style="bold")]
    if verdict := verdict_text(answer):
        parts.append(Text(verdict, style="bold green"))
    if answer["designs"]:
        parts += [
            design_table(scenario.slo, answer["designs"], width),
            Text(_legend(scenario), style="dim"),
            Text(grounds(answer["designs"]), style="dim"),
        ]
    if reason := no_design_text(answer):
        parts.append(Text(reason, style="bold red"))
    if answer["idle"]:
        parts.append(Text(f"{answer['idle']}."))
    if answer["own_stacks"]:
        parts.append(Text(f"Stacks of your own come before those that ship: {', '.join(answer['own_stacks'])}."))
    if answer["cheaper"]:
        parts.append(Text(cheaper_text(answer["cheaper"])))
    if answer["rejected"]:
        counts = "; ".join(f"{reason}: {count}" for reason, count in answer["rejected"].items())
        parts.append(Text(f"Turned down: {counts}.", style="dim"))
    parts.append(assumptions_text(answer["assumptions"]))
    return Group(*parts)


def verdict_text(answer: dict[str, Any]) -> str | None:
    """'22 GPUs if the model is right, 44 for 80%', and what they are. None where nothing can be recommended."""
    best = next((design for design in answer["designs"] if design["meets_slo"]), None)
    if best is None:
        return None
    pools = " + ".join(pool_text(role, best[role]) for role in ROLES if role in best)
    if answer["confidence"]:
        first = f"{best['gpus_total']} GPUs keep each limit with a chance of {answer['confidence']:.0%}"
    else:
        first = f"{best['gpus_total']} GPU{'s' if best['gpus_total'] > 1 else ''} if the model is right"
        sure = answer["sure"]
        if sure is not None:
            first += f", {sure['gpus_total']} for a chance of 80% (estimated, {_usd(sure)})"
    how = "simulated" if best["simulated"] else "estimated"
    return f"{first}: {pools}, stack {best['stack']}, {_usd(best)}, {how}."


def _usd(design: dict[str, Any]) -> str:
    return "no price" if design["usd_per_hour"] is None else f"{design['usd_per_hour']:,.2f} USD/h"


def cheaper_text(cheaper: Sequence[dict[str, Any]]) -> str:
    """Accelerators of the same vendor that were not offered."""
    named = ", ".join(
        f"{one['gpu']} ({one['stack']}, {one['usd_per_gpu_hour']:g} USD/h, about {one['saves']:.0%} less a request)"
        for one in cheaper
    )
    return f"Not offered and cheaper by a first look: {named}; add --gpu {cheaper[0]['gpu']}."


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
    """Ranked designs, one line per pool; those that were only estimated are dim, their figures with a ~."""
    narrow = width < WIDE
    tail = f"p{slo.percentile:g}"
    latencies = (f"TTFT\n{tail} s", f"TPOT\n{tail} ms")
    rates = ("tok/s\n/user", "tok/s\n/GPU", "USD/h", "USD\n/Mtok")
    room = ("In\nflight", "Binds")
    headers = ("#", "Pools", "GPUs", *latencies, *rates, *room, "Held")
    left_out = {*room, *((rates[0], rates[2]) if width < NARROW else ())} if narrow else set()
    shown = [place for place, header in enumerate(headers) if header not in left_out]
    table = simple_table(*(headers[place] for place in shown), tight=narrow)
    table.columns[1].justify = "left"
    table.columns[1].no_wrap = False
    for rank, design in enumerate(designs, 1):
        cells = _cells(rank, design, tail, narrow)
        style = "" if design["simulated"] else "dim"
        table.add_row(*(cells[place] for place in shown), style=style)
    return table


def _cells(rank: int, design: dict[str, Any], tail: str, narrow: bool) -> tuple[str, ...]:
    """Of one design, each with its band below; short screens have no room for the bands of rates."""
    seen, bands, chance = shown_metrics(design), design["uncertainty"]["bands"], least_chance(design)
    about = "" if design["simulated"] else "~"

    def cell(value: float | None, digits: int, key: str, scale: float = 1.0) -> str:
        figure = "-" if value is None else about + number(value, digits, scale)
        return f"{figure}\n{band_text(bands.get(key), scale)}" if not narrow or key in LATENCIES else figure

    binds = design["binds"]
    near = "over" if binds["share"] is None else f"{binds['share']:.0%}"
    return (
        str(rank),
        "\n".join(pool_text(ROLES[role], design[role]) for role in ROLES if role in design)
        + ("" if narrow else f"\nstack {design['stack']}"),
        str(design["gpus_total"]),
        cell(_metric(seen, "ttft_s", tail), 2, "ttft_s"),
        cell(_metric(seen, "tpot_s", tail), 1, "tpot_s", MS_PER_S),
        cell(_metric(seen, "tok_s_per_user", "mean"), 0, "tok_s_per_user"),
        cell(seen["total_tok_s_per_gpu"], 0, "total_tok_s_per_gpu"),
        number(design["usd_per_hour"], 2),
        cell(design["usd_per_mtok_blended"], 3, "usd_per_mtok_blended"),
        f"{about}{number(design['concurrency'], 0)}\n{number(design['sequences_per_instance'], 0)} each",
        f"{binds['what'].replace(' ', chr(10))}\n{near}",
        about + ("yes" if design["meets_slo"] else "no") + ("" if chance is None else f"\n{chance:.0%}"),
    )


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
    """'prefill 24 = 3 x 8 b300_sxm TP8 EP8': accelerators of the pool, instances, accelerators of one."""
    cut = " ".join(f"{k.upper()}{pool[k]}" for k in ("tp", "dp", "ep", "pp", "cp") if pool.get(k, 1) > 1)
    count = f"{pool['gpus']} = {pool['instances']} x {pool['gpus_per_instance']}"
    return f"{label} {count} {pool['gpu']} {cut or 'TP1'}"


def _legend(scenario: Scenario) -> str:
    return (
        "P, D, C: prefill, decode, colocated pool; 24 = 3 x 8: its accelerators, instances, accelerators of one.\n"
        "tok/s/GPU: input + output tokens over all GPUs. "
        f"USD/Mtok: input and output blended, at {scenario.price_convention} prices. In flight: requests under way, "
        "and sequences that decode on an instance.\n"
        "Binds: what is nearest to its bound. Second line: p10-p90 of the figure; under Held the chance of the limit "
        "that is least sure to hold.\n"
        "Plain rows were played request by request in the discrete-event model; those with a ~ are estimates alone."
    )

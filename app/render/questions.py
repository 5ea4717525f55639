"""Reports of the questions, from their results."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from app.render.plan import limits_text
from app.render.tables import MS_PER_S, number, simple_table
from simulator.questions.capacity import Capacity
from simulator.questions.compare import Comparison
from simulator.questions.curves import layout
from simulator.questions.frontier import Frontier
from simulator.questions.token_cost import RULE
from simulator.scenario import Scenario

COST_HEADERS = ("USD/Mtok\ninput", "cached", "output", "blended")
PUBLISHED_ROWS = 8  # shown beside a comparison; all are in JSON


def capacity_report(scenario: Scenario, answer: Capacity) -> RenderableType:
    """Verdict first, then the rates that were tried."""
    assert scenario.deployment is not None
    parts: list[RenderableType] = [
        Text(f"{scenario.model} on {layout(scenario.deployment)} ({answer.gpus} GPUs); {limits_text(scenario.slo)}"),
        Text(_verdict(answer), style="bold"),
    ]
    if answer.binding is not None:
        parts.append(Text(f"Beyond it {answer.binding.sentence}."))
    for gain in answer.gains:
        share = gain.rate / answer.rate - 1
        parts.append(
            Text(
                f"One more {gain.pool} instance ({gain.gpus} GPUs): {gain.rate:.3g} requests/s, {share:+.1%}, "
                f"{gain.rate_per_gpu:.3g} requests/s a GPU."
            )
        )
    table = simple_table("requests/s", "inside\nlimits", "TTFT s", "TPOT ms", "tok/s\n/GPU", *COST_HEADERS, "")
    for point in answer.points:
        table.add_row(
            number(point.rate, 3),
            f"{point.attainment:.1%}",
            number(point.ttft_s, 2),
            number(point.tpot_s, 1, MS_PER_S),
            number(point.total_tok_s_per_gpu, 0),
            number(point.usd_per_mtok_input, 3),
            number(point.usd_per_mtok_cached, 4),
            number(point.usd_per_mtok_output, 3),
            number(point.usd_per_mtok_blended, 3),
            "holds" if point.holds else "",
        )
    used = ", ".join(f"{name} {share:.0%}" for name, share in answer.busy.items())
    room = ", ".join(f"{name} {share:.0%}" for name, share in answer.kv.items())
    said = (
        f"Latencies: p{answer.percentile:g}, mean of up to {answer.replications} runs.\n"
        f"At the capacity: busy {used or '-'}; KV room in use {room or '-'}.\n"
        f"{cost_note(scenario)}"
    )
    return Group(*parts, table, Text(said, style="dim"))


def _verdict(answer: Capacity) -> str:
    if answer.rate <= 0:
        return "No rate that was tried keeps the limits."
    above = "" if answer.above is None else f"; {answer.above:.4g} is too much"
    spare = "" if answer.headroom is None else f"; {answer.headroom:+.0%} on the scenario's {answer.planned_rate:g}"
    return f"Carries {answer.rate:.4g} requests/s{above}{spare}."


def comparison_report(scenario: Scenario, answer: Comparison) -> RenderableType:
    """Sides at equal speed and at their peaks, ratios across speeds, and why."""
    parts: list[RenderableType] = []
    for title, points in (
        (f"At {answer.tok_s_per_user or 0:.4g} tok/s for each user", answer.equal),
        ("At the peak, whatever the speed", answer.peaks),
    ):
        table = simple_table(
            "Side", "tok/s\n/user", "tok/s\n/GPU", *COST_HEADERS, "J/tok", "GPUs", "clients", title=title
        )
        for name, point in points.items():
            if point is None:
                table.add_row(name, "does not reach it")
                continue
            table.add_row(
                f"{name}\n{point.layout}",
                number(point.tok_s_per_user, 1),
                number(point.total_tok_s_per_gpu, 0),
                number(point.usd_per_mtok_input, 3),
                number(point.usd_per_mtok_cached, 4),
                number(point.usd_per_mtok_output, 3),
                number(point.usd_per_mtok_blended, 3),
                number(point.joule_per_token, 3),
                str(point.gpus),
                str(point.clients),
            )
        parts.append(table)
    if answer.levels:
        table = simple_table(
            "tok/s/user", *answer.sides, title=f"tok/s/GPU by speed, and as multiples of {answer.sides[0]}"
        )
        for level in answer.levels:
            cells = [f"{number(level.throughput[name], 0)} ({number(level.ratio[name], 2)})" for name in answer.sides]
            table.add_row(number(level.tok_s_per_user, 1), *cells)
        parts.append(table)
    for fall in answer.waterfalls:
        table = simple_table("Why", *fall.factors, "tok/s/GPU", "tok/USD", title=f"{fall.side} over {fall.base}")
        table.add_row(
            "times",
            *(number(factor, 2) for factor in fall.factors.values()),
            number(fall.throughput, 2),
            number(fall.value, 2),
        )
        parts.append(table)
    if answer.published:
        table = simple_table("Published", "form", "tok/s/user", "tok/s/GPU", "drafts", title="Nearest measured points")
        at = answer.tok_s_per_user or 1.0
        nearest = sorted(answer.published, key=lambda p: abs(p.tok_s_per_user / at - 1))[:PUBLISHED_ROWS]
        for row in nearest:
            table.add_row(
                f"{row.gpu} {row.engine} {row.id}",
                row.form,
                number(row.tok_s_per_user, 1),
                number(row.total_tok_s_per_gpu, 0),
                row.drafts[:20],
            )
        parts.append(table)
    said = (
        "Closed loops of clients, simulated; speed is the mean over requests.\n"
        "Factors: compute, memory bandwidth, network and host times change one after the other in every order, mean "
        "taken (Shapley);\nbatch: clients and cut chosen anew within the first side's memory; capacity: within the "
        "other's; price: USD per GPU-hour.\n"
        f"J/tok: accelerators alone. {cost_note(scenario)}"
    )
    return Group(*parts, Text(said, style="dim"))


def frontier_report(scenario: Scenario, answer: Frontier) -> RenderableType:
    """Points by accelerator and form, fastest for one user first."""
    table = simple_table("Accelerator", "form", "cut", "sequences", "tok/s\n/user", "tok/s\n/GPU", *COST_HEADERS, "By")
    for point in sorted(answer.points, key=lambda p: (p.name, p.form, -p.tok_s_per_user)):
        table.add_row(
            point.name,
            point.form,
            point.layout,
            str(point.sequences),
            number(point.tok_s_per_user, 1),
            number(point.total_tok_s_per_gpu, 0),
            number(point.usd_per_mtok_input, 3),
            number(point.usd_per_mtok_cached, 4),
            number(point.usd_per_mtok_output, 3),
            number(point.usd_per_mtok_blended, 3),
            "DES" if point.verified else "est.",
        )
    left_out = "".join(f"\n{name}: {why}" for name, why in answer.skipped.items())
    said = f"est.: pools matched by fractions of instances; DES: whole instances, simulated. {cost_note(scenario)}"
    return Group(table, Text(said + left_out, style="dim"))


def cost_note(scenario: Scenario) -> str:
    """What the convention of prices means, and how cost is split."""
    return f"USD: {CONVENTIONS[scenario.price_convention]}. {RULE[0].upper()}{RULE[1:]}."


CONVENTIONS = {
    "hyperscaler_ownership": "what a very large owner pays over the life of the hardware, power and hosting included",
    "neocloud_ownership": "what a mid-size owner pays over the life of the hardware, power and hosting included",
    "rental_3yr": "rented for three years",
    "on_demand": "list price by the hour",
}

"""The report of a sensitivity analysis."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from app.render.questions import cost_note
from app.render.tables import number, simple_table
from simulator.questions.curves import layout
from simulator.questions.sensitivity import Sensitivity
from simulator.questions.sobol import SobolIndex
from simulator.scenario import Scenario


def sensitivity_report(scenario: Scenario, answer: Sensitivity) -> RenderableType:
    """The chance first, then inputs by what they do to the cost."""
    assert scenario.deployment is not None
    parts: list[RenderableType] = [Text(f"{scenario.model} on {layout(scenario.deployment)}")]
    if answer.chance is not None:
        spread = ", ".join(f"{name} {value:.3f}" for name, value in answer.costs.items())
        parts.append(
            Text(
                f"The limits hold in {answer.chance:.0%} of {answer.samples} samples; USD/Mtok {spread or '-'}.",
                style="bold",
            )
        )
    table = simple_table(
        "Input", "range", "USD/Mtok\nlow", "high", "inside\nlow", "high", "Sobol, cost\nfirst", "total",
        "Sobol, inside\nfirst", "total",
    )  # fmt: skip
    of_cost = {index.name: index for index in answer.cost_indices}
    of_share = {index.name: index for index in answer.attainment_indices}
    for swing in answer.swings:
        table.add_row(
            swing.name,
            f"x {swing.low:g} to {swing.high:g}",
            number(swing.cost_low, 3),
            number(swing.cost_high, 3),
            f"{swing.attainment_low:.0%}",
            f"{swing.attainment_high:.0%}",
            *_cells(of_cost.get(swing.name)),
            *_cells(of_share.get(swing.name)),
        )
    said = (
        f"As it is: {number(answer.cost, 3)} USD/Mtok, {answer.attainment:.0%} of the requests inside the limits.\n"
        "Left: one input at an end of its range, the others as they are. Right: share of the variance that the input "
        "brings alone, and with interactions, with 90% intervals; of the inputs that matter most.\n"
        f"Ranges are assumed; --vary INPUT=LOW:HIGH sets them. {cost_note(scenario)}"
    )
    return Group(*parts, table, Text(said, style="dim"))


def _cells(index: SobolIndex | None) -> tuple[str, str]:
    if index is None:
        return "", ""
    return (
        f"{index.first:.2f}\n{index.first_low:.2f}-{index.first_high:.2f}",
        f"{index.total:.2f}\n{index.total_low:.2f}-{index.total_high:.2f}",
    )

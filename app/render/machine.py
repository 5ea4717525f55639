"""A machine's fit and a validation, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from app.render.tables import US_PER_S, simple_table

if TYPE_CHECKING:
    from calibration.microbench.fit.profile_fit import MachineFit
    from calibration.microbench.measurement import BrokenLine, Measurements
    from calibration.replay.report import LoadReport

SHOWN_LINES = 5  # of those that are broken
SPEED_NOTE = (
    "Step sum: predicted over measured seconds of all steps; below 1 the machine ran slower than when measured.\n"
    "Core: share of a core that the engine's thread had during steps; other processes had the rest.\n"
    "At its speed now: all step times scaled so that the step sum is 1. What is then left is the model's error."
)


def fit_report(result: MachineFit, measured: Measurements) -> RenderableType:
    """Classes as they run within steps, the error of each on held-out shapes, and of whole steps."""
    efficiency = result.efficiency
    table = simple_table(
        "Op class",
        "Ops",
        "Matrix",
        "Memory",
        "Floor\nus",
        "Held-out\nerror",
        "Sigma",
        title=measured.machine.display_name,
    )
    for op_class in dict.fromkeys(point.op_class for point in result.points):
        rates = efficiency.classes[op_class]
        table.add_row(
            op_class.value,
            str(sum(point.op_class is op_class for point in result.points)),
            f"{rates.matrix_fraction:.2f}",
            f"{rates.memory_fraction:.2f}",
            f"{rates.latency_s * US_PER_S:.1f}",
            f"{efficiency.held_out_error[op_class.value]:.0%}",
            f"{rates.residual_sigma:.2f}",
        )
    said = [
        f"Whole steps: median error {result.step_error:.1%}, each half predicted from the other; "
        f"sum of predicted over sum of measured {result.step_sum_ratio:.2f}."
    ]
    if result.depth is not None:
        fewer = ", ".join(map(str, result.depth.fitted_on))
        said.append(
            f"Steps of {result.depth.layers} layers predicted from those of {fewer}: median error "
            f"{result.depth.median_error:.1%}, sum ratio {result.depth.sum_ratio:.2f}."
        )
    else:
        said.append("Fewer layers for more: not checked, which takes whole steps of several depths.")
    said += broken_lines(measured.broken)
    skipped = [row for row in measured.rows if row.status != "ok"]
    said += [f"Without a figure ({row.status}): {row.key}." for row in skipped]
    said += [f"Thrown out ({rule}): {key}." for key, rule in result.rejected]
    return Group(table, Text("\n".join(said)))


def broken_lines(broken: Sequence[BrokenLine]) -> list[str]:
    """A sentence a line, and how many more there are."""
    said = [f"{str(line)[0].upper()}{str(line)[1:]}." for line in broken[:SHOWN_LINES]]
    more = len(broken) - SHOWN_LINES
    return [*said, f"{more} more lines left out."] if more > 0 else said


def validation_table(reports: Sequence[LoadReport]) -> RenderableType:
    """Predicted over measured, by form and load; medians of absolute errors below, once at the machine's speed now."""
    from calibration.replay.report import METRICS, median_errors

    headings = [metric.replace(" ", "\n") for metric in METRICS]
    table = simple_table("Form", "Load", *headings, "Step\nsum", "Core", title="Predicted / measured")
    for report in reports:
        ratios = [f"{1 + report.error(metric):.2f}" for metric in METRICS]
        core = "-" if report.core_share is None else f"{report.core_share:.0%}"
        table.add_row(report.form, f"{report.load:g}", *ratios, f"{report.step_sum_ratio:.2f}", core)
    for form in dict.fromkeys(report.form for report in reports):
        mine = [report for report in reports if report.form == form]
        for label, at_speed in (("median error", False), ("at its speed now", True)):
            errors = median_errors(mine, at_speed)
            table.add_row(f"{form}: {label}", "", *(f"{errors[m]:.0%}" for m in METRICS), "", "")
    return Group(table, Text(SPEED_NOTE, style="dim"))

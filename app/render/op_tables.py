"""A calibration as tables: fitted classes, errors by op family, and what was thrown out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table

from app.render.tables import US_PER_S

if TYPE_CHECKING:
    from calibration.op_tables.fit_tables import Calibration


def calibration_report(result: Calibration) -> Group:
    parts: list[RenderableType] = [_classes(result), _errors(result)]
    if result.rejected:
        parts.append(_rejected(result))
    return Group(*parts)


def _classes(result: Calibration) -> Table:
    efficiency = result.efficiency
    table = Table(title=f"{efficiency.stack} on {efficiency.accelerator}: fractions of data-sheet peak")
    table.add_column("op class")
    for heading in ("matrix", "HBM", "link", "floor, us", "exponent", "sigma"):
        table.add_column(heading, justify="right")
    table.add_column("from")
    for op_class, rates in efficiency.classes.items():
        matrix, memory = (
            " ".join(f"{kernel or 'rest'} {value:.2f}" for kernel, value in by.items())
            for by in (rates.matrix_fraction_by, rates.memory_fraction_by)
        )
        table.add_row(
            op_class.value,
            matrix or f"{rates.matrix_fraction:.2f}",
            memory or f"{rates.memory_fraction:.2f}",
            f"{rates.network_fraction:.2f}",
            f"{rates.latency_s * US_PER_S:.1f}",
            f"{rates.exponent:.1f}",
            f"{rates.residual_sigma:.2f}",
            "assumed" if rates.assumed else "measured",
        )
    return table


def _errors(result: Calibration) -> Table:
    table = Table(title="Median error by op family, each row predicted by a fit that did not see it")
    for heading in ("family", "decides"):
        table.add_column(heading)
    for heading in ("rows", "not used", "in sample", "held out", "bias"):
        table.add_column(heading, justify="right")
    for error in result.errors:
        table.add_row(
            error.family,
            error.op_class,
            str(error.rows),
            str(result.left_out.get(error.family, 0)),
            f"{error.in_sample:.1%}",
            f"{error.held_out:.1%}",
            f"{error.bias:+.1%}",
        )
    return table


def _rejected(result: Calibration) -> Table:
    table = Table(title="Thrown out by physics gates")
    table.add_column("family")
    table.add_column("rule")
    table.add_column("rows", justify="right")
    table.add_column("detail")
    for one in result.rejected:
        table.add_row(one.family, one.rule, str(one.rows), one.detail)
    return table

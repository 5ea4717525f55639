"""Validation as tables and as a parity plot."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rich.console import Group, RenderableType
from rich.table import Table

from app.render.tables import simple_table

if TYPE_CHECKING:
    from calibration.serving.scores import ValidationReport

LISTED = ("tpot_ms", "total_tok_s_per_gpu", "ttft_ms")
PLOTTED = {"tpot_ms": "TPOT, ms", "total_tok_s_per_gpu": "tokens/s per GPU", "ttft_ms": "TTFT, ms"}
TITLES = {  # of metrics in tables
    "total_tok_s_per_gpu": "total tok/s per GPU",
    "output_tok_s_per_gpu": "output tok/s per GPU",
    "input_tok_s_per_gpu": "input tok/s per GPU",
    "tok_s_per_user": "tok/s per user",
    "tpot_ms": "TPOT",
    "ttft_ms": "TTFT",
}


def validation_report(answer: ValidationReport) -> Group:
    parts: list[RenderableType] = [_overall(answer), _groups(answer)]
    if answer.unpredicted:
        parts.append(_unpredicted(answer))
    return Group(*parts)


def _overall(answer: ValidationReport) -> Table:
    share = f"{answer.coverage_of_points:.1%}"
    title = f"{answer.predicted} of {answer.points} points predicted ({share})"
    headings = ("n", "median\nerror", "mean\nerror", "bias", "inside\np10-p90")
    table = simple_table("metric", *headings, title=title, tight=True)
    for metric, found in answer.overall.items():
        table.add_row(
            TITLES[metric],
            str(found.n),
            f"{found.median_ape:.1%}",
            f"{found.mape:.1%}",
            f"{found.bias:+.1%}",
            f"{found.coverage:.0%}",
        )
    return table


def _groups(answer: ValidationReport) -> Table:
    table = simple_table("group", "n", *(TITLES[metric] for metric in LISTED), title="Median error (bias) by group")
    for group in answer.groups:
        found = group.metrics
        cells = [f"{found[m].median_ape:.0%} ({found[m].bias:+.0%})" if m in found else "" for m in LISTED]
        mode = "disaggregated" if group.disaggregated else "colocated"
        count = max(one.n for one in found.values())
        table.add_row(f"{group.model}, {group.gpu}, {group.engine}, {mode}", str(count), *cells)
    return table


def _unpredicted(answer: ValidationReport) -> Table:
    table = simple_table("reason", "rows", "first id", title="Not predicted")
    reasons = Counter(one.reason for one in answer.unpredicted)
    first = {one.reason: one.id for one in reversed(answer.unpredicted)}
    for reason, count in reasons.most_common():
        table.add_row(reason, str(count), first[reason])
    return table


def parity_plot(lines: pd.DataFrame) -> go.Figure:
    """Predicted over measured, both axes logarithmic, one panel a metric; the line is equality."""
    shown = [m for m in PLOTTED if (lines["metric"] == m).any()]
    figure = make_subplots(rows=1, cols=max(1, len(shown)), subplot_titles=[PLOTTED[m] for m in shown])
    for column, metric in enumerate(shown, 1):
        part = lines[lines["metric"] == metric]
        for engine, points in part.groupby("engine"):
            figure.add_trace(
                go.Scattergl(
                    x=points["measured"],
                    y=points["predicted"],
                    mode="markers",
                    name=str(engine),
                    legendgroup=str(engine),
                    showlegend=column == 1,
                    marker={"size": 5, "opacity": 0.6},
                    text=points["id"] + " " + points["model"] + " " + points["gpu"],
                    hovertemplate="%{text}<br>measured %{x:.4g}, predicted %{y:.4g}<extra></extra>",
                ),
                row=1,
                col=column,
            )
        ends = [part["measured"].min(), part["measured"].max()]
        figure.add_trace(
            go.Scatter(x=ends, y=ends, mode="lines", line={"color": "gray"}, showlegend=False), row=1, col=column
        )
    figure.update_xaxes(type="log", title="measured")
    figure.update_yaxes(type="log", title="predicted")
    figure.update_layout(title="Predicted and measured serving points", legend_title="engine")
    return figure

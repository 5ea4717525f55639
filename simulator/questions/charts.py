"""Figures of the questions: each a pure function of a table."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.colors import qualitative
from plotly.subplots import make_subplots

from simulator.questions.published import PublishedPoint

HEIGHT_PX = 420
SPEED_TITLE = "Speed for one user [output tok/s]"
RATE_TITLE = "Input + output tok/s per GPU"
MARGIN = {"l": 10, "r": 10, "t": 30, "b": 10}


def capacity_chart(points: pd.DataFrame, rate: float, percentile: float) -> go.Figure:
    """Share of the requests inside the limits against the rate. points: columns of `RatePoint`; rate: the capacity."""
    figure = go.Figure()
    figure.add_scatter(
        x=points["rate"],
        y=100 * points["attainment"],
        mode="lines+markers",
        marker={"symbol": ["circle" if held else "x" for held in points["holds"]]},
        hovertemplate="%{x:.3g} requests/s: %{y:.1f}% inside the limits<extra></extra>",
    )
    figure.add_hline(percentile, line={"dash": "dash", "color": "grey"})
    figure.add_vline(rate, line={"dash": "dash", "color": "grey"}, annotation_text=f"{rate:.3g} requests/s")
    figure.update_xaxes(title="Requests per second")
    figure.update_yaxes(title="Requests inside every limit [%]", rangemode="tozero")
    figure.update_layout(height=HEIGHT_PX, margin=MARGIN)
    return figure


def comparison_chart(
    points: pd.DataFrame, waterfalls: Sequence[Mapping[str, Any]], published: Sequence[PublishedPoint]
) -> go.Figure:
    """Speed for one user against throughput by side, published points laid over; below it each waterfall as factors.

    points: columns of `CurvePoint`; waterfalls: records of `Waterfall`.
    """
    figure = make_subplots(
        rows=1 + len(waterfalls),
        subplot_titles=["", *(f"{fall['side']} over {fall['base']}, as factors" for fall in waterfalls)],
    )
    for side, mine in points.groupby("side", sort=False):
        front = _front(mine)
        figure.add_scatter(
            x=front["tok_s_per_user"],
            y=front["total_tok_s_per_gpu"],
            mode="lines+markers",
            name=str(side),
            customdata=front[["layout", "clients"]],
            hovertemplate="%{customdata[0]}, %{customdata[1]} clients<br>%{x:.1f} tok/s/user<br>%{y:,.0f} tok/s/GPU",
            row=1,
            col=1,
        )
    _lay_over(figure, published, row=1, col=1)
    figure.update_xaxes(title=SPEED_TITLE, type="log", row=1, col=1)
    figure.update_yaxes(title=RATE_TITLE, type="log", row=1, col=1)
    for row, fall in enumerate(waterfalls, 2):
        logs = {part: math.log10(factor) for part, factor in fall["factors"].items()}
        figure.add_waterfall(
            x=[*logs, "in all"],
            y=[*logs.values(), None],
            measure=["relative"] * len(logs) + ["total"],
            text=[f"x {factor:.2f}" for factor in fall["factors"].values()] + [f"x {10 ** sum(logs.values()):.2f}"],
            showlegend=False,
            row=row,
            col=1,
        )
        figure.update_yaxes(title="log10 of the factor", row=row, col=1)
    figure.update_layout(height=HEIGHT_PX * (1 + len(waterfalls)), margin=MARGIN)
    return figure


def frontier_chart(points: pd.DataFrame, published: Sequence[PublishedPoint]) -> go.Figure:
    """Speed for one user against throughput, and against cost. points: columns of `FrontierPoint`."""
    figure = make_subplots(cols=2)
    colours = dict(zip(points["name"].unique(), itertools.cycle(qualitative.D3), strict=False))
    for (name, form), mine in points.groupby(["name", "form"], sort=False):
        for column, key in enumerate(("total_tok_s_per_gpu", "usd_per_mtok_blended"), 1):
            for verified in (False, True):
                some = mine[mine["verified"] == verified].dropna(subset=[key]).sort_values("tok_s_per_user")
                figure.add_scatter(
                    x=some["tok_s_per_user"],
                    y=some[key],
                    mode="markers" if verified else "lines",
                    marker={"symbol": "circle", "size": 8, "color": colours[name]},
                    line={"color": colours[name], "dash": "solid" if form == "disaggregated" else "dot"},
                    name=f"{name}, {form}" + (", simulated" if verified else ""),
                    showlegend=column == 1 and not some.empty,
                    row=1,
                    col=column,
                )
    _lay_over(figure, published, row=1, col=1)
    figure.update_xaxes(title=SPEED_TITLE, type="log")
    figure.update_yaxes(title=RATE_TITLE, type="log", row=1, col=1)
    figure.update_yaxes(title="USD per million tokens, blended", type="log", row=1, col=2)
    figure.update_layout(height=HEIGHT_PX, margin=MARGIN)
    return figure


def _front(points: pd.DataFrame) -> pd.DataFrame:
    """Rows that no other beats in both speeds."""
    order = points.sort_values(["tok_s_per_user", "total_tok_s_per_gpu"], ascending=False)
    return order[order["total_tok_s_per_gpu"] > order["total_tok_s_per_gpu"].cummax().shift(fill_value=0)]


def _lay_over(figure: go.Figure, published: Sequence[PublishedPoint], row: int, col: int) -> None:
    for gpu in sorted({point.gpu for point in published}):
        mine = [point for point in published if point.gpu == gpu]
        figure.add_scatter(
            x=[point.tok_s_per_user for point in mine],
            y=[point.total_tok_s_per_gpu for point in mine],
            mode="markers",
            marker={"symbol": "x-thin-open", "size": 7},
            name=f"{gpu}, published",
            text=[f"{point.id} {point.engine} {point.form} {point.drafts}" for point in mine],
            row=row,
            col=col,
        )


def forecast_chart(months: pd.DataFrame, convention: str) -> go.Figure:
    """Accelerators that are there, and money by convention. months: as of `Forecast.to_frame`."""
    figure = make_subplots(cols=2)
    figure.add_scatter(x=months["month"], y=months["gpus"], name="accelerators", line={"shape": "hv"}, row=1, col=1)
    figure.add_scatter(
        x=months["month"],
        y=months["gpus_needed"],
        name="without spares",
        line={"shape": "hv", "dash": "dot"},
        row=1,
        col=1,
    )
    for column in months.columns[months.columns.str.startswith("usd_") & ~months.columns.str.startswith("usd_per")]:
        figure.add_scatter(
            x=months["month"],
            y=months[column],
            name=column.removeprefix("usd_"),
            line={"width": 3 if column == f"usd_{convention}" else 1},
            row=1,
            col=2,
        )
    if months["api_usd"].notna().any():
        figure.add_scatter(x=months["month"], y=months["api_usd"], name="API", line={"dash": "dash"}, row=1, col=2)
    figure.update_yaxes(title="Accelerators", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title="USD a month", rangemode="tozero", row=1, col=2)
    figure.update_layout(height=HEIGHT_PX, margin=MARGIN)
    return figure


def sensitivity_chart(inputs: pd.DataFrame, cost: float | None) -> go.Figure:
    """Tornado of cost, and total Sobol indices of cost and attainment. inputs: as of `Sensitivity.to_frame`."""
    figure = make_subplots(cols=2, shared_yaxes=True)
    rows = inputs[::-1]
    base = cost or 0.0
    for column, end in (("cost_low", "low"), ("cost_high", "high")):
        figure.add_bar(
            x=rows[column] - base,
            base=base,
            y=rows["name"],
            orientation="h",
            name=f"{end} end",
            customdata=rows[[end]],
            hovertemplate="%{y} x %{customdata[0]}: %{x:.3g} USD/Mtok",
            row=1,
            col=1,
        )
    for kind in ("cost", "attainment"):
        figure.add_bar(
            x=rows[f"{kind}_sobol_total"], y=rows["name"], orientation="h", name=f"total index, {kind}", row=1, col=2
        )
    figure.update_xaxes(title="USD per million tokens", row=1, col=1)
    figure.update_xaxes(title="Share of the variance", row=1, col=2)
    figure.update_layout(height=HEIGHT_PX, margin=MARGIN, barmode="overlay")
    return figure

"""Figures of a plan. Each is a pure function of a DataFrame."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go
from plotly.colors import qualitative
from plotly.subplots import make_subplots

from app.render.tables import MS_PER_S

FORM_DASH = {"disaggregated": "solid", "colocated": "dot"}
FORM_MARKER = {"disaggregated": "circle", "colocated": "diamond-open"}
LOG_TICKS = [digit * 10.0**power for power in range(-4, 4) for digit in (1, 2, 5)]  # [USD]
FRONT_PX = 420  # height [pixels]
BANDS_PX = 320  # height [pixels]


def rate_front(frontier: pd.DataFrame, tpot_limit_s: float | None) -> go.Figure:
    """Throughput per accelerator against speed for one user; up and right is better.

    frontier: columns of `app.render.plan_frames.FRONTIER_COLUMNS`.
    """
    figure = _front(frontier, "total_tok_s_per_gpu", "%{y:,.0f} tok/s/GPU")
    figure.update_yaxes(title="Throughput [input + output tok/s per GPU]", rangemode="tozero")
    return _with_limit(figure, tpot_limit_s)


def cost_front(frontier: pd.DataFrame, tpot_limit_s: float | None) -> go.Figure:
    """Cost of a token against speed for one user; down and right is better."""
    figure = _front(frontier, "usd_per_mtok_blended", "%{y:,.3f} USD/Mtok")
    figure.update_yaxes(
        title="Cost [USD per million tokens, blended]",
        type="log",
        tickvals=LOG_TICKS,
        ticktext=[f"{v:g}" for v in LOG_TICKS],
    )
    return _with_limit(figure, tpot_limit_s)


BAND_TITLES = {"ttft_s": "TTFT [s]", "tpot_s": "TPOT [ms]", "usd_per_mtok_blended": "USD per million tokens"}


def design_bands(bands: pd.DataFrame, limits: Mapping[str, float | None]) -> go.Figure:
    """Predictions of ranked designs with p10-p90 ranges, one panel a figure; limits by figure, in its unit.

    bands: columns of `app.render.plan_frames.bands_frame`.
    """
    figure = make_subplots(cols=len(BAND_TITLES), subplot_titles=list(BAND_TITLES.values()))
    for column, key in enumerate(BAND_TITLES, 1):
        rows = bands[bands["figure"] == key]
        figure.add_scatter(
            x=rows["rank"],
            y=rows["value"],
            mode="markers",
            name=BAND_TITLES[key],
            marker={"color": _palette()[0]},
            error_y={"array": rows["p90"] - rows["value"], "arrayminus": rows["value"] - rows["p10"]},
            customdata=rows[["p10", "p90"]],
            hovertemplate="#%{x}: %{y:.3g}, p10-p90 %{customdata[0]:.3g}-%{customdata[1]:.3g}<extra></extra>",
            row=1,
            col=column,
        )
        if limit := limits.get(key):
            figure.add_hline(limit, line={"dash": "dash", "color": "grey"}, row=1, col=column)
    figure.update_yaxes(type="log")
    figure.update_xaxes(title="design #", dtick=1)
    figure.update_layout(height=BANDS_PX, margin={"l": 10, "r": 10, "t": 30, "b": 10}, showlegend=False)
    return figure


def _front(frontier: pd.DataFrame, y: str, hover: str) -> go.Figure:
    """One line per accelerator (colour, the same in every chart) and form (dash); points without y left out."""
    colours = dict(zip(sorted(frontier["gpu"].unique()), _palette(), strict=False))
    figure = go.Figure()
    for (gpu, form), points in frontier.dropna(subset=[y]).groupby(["gpu", "form"], sort=True):
        line = points.sort_values("tok_s_per_user")
        figure.add_scatter(
            x=line["tok_s_per_user"],
            y=line[y],
            mode="lines+markers",
            name=f"{gpu}, {form}",
            line={"color": colours[str(gpu)], "dash": FORM_DASH[str(form)]},
            marker={"symbol": FORM_MARKER[str(form)], "size": 6},
            customdata=line[["cut", "sequences_per_instance"]],
            hovertemplate="%{customdata[0]}, batch %{customdata[1]}<br>%{x:.1f} tok/s/user<br>"
            + hover
            + "<extra>%{fullData.name}</extra>",
        )
    figure.update_xaxes(title="Speed for one user [output tok/s]", rangemode="tozero")
    figure.update_layout(
        height=FRONT_PX,
        margin={"l": 10, "r": 10, "t": 30, "b": 10},
        legend={"orientation": "h", "yanchor": "top", "y": -0.22, "x": 0},
        hovermode="closest",
    )
    return figure


def _palette() -> list[str]:
    """More colours than the catalogue has accelerators."""
    return [*qualitative.D3, *qualitative.Dark24]


def _with_limit(figure: go.Figure, tpot_limit_s: float | None) -> go.Figure:
    """Mark the slowest speed that the TPOT limit allows."""
    if tpot_limit_s:
        figure.add_vline(
            x=1 / tpot_limit_s,
            line={"dash": "dash", "color": "grey"},
            annotation={"text": f"TPOT limit {tpot_limit_s * MS_PER_S:g} ms", "font": {"color": "grey"}},
        )
    return figure

"""Figures are pure functions of a DataFrame."""

from __future__ import annotations

import pandas as pd
import pytest

from app.render.plan_charts import cost_front, design_bands, rate_front
from app.render.plan_frames import FRONTIER_COLUMNS


@pytest.fixture
def frontier() -> pd.DataFrame:
    rows = [
        ("colocated", "h200_sxm", "TP8", 4, 50.0, 900.0, 0.5),
        ("colocated", "h200_sxm", "TP8", 2, 80.0, 600.0, 0.8),
        ("disaggregated", "h200_sxm", "TP8 EP8", 8, 60.0, 1200.0, 0.4),
        ("disaggregated", "mi455x", "TP8 EP8", 8, 70.0, 2000.0, None),
    ]
    return pd.DataFrame(rows, columns=list(FRONTIER_COLUMNS))


def test_one_line_per_accelerator_and_form_in_order_of_speed(frontier: pd.DataFrame) -> None:
    figure = rate_front(frontier, None)
    lines = {trace.name: (list(trace.x), list(trace.y)) for trace in figure.data}
    assert lines == {
        "h200_sxm, colocated": ([50.0, 80.0], [900.0, 600.0]),
        "h200_sxm, disaggregated": ([60.0], [1200.0]),
        "mi455x, disaggregated": ([70.0], [2000.0]),
    }
    colours = {trace.name.split(",")[0]: trace.line.color for trace in figure.data}
    assert len(set(colours.values())) == 2


def test_parts_without_a_price_are_left_out_of_the_cost_chart_and_keep_no_empty_line(
    frontier: pd.DataFrame,
) -> None:
    assert {trace.name for trace in cost_front(frontier, None).data} == {
        "h200_sxm, colocated",
        "h200_sxm, disaggregated",
    }


def test_an_accelerator_has_the_same_colour_in_both_charts(frontier: pd.DataFrame) -> None:
    frontier.loc[frontier["gpu"] == "h200_sxm", "usd_per_mtok_blended"] = None
    frontier.loc[frontier["gpu"] == "mi455x", "usd_per_mtok_blended"] = 0.2
    left = {trace.name: trace.line.color for trace in rate_front(frontier, None).data}
    right = {trace.name: trace.line.color for trace in cost_front(frontier, None).data}
    assert right == {"mi455x, disaggregated": left["mi455x, disaggregated"]}


@pytest.mark.parametrize("chart", [rate_front, cost_front])
def test_axes_say_quantity_and_unit(chart, frontier: pd.DataFrame) -> None:  # type: ignore[no-untyped-def]
    layout = chart(frontier, None).layout
    assert layout.xaxis.title.text == "Speed for one user [output tok/s]"
    assert "[" in layout.yaxis.title.text


def test_the_limit_is_marked_at_its_speed(frontier: pd.DataFrame) -> None:
    (line,) = rate_front(frontier, 0.05).layout.shapes
    assert line.x0 == line.x1 == 20.0
    assert not rate_front(frontier, None).layout.shapes


@pytest.mark.parametrize("chart", [rate_front, cost_front])
def test_no_points_give_an_empty_figure(chart, frontier: pd.DataFrame) -> None:  # type: ignore[no-untyped-def]
    assert not chart(frontier.iloc[:0], 0.05).data


def test_error_bars_reach_from_p10_to_p90_and_limits_are_lines() -> None:
    rows = [(1, "ttft_s", 1.0, 0.6, 1.2, 3.0), (2, "ttft_s", 0.5, 0.3, 0.6, 1.5), (1, "tpot_s", 40.0, 30.0, 42.0, 60.0)]
    bands = pd.DataFrame(rows, columns=["rank", "figure", "value", "p10", "p50", "p90"])
    figure = design_bands(bands, {"ttft_s": 2.0, "tpot_s": None})
    bars = figure.data[0]
    assert list(bars.y) == [1.0, 0.5]
    assert list(bars.error_y.array) == [2.0, 1.0]
    assert list(bars.error_y.arrayminus) == pytest.approx([0.4, 0.2])
    (line,) = figure.layout.shapes
    assert line.y0 == line.y1 == 2.0

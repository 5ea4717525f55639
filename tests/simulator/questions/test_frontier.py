"""Curves of accelerators: simulated points lie where estimates say, and the cut that a name shows is the cut."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from simulator import frontier
from simulator.questions.frontier import parallelism_of
from simulator.scenario import Scenario, ScenarioError
from simulator.sweep.executor import SweepExecutor

Make = Callable[..., Scenario]


def test_simulated_points_lie_near_their_estimates(small: Make, serial: SweepExecutor) -> None:
    """Of colocated serving, whose points are of one instance in both; the estimate leaves waves and bunching out."""
    scenario = small(search={"gpus": ["h200"], "forms": ["colocated"], "stacks": ["default"]})
    found = frontier(scenario, verified=3, executor=serial)
    simulated = [point for point in found.points if point.verified]
    assert len(simulated) == 3
    for point in simulated:
        twin = next(
            p for p in found.points if not p.verified and (p.layout, p.sequences) == (point.layout, point.sequences)
        )
        assert point.total_tok_s_per_gpu == pytest.approx(twin.total_tok_s_per_gpu, rel=0.45)
        assert point.usd_per_mtok_blended == pytest.approx(
            1.59 / 3600 / point.total_tok_s_per_gpu * 1e6, rel=1e-6
        )  # a colocated pool of one price: USD/h over tok/s


def test_each_stack_has_its_curve(small: Make, serial: SweepExecutor) -> None:
    found = frontier(small(), [("h200", "vllm"), ("h200", "sglang")], verified=0, executor=serial)
    assert {point.name for point in found.points} == {"h200_sxm@vllm", "h200_sxm@sglang"}
    assert not any(point.verified for point in found.points)
    assert found.figure().data
    assert len(found.to_frame()) == len(found.points)


def test_a_model_that_fits_nowhere_is_said(small: Make, serial: SweepExecutor) -> None:
    scenario = small(model="deepseek-v4-pro", deployment=None, search={"gpus": ["h200"], "max_gpus": 2})
    with pytest.raises(ScenarioError, match=r"h200_sxm@sglang: .*at least 8 h200_sxm would do"):
        frontier(scenario, [("h200", None)], executor=serial)


def test_a_cut_is_read_from_its_name() -> None:
    cut = parallelism_of("TP2 DP4 EP8")
    assert (cut.tp, cut.dp, cut.ep, str(cut)) == (2, 4, 8, "TP2 DP4 EP8")
    assert parallelism_of("TP1").gpus == 1

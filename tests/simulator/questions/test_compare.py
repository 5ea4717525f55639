"""Sides at equal speed: a side against itself, known differences, and parts that multiply to the whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hw_profiles.catalog import load
from simulator import compare
from simulator.questions.curves import Curve, CurvePoint
from simulator.questions.hybrids import RESPECTS, hybrid
from simulator.questions.published import published_points
from simulator.questions.sides import Side, accelerator_side
from simulator.questions.trial import Trial, measure, with_clients
from simulator.questions.waterfall import PARTS, shapley, subsets
from simulator.scenario import Deployment, Pool, Scenario, ScenarioError
from simulator.sweep.executor import SweepExecutor

Make = Callable[..., Scenario]


def colocated(gpu: str, stack: str = "default", **keys: int) -> Deployment:
    return Deployment(colocated=Pool(gpu=gpu, stack=stack, max_sequences=64, **keys))


def test_a_side_against_itself_is_one(small: Make, serial: SweepExecutor) -> None:
    side = Side("h200", (colocated("h200"),))
    found = compare(small(), (side, side), executor=serial)
    first, second = found.sides
    assert second == "h200 (2)"
    assert found.ratio(second) == 1.0
    assert found.ratio(second, "usd_per_mtok_blended") == 1.0
    assert found.ratio(second, "joule_per_token") == 1.0
    assert all(level.ratio[second] == 1.0 for level in found.levels if level.ratio[second] is not None)
    (fall,) = found.waterfalls
    assert fall.factors == pytest.approx(dict.fromkeys(PARTS, 1.0))
    assert fall.throughput == 1.0
    assert first in found.peaks


def test_factors_multiply_to_the_whole(small: Make, serial: SweepExecutor) -> None:
    sides = (Side("h200", (colocated("h200", "vllm"),)), Side("b200", (colocated("b200", "sglang"),)))
    found = compare(small(), sides, tok_s_per_user=60.0, executor=serial)
    (fall,) = found.waterfalls
    without_price = math.prod(factor for part, factor in fall.factors.items() if part != "price")
    assert without_price == pytest.approx(fall.throughput)
    assert fall.throughput == pytest.approx(found.ratio("b200"))
    assert fall.value == pytest.approx(1 / (found.ratio("b200", "usd_per_mtok_blended") or 0), rel=1e-6)
    assert fall.factors["memory"] > 1  # 8 against 4.8 TB/s


def test_an_accelerator_that_costs_twice_differs_in_price_alone(
    small: Make, serial: SweepExecutor, tmp_path: Path
) -> None:
    text = Path("hw_profiles/data/accelerators/h200_sxm.toml").read_text(encoding="utf-8")
    price = 'neocloud_ownership = { value = 3.18, unit = "USD/h", source = "twice", accessed = 2026-12-01 }'
    dear = tmp_path / "dear.toml"
    dear.write_text(text.replace('name = "h200_sxm"', 'name = "dear"', 1) + f"\n[prices]\n{price}\n", encoding="utf-8")
    sides = (Side("h200", (colocated("h200"),)), Side("dear", (colocated(str(dear)),)))
    (fall,) = compare(small(), sides, executor=serial).waterfalls
    assert fall.throughput == 1.0
    assert fall.factors["price"] == pytest.approx(0.5)
    assert fall.value == pytest.approx(0.5)


def test_a_hybrid_in_all_respects_is_the_other_accelerator(small: Make) -> None:
    base, other = load("h200", "vllm"), load("b200", "sglang")
    scenario = with_clients(small(), 16)
    key = "h200@vllm"
    placed = scenario.model_copy(update={"deployment": colocated("h200", "vllm")})
    swapped = measure(Trial(placed, 0, {key: hybrid(base, other, RESPECTS)}))
    real = measure(Trial(scenario.model_copy(update={"deployment": colocated("b200", "sglang")}), 0))
    assert swapped.total_tok_s_per_gpu == pytest.approx(real.total_tok_s_per_gpu, rel=1e-9)
    unchanged = measure(Trial(placed, 0, {key: hybrid(base, other, ())}))
    assert unchanged.total_tok_s_per_gpu == measure(Trial(placed, 0)).total_tok_s_per_gpu


def test_shapley_values_add_up_and_are_each_alone_where_players_do_not_meet() -> None:
    worth = {"compute": 1.0, "memory": 2.0, "network": 0.5, "host": 0.0}
    gains = {coalition: sum(worth[player] for player in coalition) for coalition in subsets(tuple(worth))}  # type: ignore[arg-type]
    assert shapley(gains) == pytest.approx(worth)
    assert len(gains) == 2 ** len(worth)


def point(clients: int, speed: float, rate: float) -> CurvePoint:
    return CurvePoint("a", 0, "", 1, clients, speed, rate, rate, None, 1.0, None, None, None, None, None)


def test_between_two_points_a_curve_is_straight_in_logarithms() -> None:
    curve = Curve((point(1, 100.0, 1.0), point(4, 25.0, 4.0)))
    ((rate, design),) = curve.designs_at(50.0)
    assert (rate, design) == (pytest.approx(2.0), 0)
    assert curve.designs_at(200.0) == []
    assert curve.designs_at(10.0) == [(4.0, 0)]
    assert curve.bracket(0, 50.0) == (1, 4)
    assert [p.clients for p in curve.front()] == [4, 1]
    assert [p.clients for p in Curve((*curve.points, point(2, 20.0, 3.0))).front()] == [4, 1]


def test_the_point_at_a_speed_keeps_it(small: Make, serial: SweepExecutor) -> None:
    sides = (Side("h200", (colocated("h200"),)), Side("b200", (colocated("b200"),)))
    found = compare(small(), sides, tok_s_per_user=80.0, executor=serial)
    for name, best in found.equal.items():
        assert best is not None, name
        assert best.tok_s_per_user >= 80.0
        more = with_clients(small(), round(best.clients * 1.3) + 1).model_copy(update={"deployment": colocated(name)})
        assert (measure(Trial(more, 0)).tok_s_per_user or 0) < 80.0


def test_published_rows_of_the_model_and_lengths_stand_beside(small: Make, tmp_path: Path) -> None:
    file = tmp_path / "points.csv"
    file.write_text(
        "id,model,gpu,engine,disaggregated,isl,osl,tok_s_per_user,tpot_ms,total_tok_s_per_gpu\n"
        "a,Qwen3-30B-A3B,H200,vLLM,0.0,1000,60,50,,900\n"
        "b,Qwen3-30B-A3B,H200,vLLM,1.0,1000,60,,10,800\n"
        "c,Qwen3-30B-A3B,H200,vLLM,0.0,8000,60,50,,700\n"
        "d,DeepSeek-V3,H200,vLLM,0.0,1000,60,50,,600\n",
        encoding="utf-8",
    )
    found = published_points(file, small())
    assert [(p.id, p.gpu, p.form, p.tok_s_per_user) for p in found] == [
        ("a", "h200_sxm", "colocated", 50.0),
        ("b", "h200_sxm", "disaggregated", 100.0),
    ]
    file.write_text("id,model\n", encoding="utf-8")
    with pytest.raises(ScenarioError, match="has no column gpu, isl, osl, total_tok_s_per_gpu"):
        published_points(file, small())


def test_an_accelerator_is_served_by_what_the_planner_finds(small: Make) -> None:
    side = accelerator_side(small(), "h200", "vllm", "disaggregated")
    assert side.name == "h200_sxm@vllm"
    assert all(deployment.prefill is not None for deployment in side.deployments)
    assert {group.stack for deployment in side.deployments for group in deployment.groups} == {"vllm"}


def test_one_side_is_no_comparison(small: Make, serial: SweepExecutor) -> None:
    with pytest.raises(ScenarioError, match="1 sides cannot be compared; give 2 to 4"):
        compare(small(), (Side("h200", (colocated("h200"),)),), executor=serial)


def test_interrupted_it_keeps_the_sides_that_are_done(small: Make, serial: SweepExecutor) -> None:
    def stop(stage: str, done: int, of: int) -> None:
        if "b200" in stage:
            raise KeyboardInterrupt

    sides = (Side("h200", (colocated("h200"),)), Side("b200", (colocated("b200"),)))
    found = compare(small(), sides, executor=serial, progress=stop)
    assert not found.complete
    assert list(found.peaks) == ["h200"]
    assert replace(found, complete=True).figure().data

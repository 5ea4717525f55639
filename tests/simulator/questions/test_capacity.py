"""The most traffic of a cluster, against trying every rate, and against what is known of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from simulator import capacity, plan
from simulator.questions.capacity import TOLERANCE, _RateSearch, holds
from simulator.questions.trial import Trial, at_rate, measure
from simulator.scenario import Deployment, Scenario, ScenarioError
from simulator.sweep.executor import SweepExecutor

Make = Callable[..., Scenario]


def random_deployment(seed: int) -> dict[str, Any]:
    rng = random.Random(seed)

    def pool(**keys: Any) -> dict[str, Any]:
        return {
            "gpu": rng.choice(["h200", "b200", "h100"]),
            "tp": rng.choice([1, 2]),
            "instances": rng.choice([1, 2]),
            **keys,
        }

    if rng.random() < 0.5:
        return {"colocated": pool(batching=rng.choice(["chunked", "prefill_first"]))}
    return {"prefill": pool(), "decode": pool(max_sequences=rng.choice([32, 128]))}


@pytest.mark.parametrize("seed", range(10))
def test_capacity_is_where_brute_force_finds_it(small: Make, serial: SweepExecutor, seed: int) -> None:
    """Every rate on a ladder of 2% around the answer is played: those up to it hold, those from 2% above do not."""
    scenario = small(deployment=random_deployment(seed))
    found = capacity(scenario, replications=1, gains=False, executor=serial)
    search = _RateSearch(scenario, 1, 0.01, serial, lambda *_: None)

    def tried(rate: float) -> bool:
        at = at_rate(scenario, rate, search.lifetime_s)
        return holds(at, [measure(Trial(at, scenario.seed))])

    ladder = [found.rate * 1.02**step for step in range(-2, 4)]
    highest = max(rate for rate in ladder if tried(rate))
    assert highest == pytest.approx(found.rate, rel=0.021)


def test_what_a_plan_recommends_carries_what_it_was_planned_for(small: Make, serial: SweepExecutor) -> None:
    scenario = small(deployment=None)
    design = next(design for design in plan(scenario).designs if design.meets_slo and design.simulated)
    placed = scenario.model_copy(update={"deployment": design.deployment})
    found = capacity(placed, replications=2, gains=False, executor=serial)
    assert found.above is not None
    assert found.above >= 8.0  # the plan was checked in one run, which may lie at the edge
    assert found.headroom is not None
    assert found.headroom > -TOLERANCE


def test_twice_the_cluster_carries_about_twice_as_much(small: Make, serial: SweepExecutor) -> None:
    one = capacity(small(), replications=1, gains=False, executor=serial)
    pools = {"prefill": {"gpu": "h200", "instances": 2}, "decode": {"gpu": "h200", "instances": 2}}
    two = capacity(small(deployment=pools), replications=1, gains=False, executor=serial)
    assert 1.9 < two.rate / one.rate < 2.6  # larger pools wait less


def test_more_of_what_binds_brings_more_and_more_of_the_rest_nothing(small: Make, serial: SweepExecutor) -> None:
    pools = {"prefill": {"gpu": "h200", "instances": 1}, "decode": {"gpu": "h200", "instances": 6}}
    found = capacity(small(deployment=pools), replications=1, executor=serial)
    gains = {gain.pool: gain for gain in found.gains}
    assert found.binding is not None
    assert (found.binding.pool, found.binding.limit) == ("prefill", "ttft_s")
    assert gains["prefill"].rate > 1.8 * found.rate
    assert gains["prefill"].rate_per_gpu == pytest.approx(gains["prefill"].rate - found.rate)
    assert gains["decode"].rate < 1.02 * found.rate


def test_limits_that_no_rate_keeps_give_none(small: Make, serial: SweepExecutor) -> None:
    found = capacity(small(slo={"ttft_s": 1e-4}), replications=1, executor=serial)
    assert found.rate == 0
    assert not any(point.holds for point in found.points)


def test_without_limits_it_is_what_is_served(small: Make, serial: SweepExecutor) -> None:
    found = capacity(small(slo={}), replications=1, gains=False, executor=serial)
    best = found.best
    assert best is not None
    assert best.served_per_s > 0.92 * found.rate  # arrivals of one run scatter by 3%
    assert found.above is not None


def test_interrupted_it_keeps_what_it_has(small: Make, serial: SweepExecutor) -> None:
    def stop(stage: str, done: int, of: int) -> None:
        if done >= 2:
            raise KeyboardInterrupt

    found = capacity(small(), replications=1, executor=serial, progress=stop)
    assert not found.complete
    assert len(found.points) >= 2
    assert len(found.to_frame()) == len(found.points)


def test_a_closed_loop_has_no_rate(small: Make, serial: SweepExecutor) -> None:
    workload = {"kind": "closed_loop", "concurrency": 4, "requests": 40, "prompt": 100, "output": 10}
    with pytest.raises(ScenarioError, match="has no rate to change"):
        capacity(small(workload=workload), executor=serial)


def test_costs_of_kinds_add_up_to_the_hour(small: Make) -> None:
    """Prompts that share a prefix: computed, cached and output tokens pay for all accelerators."""
    workload = {
        "kind": "open_loop", "rate": 8.0, "requests": 400, "prompt": 1024, "output": 60,
        "shared_prefix": {"tokens": 512, "groups": 1},
    }  # fmt: skip
    deployment = {"prefill": {"gpu": "h200"}, "decode": {"gpu": "h200"}, "prefix_cache": {}}
    cost = measure(Trial(small(workload=workload, deployment=deployment), 0)).cost
    assert cost is not None
    assert cost.cached_tok_s == pytest.approx(cost.input_tok_s, rel=0.05)
    paid = (
        cost.usd_per_mtok_input * cost.input_tok_s
        + cost.usd_per_mtok_cached * cost.cached_tok_s
        + cost.usd_per_mtok_output * cost.output_tok_s
    )
    assert paid * 3600 / 1e6 == pytest.approx(cost.usd_per_hour)
    assert 0 < cost.usd_per_mtok_cached < 0.5 * cost.usd_per_mtok_input


def test_the_figure_shows_every_rate(small: Make, serial: SweepExecutor) -> None:
    found = capacity(small(), replications=1, gains=False, executor=serial)
    assert len(found.figure().data[0].x) == len(found.points)
    assert Deployment.model_validate(small().deployment).gpus == found.gpus

from typing import Any

import numpy as np
import pytest

from simulator.des.cluster import simulate
from simulator.des.replications import estimate, headline, mser5, replicate, seeds_of
from simulator.des.scenario import Scenario, ScenarioError, parse_scenario


def scenario(**load: Any) -> Scenario:
    base = {"kind": "open_loop", "rate": 3.0, "requests": 60, "prompt": 500, "output": 20}
    return parse_scenario(
        {
            "model": "qwen3-235b-a22b",
            "workload": base | load,
            "deployment": {"colocated": {"gpu": "h200_sxm", "tp": 8}},
        }
    )


def test_intervals_cover_the_true_mean_as_often_as_they_claim() -> None:
    rng = np.random.default_rng(0)
    covered = [
        abs(e.mean - 1.0) <= e.half_width for e in (estimate(rng.normal(1, 2, 5).tolist(), 0.9) for _ in range(4000))
    ]
    assert np.mean(covered) == pytest.approx(0.9, abs=0.02)


def test_mser_finds_where_a_transient_ends() -> None:
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 1, 3000)
    transient = np.where(np.arange(3000) < 400, 8.0 * (1 - np.arange(3000) / 400), 0.0)
    assert 250 <= mser5(noise + transient) <= 500
    assert mser5(noise) < 150
    assert mser5(np.ones(12)) == 0


def test_runs_are_independent_repeatable_and_begin_with_the_scenario_s_own() -> None:
    chosen = scenario()
    seen = replicate(chosen, runs=4)
    assert len(set(seen.seeds)) == 4
    assert seen.seeds == tuple(seeds_of(0, 4)) == tuple(seeds_of(0, 9)[:4])
    by_hand = [headline(simulate(chosen, seed=seed))["metrics.ttft_s.mean"] for seed in seen.seeds]
    assert len(set(by_hand)) == 4
    found = seen.estimates["metrics.ttft_s.mean"]
    assert found.mean == pytest.approx(np.mean(by_hand))
    assert found.half_width == pytest.approx(3.182446 * np.std(by_hand, ddof=1) / 2)  # t of 3 degrees at 97.5%
    assert headline(simulate(chosen))["metrics.ttft_s.mean"] == by_hand[0]
    assert replicate(chosen, runs=4).to_json() == seen.to_json()


def test_stops_when_the_interval_is_tight() -> None:
    assert len(replicate(scenario(), runs=6, tolerance=10.0).seeds) == 3
    assert len(replicate(scenario(), runs=4, tolerance=1e-9).seeds) == 4
    with pytest.raises(ScenarioError, match="runs=1 gives no interval"):
        replicate(scenario(), runs=1)
    with pytest.raises(ScenarioError, match="watched='ttft' is not a result"):
        replicate(scenario(), runs=2, watched="ttft")

from typing import Any

import numpy as np
import pytest
from scipy.stats import sem
from scipy.stats import t as student
from support.clusters import FormulaTimes, colocated, make_instance, play

from simulator.des.replicate import estimate, headline, mser5, replicate, seeds_of
from simulator.des.simulate import simulate
from simulator.scenario import Scenario, ScenarioError, parse_scenario


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


def test_mser_cuts_a_backlog_off_and_leaves_the_steady_state() -> None:
    """M/D/1 at 80% with 300 requests there at 0 s: 3 s of work, gone when 300 / 0.2 = 1500 have been served.

    The mean sojourn of what is left is that of theory, S + rho S / 2(1 - rho) = 30 ms; uncut it is ten times that.
    """
    count, service_s, rho = 12_000, 0.01, 0.8
    spec = colocated(make_instance(FormulaTimes(per_prompt_token_s=service_s), max_sequences=1))
    cuts, means = [], []
    for seed in range(8):
        later = np.cumsum(np.random.default_rng(seed).exponential(service_s / rho, count - 300))
        sojourn_s = play(spec, [1] * count, [1] * count, [0.0] * 300 + later.tolist()).e2e_s
        assert sojourn_s.mean() > 0.1
        cuts.append(mser5(sojourn_s))
        means.append(float(sojourn_s[cuts[-1] :].mean()))
    assert all(800 < cut < 4000 for cut in cuts)
    found = estimate(means, 0.99)
    assert abs(found.mean - (service_s + rho * service_s / (2 * (1 - rho)))) < found.half_width
    assert found.relative < 0.1


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


def test_stops_with_the_first_interval_that_is_tight_enough() -> None:
    """Oracle: SciPy's interval over the first 3, 4, ... of all runs."""
    values = [headline(simulate(scenario(), seed=seed))["metrics.ttft_s.p99"] for seed in seeds_of(0, 8)]
    relative = []
    for runs in range(3, 9):
        low, high = student.interval(0.95, runs - 1, np.mean(values[:runs]), sem(values[:runs]))
        relative.append((high - low) / (high + low))
    for tolerance in sorted(relative):
        wanted = 3 + next(i for i, seen in enumerate(relative) if seen <= tolerance * (1 + 1e-9))
        assert len(replicate(scenario(), runs=8, tolerance=tolerance * (1 + 1e-9)).seeds) == wanted
    assert len({next(i for i, r in enumerate(relative) if r <= limit) for limit in relative}) > 2


def test_stops_when_the_interval_is_tight() -> None:
    assert len(replicate(scenario(), runs=6, tolerance=10.0).seeds) == 3
    assert len(replicate(scenario(), runs=4, tolerance=1e-9).seeds) == 4
    with pytest.raises(ScenarioError, match="runs=1 gives no interval"):
        replicate(scenario(), runs=1)
    with pytest.raises(ScenarioError, match="watched='ttft' is not a result"):
        replicate(scenario(), runs=2, watched="ttft")

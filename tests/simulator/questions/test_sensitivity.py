"""Sobol indices of functions whose indices are known, and inputs whose effect is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from simulator import sensitivity
from simulator.questions.inputs import USUAL, changed, inputs_of, scaled
from simulator.questions.sobol import base_samples, design, indices
from simulator.scenario import Lengths, Scenario, ScenarioError
from simulator.sweep.executor import SweepExecutor

Make = Callable[..., Scenario]


def test_indices_of_a_linear_function_are_its_squared_weights() -> None:
    """y = sum w_i x_i, x_i uniform: S_i = T_i = w_i^2 / sum w^2."""
    points, weights = design(512, 3, 1), np.array([1.0, 2.0, 3.0])
    found = indices(("a", "b", "c"), 512, points @ weights, 1)
    expected = weights**2 / (weights**2).sum()
    assert [index.first for index in found] == pytest.approx(expected, abs=0.01)
    assert [index.total for index in found] == pytest.approx(expected, abs=0.01)
    assert all(index.first_low <= index.first <= index.first_high for index in found)


def test_indices_of_ishigamis_function() -> None:
    """With a = 7, b = 0.1: S1 = 0.3139, S2 = 0.4424, S3 = 0; total 0.5576, 0.4424, 0.2437 (Saltelli et al. 2008)."""
    x = (design(2048, 3, 0) - 0.5) * 2 * np.pi
    y = np.sin(x[:, 0]) + 7 * np.sin(x[:, 1]) ** 2 + 0.1 * x[:, 2] ** 4 * np.sin(x[:, 0])
    found = indices(("a", "b", "c"), 2048, y, 0)
    assert [index.first for index in found] == pytest.approx([0.3139, 0.4424, 0.0], abs=0.03)
    assert [index.total for index in found] == pytest.approx([0.5576, 0.4424, 0.2437], abs=0.03)


def test_salib_says_the_same() -> None:
    """Another implementation, on the same answers; it orders its sample A, AB..., B row by row."""
    sobol = pytest.importorskip("SALib.analyze.sobol")
    n, d = 256, 3
    y = (design(n, d, 3) ** np.array([1, 2, 3])).sum(axis=1)
    blocks = y.reshape(d + 2, n)
    ordered = np.concatenate([blocks[:1], blocks[2:], blocks[1:2]]).T.ravel()
    problem = {"num_vars": d, "names": ["a", "b", "c"], "bounds": [[0, 1]] * d}
    theirs = sobol.analyze(problem, ordered, calc_second_order=False)
    ours = indices(("a", "b", "c"), n, y, 3)
    assert [index.first for index in ours] == pytest.approx(list(theirs["S1"]), abs=0.03)
    assert [index.total for index in ours] == pytest.approx(list(theirs["ST"]), abs=0.03)


def test_an_answer_that_never_changes_has_no_indices() -> None:
    found = indices(("a",), 4, np.ones(12), 0)
    assert (found[0].first, found[0].total) == (0.0, 0.0)


def test_samples_are_a_bound_on_runs() -> None:
    assert base_samples(512, 6) * 8 == 512
    assert base_samples(500, 6) * 8 <= 500


def test_cost_is_proportional_to_price_and_falls_with_the_rate(small: Make, serial: SweepExecutor) -> None:
    found = sensitivity(small(), samples=0, executor=serial)
    swings = {swing.name: swing for swing in found.swings}
    price, rate = swings["price"], swings["rate"]
    assert found.cost is not None
    assert price.cost_low == pytest.approx(0.7 * found.cost)
    assert price.cost_high == pytest.approx(1.4 * found.cost)
    assert rate.cost_low is not None
    assert rate.cost_high is not None
    assert rate.cost_low / rate.cost_high == pytest.approx(2.0, rel=0.1)
    assert swings["prompt"].cost_low is not None
    assert found.cost_indices == ()


def test_better_rates_never_lower_attainment(small: Make, serial: SweepExecutor) -> None:
    found = sensitivity(small(slo={"ttft_s": 0.05, "tpot_s": 0.004}), samples=0, executor=serial)
    for swing in found.swings:
        if swing.name in ("memory_bandwidth", "fit.matrix", "fit.memory", "fit.experts", "fit.attention"):
            assert swing.attainment_low <= swing.attainment_high + 0.02, swing
        if swing.name in ("fit.sequence_overhead_s", "fit.kernel_overhead_s", "fit.request_overhead_s", "rate"):
            assert swing.attainment_low >= swing.attainment_high - 0.02, swing


def test_price_alone_brings_all_variance_of_cost(small: Make, serial: SweepExecutor) -> None:
    """Where every other input is all but fixed."""
    still = {
        name: (0.9999, 1.0001) for name in USUAL if name not in ("price", "acceptance", "shared_prefix", "expert_skew")
    }
    found = sensitivity(small(), samples=64, ranges=still, executor=serial)
    index = {each.name: each for each in found.cost_indices}
    assert index["price"].total == pytest.approx(1.0, abs=0.15)
    assert found.chance == 1.0
    assert len(found.to_frame()) == len(found.swings)
    assert found.figure().data


def test_inputs_are_those_that_the_scenario_has(small: Make) -> None:
    names = {one.name for one in inputs_of(small())}
    assert not {"acceptance", "shared_prefix", "expert_skew"} & names
    with pytest.raises(ScenarioError, match="--vary acceptance: the scenario has no such thing"):
        inputs_of(small(), {"acceptance": (0.5, 1.0)})
    with pytest.raises(ScenarioError, match="--vary luck: there is no such input"):
        inputs_of(small(), {"luck": (0.5, 1.0)})
    with pytest.raises(ScenarioError, match="is not a range of factors"):
        inputs_of(small(), {"rate": (2.0, 1.0)})


def test_factors_change_what_they_name(small: Make) -> None:
    scenario, profiles = changed(small(), {"rate": 2.0, "prompt": 1.5, "memory_bandwidth": 0.5, "fit.matrix": 0.5})
    workload = scenario.one_workload()
    assert (workload.rate, workload.prompt.value, workload.output.value) == (16.0, 1500, 60)  # type: ignore[union-attr]
    (profile,) = profiles.values()
    assert profile.memory_bandwidth == pytest.approx(2.4e12)
    assert profile.efficiency.situations[-1].factors == {"matrix": 0.5}
    uniform = scaled(Lengths(kind="uniform", low=10, high=20), 2.0)
    assert (uniform.low, uniform.high) == (20, 40)


def test_interrupted_it_keeps_the_inputs_that_are_done(small: Make, serial: SweepExecutor) -> None:
    def stop(stage: str, done: int, of: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    found = sensitivity(small(), samples=16, executor=serial, progress=stop)
    assert not found.complete
    assert len(found.swings) == 2

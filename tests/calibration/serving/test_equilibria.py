"""Measured points as clusters in equilibrium: conservation, what parameters do, and a fit that finds what made them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from calibration.serving.effects import shipped
from calibration.serving.equilibria import IN_FLIGHT, Equilibria, priced_point
from calibration.serving.fit import _posterior, fit_effects, log_predictions
from calibration.serving.parameters import NAMES, Given, assumed, levels_of
from calibration.serving.points import parse_point
from calibration.serving.predict import predictions, prepare
from simulator.model.draws import DRAWS

COLOCATED: dict[str, Any] = {
    "id": "one",
    "model": "DeepSeek-R1",
    "gpu": "H200",
    "n_gpu": 8,
    "engine": "vLLM",
    "precision": "FP8",
    "spec_decode": "none",
    "disaggregated": 0.0,
    "decode_parallel": "TP8",
    "prefill_parallel": "TP8",
    "isl": 1000,
    "osl": 500,
    "tpot_ms": 20.0,
    "total_tok_s_per_gpu": 1000.0,
    "ttft_ms": 300.0,
}
APART = COLOCATED | {"id": "two", "disaggregated": 1.0, "n_gpu": 16, "n_prefill_gpu": 8, "n_decode_gpu": 8}


def points_of(*rows: dict[str, Any]) -> Equilibria:
    return Equilibria([priced_point(parse_point(i, row)) for i, row in enumerate(rows)])


@pytest.fixture(scope="module")
def sweep() -> Equilibria:
    engines = ("vLLM", "SGLang", "TensorRT-LLM")
    return points_of(
        *(COLOCATED | {"engine": engine, "concurrency": c} for engine in engines for c in (1, 8, 64, 256)),
        *(APART | {"concurrency": c} for c in (1, 8, 64, 256)),
    )


def asked(points: Equilibria, **moved: float) -> Any:
    theta = assumed()
    for name, change in moved.items():
        theta[NAMES.index(name)] += change
    return points.seen(Given(np.tile(theta, (len(points.points), 1, 1))))


def test_what_is_in_flight_is_what_the_benchmark_keeps_in_flight(sweep: Equilibria) -> None:
    """Little's law: rate x (TTFT + (O - 1) TPOT) = clients, where the means and medians are alike (few clients)."""
    seen = asked(sweep, warm_up_s=-20.0)
    for i, one in enumerate(sweep.points):
        if one.point.concurrency <= 8:
            held = seen.rate[i, 0] * (seen.ttft_s[i, 0] + (one.point.output - 1) * seen.tpot_s[i, 0])
            assert held == pytest.approx(IN_FLIGHT[one.kind[0]] * one.point.concurrency, rel=0.04)


@pytest.mark.parametrize(
    ("name", "metric"),
    [("memory", "tpot_s"), ("matrix", "median_ttft_s")],
)
def test_faster_rates_never_make_a_point_slower(sweep: Equilibria, name: str, metric: str) -> None:
    slow, fast = (getattr(asked(sweep, **{name: change}), metric) for change in (-0.1, 0.1))
    assert (fast <= slow * (1 + 1e-9)).all()
    assert (fast < slow).mean() > 0.9


def test_host_time_is_older_software_s() -> None:
    """`renewal` e^-0.5 a half-year: a row of a year ago has e more host time than one of today."""
    old, new = (COLOCATED | {"concurrency": 1, "date": date} for date in ("2025-08-01", "2026-08-01"))
    seen = asked(points_of(old, new), renewal=-0.5, kernel_overhead_s=1.5)
    plain = asked(points_of(old, new), renewal=-0.5, kernel_overhead_s=-20.0)
    host = seen.tpot_s[:, 0] - plain.tpot_s[:, 0]
    assert host[0] / host[1] == pytest.approx(np.e, rel=1e-6)


def test_a_fit_finds_the_engine_that_made_the_points(sweep: Equilibria) -> None:
    levels = [levels_of(p.point, p.hardware) for p in sweep.points]
    truth = np.tile(assumed(), (len(levels), 1))
    truth[:, NAMES.index("memory")] -= 0.15
    truth[:, NAMES.index("kernel_overhead_s")] += 0.6
    target = log_predictions(sweep, truth[:, None])[:, 0]
    before = log_predictions(sweep, np.tile(assumed(), (len(levels), 1, 1)))[:, 0] - target
    effects = fit_effects(sweep, levels, target, np.ones(len(levels)))
    after = log_predictions(sweep, effects.theta(levels)[:, None])[:, 0] - target
    assert np.median(np.abs(before[:, :2])) > 0.05
    assert np.abs(after[:, :2]).max() < 0.03


def test_what_points_do_not_tell_stays_as_unsure_as_before(sweep: Equilibria) -> None:
    """Colocated points on one node: HBM rates are told, latencies between nodes are not."""
    alone = sweep.some(np.arange(12))
    levels = [levels_of(p.point, p.hardware) for p in alone.points]
    target = log_predictions(alone, np.tile(assumed(), (len(levels), 1, 1)))[:, 0]
    found = fit_effects(alone, levels, target, np.ones(len(levels)))
    drawn = found.drawn(levels)
    prior = type(found)({}).drawn(levels)
    assert drawn.shape == (12, DRAWS, len(NAMES))
    before, after = prior.std(axis=1)[0], drawn.std(axis=1)[0]
    assert after[NAMES.index("kernel_overhead_s")] < 0.3 * before[NAMES.index("kernel_overhead_s")]
    assert after[NAMES.index("exit_latency_s")] > 0.6 * before[NAMES.index("exit_latency_s")]
    np.testing.assert_allclose(drawn.mean(axis=1)[0], found.theta(levels)[0], atol=0.4)


def test_software_older_than_any_that_was_fitted_is_less_sure() -> None:
    """SGLang was fitted from October 2025 on; bands widen with each year before."""
    row = COLOCATED | {"engine": "SGLang", "concurrency": 16, "gpu": "B200"}
    frame = pd.DataFrame([row | {"date": date} for date in ("2025-11-01", "2024-11-01", "2022-11-01")])
    lines = predictions(prepare(frame), shipped())
    bands = lines[lines["metric"] == "tpot_ms"]
    width = np.log(bands["p90"] / bands["p10"]).to_numpy()
    assert width[0] < width[1] < width[2]


def test_a_straight_posterior_is_that_of_bayes() -> None:
    """One effect measured n times with noise s under a prior of width w: variance 1 / (n / s^2 + 1 / w^2)."""
    count, width = 8, 0.5
    jacobian = sparse.vstack([sparse.csr_array(np.full((count, 1), width / 0.1)), sparse.eye_array(1)], format="csr")
    drawn = _posterior(jacobian, np.ones(count + 1), np.array([2.0]), np.zeros((1, 0)))
    expected = 1 / (count / 0.1**2 + 1 / width**2)
    assert drawn.shape == (DRAWS, 1)
    assert (drawn * width).var() == pytest.approx(expected, rel=0.4)
    assert drawn.mean() == pytest.approx(2.0, abs=4 * expected**0.5 / width / DRAWS**0.5)

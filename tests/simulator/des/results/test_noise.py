"""Batch means against what theory says of independent and of autoregressive values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import lfilter

from simulator.des.results.noise import relative_error
from simulator.model.arrays import Floats


def mean(values: Floats) -> float:
    return float(np.mean(values))


def average_over_draws(draw: object, count: int = 200) -> float:
    """Root mean square of the estimate: one estimate has nine degrees of freedom only."""
    rng = np.random.default_rng(1)
    return float(np.sqrt(np.mean([relative_error(draw(rng), mean) ** 2 for _ in range(count)])))  # type: ignore[operator]


def test_independent_values_err_by_one_over_root_n() -> None:
    """Exponential values have a standard deviation of their mean."""
    assert average_over_draws(lambda rng: rng.exponential(3.0, 900)) == pytest.approx(1 / 30, rel=0.1)


def test_dependent_values_err_by_more() -> None:
    """AR(1): the standard error of the mean is 1 / (1 - phi) of that of its shocks."""
    phi = 0.8

    def draw(rng: np.random.Generator) -> Floats:
        return 20.0 + lfilter([1.0], [1.0, -phi], rng.normal(0, 1, 5000))

    assert average_over_draws(draw) == pytest.approx(1 / (1 - phi) / np.sqrt(5000) / 20, rel=0.1)


def test_undefined_values_are_left_out_and_too_few_say_nothing() -> None:
    values = np.random.default_rng(0).exponential(1.0, 400)
    with_gaps = np.insert(values, [5, 100, 300], np.nan)
    assert relative_error(with_gaps, mean) == relative_error(values, mean) > 0
    assert relative_error(values[:19], mean) == 0.0
    assert relative_error(values[:0], mean) == 0.0

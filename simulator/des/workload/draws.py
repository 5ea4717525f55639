"""Random token counts, times and arrivals."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.scenario import Lengths, Seconds


def draw_lengths(lengths: Lengths, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """`count` whole token counts of at least 1."""
    if lengths.kind == "constant":
        drawn = np.full(count, lengths.value, dtype=np.int64)
    elif lengths.kind == "uniform":
        assert lengths.low is not None
        assert lengths.high is not None
        drawn = rng.integers(lengths.low, lengths.high, size=count, endpoint=True)
    else:
        drawn = np.maximum(1, np.rint(np.minimum(_skewed(lengths, count, rng), 1e15))).astype(np.int64)
    return drawn if lengths.maximum is None else np.minimum(drawn, lengths.maximum)


def draw_seconds(seconds: Seconds, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """`count` times. [s]"""
    if seconds.kind == "constant":
        assert seconds.value is not None
        return np.full(count, seconds.value, dtype=np.float64)
    return _skewed(seconds, count, rng)


def _skewed(drawn: Lengths | Seconds, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    if drawn.kind == "exponential":
        assert drawn.mean is not None
        return rng.exponential(drawn.mean, count)
    assert drawn.median is not None
    assert drawn.sigma is not None
    return rng.lognormal(np.log(drawn.median), drawn.sigma, count)


def draw_arrivals(rate: float, burstiness: float, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Times of `count` arrivals with Gamma gaps of mean 1/rate. [s]

    burstiness: squared coefficient of variation of the gaps; 1 is Poisson.
    """
    shape = 1.0 / burstiness
    gaps = rng.gamma(shape, 1.0 / (rate * shape), count)
    return np.cumsum(gaps)

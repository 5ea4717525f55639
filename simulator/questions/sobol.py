"""Sobol indices: which share of an answer's variance each input brings, alone and with others.

Estimates are those of `scipy.stats.sobol_indices` (Saltelli 2010), their intervals its bootstrap.

References: Sobol', "Global sensitivity indices for nonlinear mathematical models", 2001; Saltelli et al., "Variance
based sensitivity analysis of model output", Computer Physics Communications 181, 2010.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from simulator.model.arrays import Floats

CONFIDENCE = 0.9  # of the intervals


@dataclass(frozen=True)
class SobolIndex:
    """first: share of the variance by the input alone; total: with all its interactions; low and high of each."""

    name: str
    first: float
    first_low: float
    first_high: float
    total: float
    total_low: float
    total_high: float


def base_samples(runs: int, inputs: int) -> int:
    """Largest power of two n with n (inputs + 2) <= runs, at least 2.

    >>> base_samples(512, 6), base_samples(10, 6)
    (64, 2)
    """
    return max(2, int(2 ** np.floor(np.log2(max(2, runs / (inputs + 2))))))


def design(n: int, inputs: int, seed: int) -> Floats:
    """Points in the unit cube: n of A, n of B, then for each input n of A with that column of B. [n (d + 2), d]"""
    from scipy.stats import qmc

    drawn = qmc.Sobol(2 * inputs, rng=np.random.default_rng(seed)).random(n)
    a, b = drawn[:, :inputs], drawn[:, inputs:]
    mixed = []
    for column in range(inputs):
        one = a.copy()
        one[:, column] = b[:, column]
        mixed.append(one)
    return np.concatenate([a, b, *mixed])


def indices(names: tuple[str, ...], n: int, answers: Floats, seed: int) -> tuple[SobolIndex, ...]:
    """Of the answers at the points of `design`; of an answer that never changes all are 0."""
    from scipy.stats import sobol_indices

    d = len(names)
    if float(np.ptp(answers)) == 0.0:
        return tuple(SobolIndex(name, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0) for name in names)
    blocks = answers.reshape(d + 2, 1, n)
    found = sobol_indices(
        func={"f_A": blocks[0], "f_B": blocks[1], "f_AB": blocks[2:]}, n=n, rng=np.random.default_rng(seed)
    )
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # an index that no resampling moves has no interval: its ends are itself
        shaken = found.bootstrap(confidence_level=CONFIDENCE)
    first, total = np.ravel(found.first_order), np.ravel(found.total_order)
    ends = [
        np.where(np.isnan(np.ravel(side)), value, np.ravel(side))
        for side, value in (
            (shaken.first_order.confidence_interval.low, first),
            (shaken.first_order.confidence_interval.high, first),
            (shaken.total_order.confidence_interval.low, total),
            (shaken.total_order.confidence_interval.high, total),
        )
    ]
    return tuple(
        SobolIndex(name, *(float(v) for v in (first[i], ends[0][i], ends[1][i], total[i], ends[2][i], ends[3][i])))
        for i, name in enumerate(names)
    )

"""Speculative decoding with an acceptance chance of each request's own.

A step verifies D drafts; each is accepted with chance p while all before it were, and one more token follows, so a
sequence gains sum of p^k, k = 0..D, tokens a step on average. p follows a Beta distribution over requests, cut into
CLASSES equally likely classes that all have their mean p.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np

from simulator.model.arrays import Floats

CLASSES = 8  # of requests; assumed: fine enough beside what else is unknown of p
# Of the Beta distribution (a + b) [-]: below it nearly all requests have p = 0 or p = 1, and quantiles round to these.
LEAST_CONCENTRATION = 0.5
# Of a draft, if those before it were accepted, where no fit says it (assumed; serving fits start from it).
ASSUMED_CHANCE = 0.68
MEAN_TOLERANCE = 1e-14  # of the mean of p, when it is sought [-]: what floats resolve
Chance = TypeVar("Chance", float, Floats)


def tokens_per_step(chance: Chance, drafts: Chance) -> Chance:
    """Mean tokens that a step emits: (1 - p^(D+1)) / (1 - p).

    chance: p below 1, of each draft if those before it were accepted. drafts: D.

    >>> tokens_per_step(0.5, 3)
    1.875

    Reference: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", ICML 2023, equation 1.
    """
    return (1 - chance ** (drafts + 1)) / (1 - chance)


def summed_tokens_per_step(chance: Floats, drafts: int) -> Floats:
    """`tokens_per_step` as the sum of p^k, k = 0..D, which p = 1 does not break.

    >>> summed_tokens_per_step(np.array([0.0, 0.5, 1.0]), 3).tolist()
    [1.0, 1.875, 4.0]
    """
    powers: Floats = chance[:, None] ** np.arange(drafts + 1)
    total: Floats = powers.sum(axis=1)
    return total


def class_chances(mean: float, spread: float) -> Floats:
    """Mean of a Beta distribution (mean, standard deviation) within each of CLASSES parts of equal probability.

    With a = mean * n, b = (1 - mean) * n, n = mean (1 - mean) / spread^2 - 1, the part of the mean below a quantile q
    is I_q(a + 1, b), the regularised incomplete beta function.
    """
    from scipy.special import betainc, betaincinv  # SciPy takes a second to import, and few runs spread acceptance

    if mean > 0.5:  # quantiles near 1 would round to it
        return 1 - class_chances(1 - mean, spread)[::-1]
    concentration = mean * (1 - mean) / spread**2 - 1
    a, b = mean * concentration, (1 - mean) * concentration
    quantiles = betaincinv(a, b, np.linspace(0, 1, CLASSES + 1))
    chances: Floats = mean * np.diff(betainc(a + 1, b, quantiles)) * CLASSES
    return chances


def class_rates(length: float, drafts: int, spread: float) -> tuple[float, ...]:
    """Mean tokens per step of each class, whose mean over all steps is `length` (what servers report).

    A request of rate r takes 1/r steps a token, so the mean over steps is the harmonic mean of the rates: the work of
    all requests together does not depend on the spread. ValueError where no Beta distribution has these figures.
    """
    if not spread:
        return (length,)
    if not drafts:
        raise ValueError(f"acceptance_spread={spread:g} is of drafts, of which there are none; set draft_tokens")

    from scipy.optimize import brentq

    def gap(mean: float) -> float:
        return float(np.mean(1 / summed_tokens_per_step(class_chances(mean, spread), drafts))) - 1 / length

    # mean (1 - mean) / spread^2 - 1 is at least LEAST_CONCENTRATION within 1/2 -+ half_width
    half_width = math.sqrt(max(0.0, 0.25 - (1 + LEAST_CONCENTRATION) * spread**2))
    low, high = 0.5 - half_width, 0.5 + half_width
    if not (half_width and gap(low) > 0 > gap(high)):
        raise ValueError(
            f"acceptance_spread={spread:g} is more than the chances of {drafts} drafts can vary where "
            f"acceptance_length={length:g} of {1 + drafts} tokens come out; give a smaller spread"
        )
    mean = brentq(gap, low, high, xtol=MEAN_TOLERANCE)
    return tuple(summed_tokens_per_step(class_chances(mean, spread), drafts).tolist())

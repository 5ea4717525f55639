"""Draws of what is not known: how many, and normal scores in their place.

Fits, profiles and bands hold the same number, so that draw number i of one goes with draw number i of another.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from simulator.model.arrays import Floats

DRAWS = 64  # assumed: p10 and p90 of so many are off by 0.2 of a standard deviation
NORMAL = NormalDist()


def normal_scores(seed: int) -> Floats:
    """[DRAWS] a standard normal law in equal parts, in an order drawn once: no noise in its median.

    >>> abs(float(np.median(normal_scores(0)))) < 1e-12
    True
    """
    scores = [NORMAL.inv_cdf((i + 0.5) / DRAWS) for i in range(DRAWS)]
    return np.random.default_rng(seed).permutation(np.array(scores))

"""Fit of stack parameters to measured points, partially pooled over levels.

Gauss-Newton on log errors of TPOT, throughput and TTFT with Cauchy weights. The derivative by a parameter of every
point is one more evaluation of all points; effects of levels follow by the chain rule. Every effect has a normal
prior about zero, so that what all stacks share is said once and few points move little.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from calibration.fit import Array
from calibration.validation.balance import Loop, balance
from calibration.validation.stack import LEVEL_SHARE, NAMES, WIDTHS, StackFit, assumed

ITERATIONS = 12
ROBUST = 0.2  # log error at which a point counts half (Cauchy loss): first-generation software is far off
NOISE = 0.12  # log error of one measurement, against which priors weigh
DELTA = 0.02
LONGEST_MOVE = 0.5  # of an effect in one iteration
FITTED_METRICS = ("tpot_ms", "total_tok_s_per_gpu", "ttft_ms")
WEIGHTS = np.array([1.0, 1.0, 0.3])


def observed(points: Sequence[object], metrics: Sequence[dict[str, float]]) -> Array:
    """[points, FITTED_METRICS] logs of measured values, NaN where missing."""
    return np.log([[m.get(name, np.nan) for name in FITTED_METRICS] for m in metrics])


def log_predictions(loop: Loop, theta: Array) -> Array:
    found = balance(loop, theta).metrics(loop)
    return np.log(np.stack([found[name] for name in FITTED_METRICS], axis=1))


def fit_stack(
    loop: Loop, levels: Sequence[tuple[str, ...]], target: Array, weight: Array, source: str,
    frozen: Sequence[str] = (),
) -> StackFit:
    """target: [points, metrics] logs. weight: of each point. frozen: parameters kept at their assumed values."""
    known = sorted({level for mine in levels for level in mine})
    place = {level: i for i, level in enumerate(known)}
    member: Array = np.zeros((len(levels), len(known)))
    for row, mine in enumerate(levels):
        member[row, [place[level] for level in mine]] = 1.0
    share = np.array([LEVEL_SHARE[level.partition("=")[0]] for level in known])
    free = [i for i, name in enumerate(NAMES) if name not in frozen]
    prior = NOISE / (share[:, None] * WIDTHS[None, free])
    seen = np.isfinite(target)
    effects = np.zeros((len(known), len(NAMES)))
    for _ in range(ITERATIONS):
        theta = assumed() + member @ effects
        base = log_predictions(loop, theta)
        errors = np.where(seen, base - target, 0.0)
        weights = WEIGHTS * weight[:, None] / (1 + (errors / ROBUST) ** 2) * seen
        slopes = np.stack([_slope(loop, theta, base, i) for i in free], axis=2)
        effects[:, free] = _move(effects[:, free], member, slopes, errors, weights, prior)
    return StackFit({level: effects[i] for level, i in place.items()}, {}, source)


def _slope(loop: Loop, theta: Array, base: Array, parameter: int) -> Array:
    moved = theta.copy()
    moved[:, parameter] += DELTA
    return (log_predictions(loop, moved) - base) / DELTA


def _move(effects: Array, member: Array, slopes: Array, errors: Array, weights: Array, prior: Array) -> Array:
    """One damped Gauss-Newton step of effects [levels, parameters]."""
    levels, parameters = effects.shape
    points, metrics = errors.shape
    normal = np.zeros((levels * parameters, levels * parameters))
    gradient = np.zeros(levels * parameters)
    for metric in range(metrics):
        root = np.sqrt(weights[:, metric])
        rows: NDArray[np.float64] = (member[:, :, None] * (slopes[:, metric] * root[:, None])[:, None, :]).reshape(
            points, -1
        )
        normal += rows.T @ rows
        gradient += rows.T @ (root * errors[:, metric])
    stiff = (prior**2).ravel()
    gradient += stiff * effects.ravel()
    normal[np.diag_indices_from(normal)] += stiff
    step = np.linalg.solve(normal, gradient).reshape(levels, parameters)
    return effects - np.clip(step, -LONGEST_MOVE, LONGEST_MOVE)

"""Fit of stack parameters to measured points, partially pooled over levels.

Levenberg-Marquardt on log errors of TPOT, throughput and TTFT with Cauchy weights. The derivative by a parameter of
every point is one more evaluation of all points; effects of levels follow by the chain rule. Every effect has a normal
prior about zero, so that what all stacks share is said once and few points move little.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calibration.fit import Array
from calibration.validation.balance import Loop, balance
from calibration.validation.stack import LEVEL_SHARE, NAMES, WIDTHS, StackFit, assumed

ITERATIONS = 12
TRIALS = 5  # dampings tried in one iteration
DAMPING = 0.1
ROBUST = 0.1  # log error at which a point counts half (Cauchy loss): first-generation software is far off
NOISE = 0.1  # log error of one measurement, against which priors weigh
DELTA = 0.02
FITTED_METRICS = ("tpot_ms", "total_tok_s_per_gpu", "ttft_ms")
WEIGHTS = np.array([1.0, 1.0, 0.3])


def observed(metrics: Sequence[dict[str, float]]) -> Array:
    """[points, FITTED_METRICS] logs of measured values, NaN where missing."""
    return np.log([[m.get(name, np.nan) for name in FITTED_METRICS] for m in metrics])


def log_predictions(loop: Loop, theta: Array) -> Array:
    found = balance(loop, theta).metrics(loop)
    return np.log(np.stack([found[name] for name in FITTED_METRICS], axis=1))


def fit_stack(
    loop: Loop,
    levels: Sequence[tuple[str, ...]],
    target: Array,
    weight: Array,
    source: str,
    frozen: Sequence[str] = (),
    iterations: int = ITERATIONS,
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
    goal = np.where(seen, target, 0.0)
    each = WEIGHTS * weight[:, None] * seen

    def errors_of(effects: Array) -> tuple[Array, Array, Array, float]:
        theta = assumed() + member @ effects
        base = log_predictions(loop, theta)
        errors = (base - goal) * seen
        loss = float((each * np.log1p((errors / ROBUST) ** 2)).sum() * ROBUST**2)
        return theta, base, errors, loss + float(((prior * effects[:, free]) ** 2).sum())

    effects = np.zeros((len(known), len(NAMES)))
    theta, base, errors, loss = errors_of(effects)
    damping = DAMPING
    for _ in range(iterations):
        slopes = np.stack([_slope(loop, theta, base, i) for i in free], axis=2)
        normal, gradient = _normal(effects[:, free], member, slopes, errors, each / (1 + (errors / ROBUST) ** 2), prior)
        for _ in range(TRIALS):
            step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), gradient)
            trial = effects.copy()
            trial[:, free] -= step.reshape(len(known), len(free))
            found = errors_of(trial)
            if found[3] < loss:
                effects, (theta, base, errors, loss) = trial, found
                damping = max(damping / 4, 1e-4)
                break
            damping *= 5
        else:
            break
    return StackFit({level: effects[i] for level, i in place.items()}, {}, source)


def _slope(loop: Loop, theta: Array, base: Array, parameter: int) -> Array:
    moved = theta.copy()
    moved[:, parameter] += DELTA
    return (log_predictions(loop, moved) - base) / DELTA


def _normal(
    effects: Array, member: Array, slopes: Array, errors: Array, weights: Array, prior: Array
) -> tuple[Array, Array]:
    """Normal matrix and gradient of the weighted squares, over effects [levels, parameters] laid flat."""
    size = effects.size
    points, metrics = errors.shape
    normal, gradient = np.zeros((size, size)), np.zeros(size)
    for metric in range(metrics):
        root = np.sqrt(weights[:, metric])
        rows = (member[:, :, None] * (slopes[:, metric] * root[:, None])[:, None, :]).reshape(points, -1)
        normal += rows.T @ rows
        gradient += rows.T @ (root * errors[:, metric])
    stiff = (prior**2).ravel()
    gradient += stiff * effects.ravel()
    normal[np.diag_indices_from(normal)] += stiff
    return normal, gradient

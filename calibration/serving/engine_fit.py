"""Fit of stack parameters to measured points, partially pooled over levels.

Levenberg-Marquardt on log errors of TPOT, throughput and TTFT with Cauchy weights. The derivative by a parameter of
every point is one more evaluation of all points; effects of levels follow by the chain rule. Every effect has a normal
prior about zero, so that what all stacks share is said once and few points move little. Points with the same levels
form a group; the fit moves the groups' shifts, a Gaussian whose covariance the levels in common make, and reads the
effects off them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from calibration.arrays import Index
from calibration.serving.balance import Loop, balance
from calibration.serving.engine_parameters import LEVELS, NAMES, WIDTHS, StackFit, assumed
from calibration.serving.points import Point
from simulator.model.arrays import Floats

# Levenberg-Marquardt, all assumed: iterations at most, dampings tried in one of them, and the damping with which it
# starts, as a share of the curvature: harder after a step that fails, softer after one that does not.
ITERATIONS = 30
TRIALS = 5
DAMPING = 0.1
HARDER, SOFTER = 5.0, 4.0
LEAST_DAMPING = 1e-4
ROBUST = 0.1  # log error at which a point counts half (Cauchy loss): first-generation software is far off (assumed)
NOISE = 0.1  # log error of one measurement, against which priors weigh (assumed)
JITTER = 1e-4  # share of a group's variance that no level explains: keeps the covariance invertible (assumed)
DELTA = 0.02  # log units, by which a parameter is moved for its derivative (assumed)
SCORED_METRICS = ("tpot_ms", "total_tok_s_per_gpu", "ttft_ms")
# A median beside a mean tells the steady state from the first wave.
FITTED_METRICS = (*SCORED_METRICS, "median_ttft_ms")
WEIGHTS = np.array([1.0, 1.0, 0.6, 0.6])  # of FITTED_METRICS: TTFT is defined less well (assumed)


def observed(points: Sequence[Point]) -> Floats:
    """[points, FITTED_METRICS] logs of measured values, NaN where missing."""
    given = [{**p.measured, "median_ttft_ms": p.median_ttft_ms or np.nan} for p in points]
    return np.log([[metrics.get(name, np.nan) for name in FITTED_METRICS] for metrics in given])


def log_predictions(loop: Loop, theta: Floats) -> Floats:
    found = balance(loop, theta).metrics(loop)
    return np.log(np.stack([found[name] for name in FITTED_METRICS], axis=1))


def fit_stack(
    loop: Loop,
    levels: Sequence[tuple[str, ...]],
    target: Floats,
    weight: Floats,
    source: str,
    frozen: Sequence[str] = (),
    start: Floats | None = None,
) -> StackFit:
    """target: [points, metrics] logs. weight: of each point. frozen: parameters kept at their assumed values. start:
    [points, parameters] that effects add to (default: assumed values)."""
    known = sorted({level for mine in levels for level in mine})
    place = {level: i for i, level in enumerate(known)}
    groups = {mine: i for i, mine in enumerate(dict.fromkeys(levels))}
    group = np.array([groups[mine] for mine in levels], dtype=np.intp)
    member: Floats = np.zeros((len(groups), len(known)))
    for mine, row in groups.items():
        member[row, [place[level] for level in mine]] = 1.0
    share = np.array([LEVELS[level.partition("=")[0]][0] for level in known])
    free = [i for i, name in enumerate(NAMES) if name not in frozen]
    widths = WIDTHS[free] ** 2
    # Effects with normal priors make the shifts of groups a Gaussian with this covariance (times widths).
    covariance = (member * share**2) @ member.T / NOISE**2
    covariance[np.diag_indices_from(covariance)] *= 1 + JITTER
    stiff = np.linalg.inv(covariance)
    alone = 1 / np.outer(np.diag(covariance), widths).ravel()  # stiffness of each shift by itself
    seen = np.isfinite(target)
    goal = np.where(seen, target, 0.0)
    each = WEIGHTS * weight[:, None] * seen
    begin = np.tile(assumed(), (len(group), 1)) if start is None else start

    def errors_of(shifts: Floats) -> tuple[Floats, Floats, Floats, float]:
        theta = begin.copy()
        theta[:, free] += shifts[group]
        base = log_predictions(loop, theta)
        errors = (base - goal) * seen
        loss = float((each * np.log1p((errors / ROBUST) ** 2)).sum() * ROBUST**2)
        return theta, base, errors, loss + float((shifts * (stiff @ shifts) / widths).sum())

    shifts = np.zeros((len(groups), len(free)))
    theta, base, errors, loss = errors_of(shifts)
    damping = DAMPING
    for _ in range(ITERATIONS):
        slopes = np.stack([_slope(loop, theta, base, i) for i in free], axis=2)
        normal, gradient, curved = _normal(
            shifts, group, slopes, errors, each / (1 + (errors / ROBUST) ** 2), stiff, widths
        )
        for _ in range(TRIALS):
            damped = normal.copy()
            damped[np.diag_indices_from(damped)] += damping * (curved + alone)
            try:  # a direction needs no more than single precision, in half the time
                factor = cho_factor(damped.astype(np.float32), overwrite_a=True, check_finite=False)
            except LinAlgError:
                damping *= HARDER
                continue
            step = cho_solve(factor, gradient, check_finite=False)
            trial = shifts - step.reshape(shifts.shape)
            found = errors_of(trial)
            if found[3] < loss:
                shifts, (theta, base, errors, loss) = trial, found
                damping = max(damping / SOFTER, LEAST_DAMPING)
                break
            damping *= HARDER
        else:
            break
    effects = np.zeros((len(known), len(NAMES)))
    effects[:, free] = (share**2 / NOISE**2)[:, None] * (member.T @ (stiff @ shifts))
    return StackFit({level: effects[i] for level, i in place.items()}, {}, source)


def _slope(loop: Loop, theta: Floats, base: Floats, parameter: int) -> Floats:
    moved = theta.copy()
    moved[:, parameter] += DELTA
    return (log_predictions(loop, moved) - base) / DELTA


def _normal(
    shifts: Floats, group: Index, slopes: Floats, errors: Floats, weights: Floats, stiff: Floats, widths: Floats
) -> tuple[Floats, Floats, Floats]:
    """Normal matrix and gradient of the weighted squares, and the curvature of the data alone, over shifts
    [groups, parameters] laid flat."""
    groups, parameters = shifts.shape
    blocks = np.zeros((groups, parameters, parameters))
    np.add.at(blocks, group, np.einsum("nm,nmp,nmq->npq", weights, slopes, slopes, optimize=True))
    pulls = stiff @ shifts / widths
    np.add.at(pulls, group, np.einsum("nm,nmp,nm->np", weights, slopes, errors, optimize=True))
    normal = np.kron(stiff, np.diag(1 / widths))
    tiles = normal.reshape(groups, parameters, groups, parameters)
    every = np.arange(groups)
    tiles[every, :, every, :] += blocks
    curved: Floats = np.einsum("gpp->gp", blocks).ravel()
    return np.asarray(normal, dtype=np.float64), pulls.ravel(), curved

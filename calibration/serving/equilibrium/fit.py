"""Fit of engine parameters to measured points, partially pooled over levels.

Least squares on log errors of TPOT, throughput and TTFT with a Cauchy loss, every effect of a level having a normal
prior about zero, which is a residual of its own: what all stacks share is said once, and few points move little
(`scipy.optimize.least_squares`, trust region on a sparse Jacobian). The derivative by a parameter is one more draw of
all points; effects of levels follow by the chain rule. The curvature at the end is the posterior (Laplace).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.optimize import least_squares

from calibration.arrays import Index
from calibration.serving.engine_fit import FITTED_METRICS, NOISE, ROBUST, WEIGHTS
from calibration.serving.equilibrium.parameters import NAMES, SHARES, WIDTHS, Effects, Given, assumed
from calibration.serving.equilibrium.points import Equilibria
from simulator.model.arrays import Floats

ITERATIONS = 16  # of the trust region (assumed: later ones change medians by less than two draws of a split differ)
TOLERANCE = 1e-3  # relative, of the loss (assumed)
DELTA = 0.02  # log units, by which a parameter is moved for its derivative (assumed)
LARGEST_ERROR = 5.0  # log units: what an equilibrium gives beyond it says no more


def log_predictions(points: Equilibria, theta: Floats) -> Floats:
    """theta: [points, draws, parameters] -> [points, draws, FITTED_METRICS]"""
    found = points.seen(Given(theta)).metrics(points)
    values = np.stack([found[name] for name in FITTED_METRICS], axis=2)
    return np.asarray(np.log(np.maximum(values, 1e-300)))


@dataclass(frozen=True)
class _Robust:
    """Loss of residuals: Cauchy of the first `data` of them, plain of the priors behind."""

    data: int

    def __call__(self, z: Floats, /, *, cost_only: bool | None = None) -> Floats:
        rho = np.empty((3, len(z)))
        rho[0], rho[1], rho[2] = z, 1.0, 0.0
        scaled = z[: self.data] / ROBUST**2
        rho[0, : self.data] = ROBUST**2 * np.log1p(scaled)
        rho[1, : self.data] = 1 / (1 + scaled)
        rho[2, : self.data] = -1 / ROBUST**2 / (1 + scaled) ** 2
        return rho


def fit_effects(
    points: Equilibria,
    levels: Sequence[tuple[str, ...]],
    target: Floats,
    weight: Floats,
    frozen: Sequence[str] = (),
) -> Effects:
    """target: [points, metrics] logs. weight: of each point. frozen: parameters kept at their assumed values."""
    kept = np.flatnonzero(weight > 0)
    points, target, weight = points.some(kept), target[kept], weight[kept]
    levels = [levels[i] for i in kept.tolist()]
    begin = np.tile(assumed(), (len(kept), 1))
    known = sorted({level for mine in levels for level in mine})
    place = {level: i for i, level in enumerate(known)}
    rows = np.repeat(np.arange(len(levels)), [len(mine) for mine in levels])
    columns = np.array([place[level] for mine in levels for level in mine])
    member = sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(levels), len(known)))
    free = [i for i, name in enumerate(NAMES) if name not in frozen]
    share = np.array([SHARES[level.partition("=")[0]] for level in known])
    width = share[:, None] * WIDTHS[free]  # [levels, free] prior deviations
    seen = np.isfinite(target)
    goal = np.where(seen, target, 0.0)
    strength = np.sqrt(WEIGHTS * weight[:, None]) * seen
    at = np.flatnonzero(strength.ravel() > 0)
    last: dict[bytes, tuple[Floats, sparse.csr_array]] = {}

    def both(x: Floats) -> tuple[Floats, sparse.csr_array]:
        key = x.tobytes()
        if key not in last:
            theta = begin.copy()
            theta[:, free] += member @ (x.reshape(width.shape) * width)
            moved = np.repeat(theta[:, None], len(free) + 1, axis=1)
            for draw, i in enumerate(free, start=1):
                moved[:, draw, i] += DELTA
            found = log_predictions(points, moved)  # [points, draws, metrics]
            slopes = (found[:, 1:] - found[:, :1]) / DELTA
            errors = np.clip(found[:, 0] - goal, -LARGEST_ERROR, LARGEST_ERROR) * strength
            slopes = np.where(np.isfinite(slopes), slopes, 0.0) * strength[:, None]
            last.clear()
            last[key] = np.concatenate((errors.ravel()[at], NOISE * x)), _jacobian(slopes, member, width, at)
        return last[key]

    def residuals(x: Floats) -> Floats:
        return both(x)[0]

    def jacobian(x: Floats) -> sparse.csr_array:
        return both(x)[1]

    found = least_squares(
        residuals, np.zeros(width.size), jacobian, method="trf", tr_solver="lsmr",
        loss=_Robust(len(at)), max_nfev=ITERATIONS, ftol=TOLERANCE, xtol=TOLERANCE, gtol=TOLERANCE,
    )  # fmt: skip
    effects = np.zeros((len(known), len(NAMES)))
    effects[:, free] = found.x.reshape(width.shape) * width
    return Effects({level: effects[i] for level, i in place.items()})


def _jacobian(slopes: Floats, member: sparse.csr_array, width: Floats, at: Index) -> sparse.csr_array:
    """slopes: [points, parameters, metrics]. Residual (point, metric) by effect (level, parameter), then the priors."""
    points, parameters, metrics = slopes.shape
    pairs = member.tocoo()
    data = slopes[pairs.row] * width[pairs.col][..., None]  # [memberships, parameters, metrics]
    row = pairs.row[:, None, None] * metrics + np.arange(metrics)
    column = pairs.col[:, None, None] * parameters + np.arange(parameters)[:, None]
    row, column = np.broadcast_arrays(row, column)
    whole = sparse.csr_array(
        (data.ravel(), (row.ravel(), column.ravel())), shape=(points * metrics, member.shape[1] * parameters)
    )
    return sparse.vstack((whole[at], sparse.eye_array(width.size, format="csr") * NOISE), format="csr")

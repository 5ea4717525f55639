"""Fit of engine parameters to measured points, partially pooled over levels.

Least squares on log errors of TPOT, throughput and TTFT, each over its noise, with a Cauchy loss; every effect of a
level has a normal prior about zero, which is a residual of its own: what all stacks share is said once, and few points
move little (`scipy.optimize.least_squares`, trust region on a sparse Jacobian). The derivative by a parameter is one
more draw of all points; effects of levels follow by the chain rule. The curvature at the end is that of the posterior
(Laplace).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import sparse
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import least_squares
from scipy.special import ndtri

from calibration.arrays import Index
from calibration.serving.effects import ServingFit
from calibration.serving.equilibria import Equilibria
from calibration.serving.parameters import LEVELS, NAMES, WIDTHS, Given, assumed, kind_of
from calibration.serving.points import Point
from simulator.model.arrays import Floats
from simulator.model.draws import DRAWS
from simulator.model.engine import NOISE as ASSUMED_NOISE

SCORED_METRICS = ("tpot_ms", "total_tok_s_per_gpu", "ttft_ms")
# A median beside a mean tells the steady state from the first wave.
FITTED_METRICS = (*SCORED_METRICS, "median_ttft_ms")
# Log error of one measurement of FITTED_METRICS, at which it counts half (Cauchy): runs of a benchmark differ by less
# in their rates, but first-generation software is far off; TTFT rests on arrivals that no row states (assumed).
NOISE = np.array([0.1, 0.1, 0.3, 0.3])
ITERATIONS = 20  # of the trust region (assumed: later ones change medians by less than two draws of a split differ)
TOLERANCE = 1e-3  # relative, of the loss (assumed)
FIRST_REACH = 5.0  # prior deviations, over all effects, that the first step may go (assumed)
DELTA = 0.02  # log units, by which a parameter is moved for its derivative (assumed)
INSIDE = 0.8  # share of measurements between p10 and p90
FEWEST_FOR_NOISE = 100  # points (assumed)
LARGEST_ERROR = 5.0  # log units: what an equilibrium gives beyond it says no more


def observed(points: Sequence[Point]) -> Floats:
    """[points, FITTED_METRICS] logs of measured values, NaN where missing."""
    given = [{**p.measured, "median_ttft_ms": p.median_ttft_ms or np.nan} for p in points]
    return np.log([[metrics.get(name, np.nan) for name in FITTED_METRICS] for metrics in given])


def log_predictions(points: Equilibria, theta: Floats) -> Floats:
    """theta: [points, draws, parameters] -> [points, draws, FITTED_METRICS]"""
    found = points.seen(Given(theta)).metrics(points)
    values = np.stack([found[name] for name in FITTED_METRICS], axis=2)
    return np.asarray(np.log(np.maximum(values, 1e-300)))


@dataclass(frozen=True)
class _Robust:
    """Loss of residuals: Cauchy of the first `data` of them, plain of the priors behind.

    The second derivative, negative far out, is said to be none: each step then weighs points as the last one left them,
    and points that are far off still pull.
    """

    data: int

    def __call__(self, z: Floats, /, *, cost_only: bool | None = None) -> Floats:
        rho = np.empty((3, len(z)))
        rho[0], rho[1], rho[2] = z, 1.0, 0.0
        rho[0, : self.data] = np.log1p(z[: self.data])
        rho[1, : self.data] = 1 / (1 + z[: self.data])
        return rho


def fit_effects(
    points: Equilibria,
    levels: Sequence[tuple[str, ...]],
    target: Floats,
    weight: Floats,
    source: str = "",
    frozen: Sequence[str] = (),
    start: tuple[Floats, Floats] | None = None,
    shares: Mapping[str, float] | None = None,
    robust: bool = True,
) -> ServingFit:
    """target: [points, metrics] logs. weight: of each point. frozen: parameters kept as they start.

    start: what effects add to, [points, parameters], and draws of it, [points, DRAWS, parameters]; default: the assumed
    values. What draws differ by at the start, effects take back as far as the points tell. shares: by kind of level, of
    each prior width; default: those of `parameters.LEVELS`. robust: points that are far off pull little, as there are
    among thousands; of a few of one's own none can be spared.
    """
    kept = np.flatnonzero(weight > 0)
    points, target, weight = points.some(kept), target[kept], weight[kept]
    levels = [levels[i] for i in kept.tolist()]
    begin = np.tile(assumed(), (len(kept), 1)) if start is None else start[0][kept]
    known = sorted({level for mine in levels for level in mine})
    place = {level: i for i, level in enumerate(known)}
    rows = np.repeat(np.arange(len(levels)), [len(mine) for mine in levels])
    columns = np.array([place[level] for mine in levels for level in mine])
    member = sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(levels), len(known)))
    free = [i for i, name in enumerate(NAMES) if name not in frozen]
    shares = shares or {kind: share for kind, (share, _) in LEVELS.items()}
    share = np.array([shares[kind_of(level)] for level in known])
    width = share[:, None] * WIDTHS[free]  # [levels, free] prior deviations
    seen = np.isfinite(target)
    goal = np.where(seen, target, 0.0)
    strength = np.sqrt(weight[:, None]) / NOISE * seen
    at = np.flatnonzero(strength.ravel() > 0)
    last: dict[bytes, tuple[Floats, Floats]] = {}

    def both(x: Floats) -> tuple[Floats, Floats]:
        """Residuals, and slopes of the log predictions over their noise, [points, free, metrics]."""
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
            last[key] = np.concatenate((errors.ravel()[at], x)), slopes
        return last[key]

    def residuals(x: Floats) -> Floats:
        return both(x)[0]

    def jacobian(x: Floats) -> sparse.csr_array:
        return _jacobian(both(x)[1], member, width, at)

    loss: _Robust | Literal["linear"] = _Robust(len(at)) if robust else "linear"
    found = least_squares(
        residuals, np.zeros(width.size), jacobian, method="trf", tr_solver="lsmr", loss=loss,
        x_scale=FIRST_REACH, max_nfev=ITERATIONS, ftol=TOLERANCE, xtol=TOLERANCE, gtol=TOLERANCE,
    )  # fmt: skip
    errors, slopes = both(found.x)
    trust = np.zeros(seen.size)
    trust[at] = 1 / (1 + errors[: len(at)] ** 2) if robust else 1.0
    pull = np.zeros((width.size, 0))
    if start is not None:  # [effects, DRAWS]
        differ = start[1][kept] - begin[:, None]
        felt = np.einsum("pfm,pdf->pmd", slopes, differ[..., free]) * trust.reshape(*seen.shape, 1)
        pull = _jacobian(slopes, member, width, np.arange(seen.size))[: seen.size].T @ felt.reshape(seen.size, -1)
    drawn = _posterior(jacobian(found.x), np.concatenate((trust[at], np.ones(width.size))), found.x, pull)
    effects, draws = np.zeros((len(known), len(NAMES))), np.zeros((DRAWS, len(known), len(NAMES)))
    effects[:, free] = found.x.reshape(width.shape) * width
    draws[..., free] = drawn.reshape(DRAWS, *width.shape) * width
    scatter = np.full(seen.size, np.nan)
    scatter[at] = errors[: len(at)]
    return ServingFit(
        {level: effects[i] for level, i in place.items()},
        {level: draws[:, i] for level, i in place.items()},
        source,
        noise=_noise(scatter.reshape(seen.shape) * NOISE),
    )


def _noise(errors: Floats) -> dict[str, float]:
    """Standard deviation of the normal law whose p10 to p90 hold as many errors as those of the points; of few points
    the assumed one. errors: [points, FITTED_METRICS]"""
    found = dict(ASSUMED_NOISE)
    for i, metric in enumerate(SCORED_METRICS):
        seen = errors[np.isfinite(errors[:, i]), i]
        if len(seen) >= FEWEST_FOR_NOISE:
            found[metric] = float(np.quantile(np.abs(seen), INSIDE) / ndtri((1 + INSIDE) / 2))
    return found


def _posterior(jacobian: sparse.csr_array, trust: Floats, most_likely: Floats, pull: Floats) -> Floats:
    """[DRAWS, effects] of a normal law whose precision is the curvature H = J' W J, priors among the residuals. pull:
    [effects, DRAWS or none] gradient that draws of the start bring, which moves their effects by -H^-1 pull."""
    curvature = (jacobian.T @ (jacobian * trust[:, None])).toarray()
    factor = cho_factor(curvature, lower=True)
    white = np.random.default_rng(0).normal(size=(DRAWS, len(most_likely)))
    spread = solve_triangular(np.tril(factor[0]), white.T, lower=True, trans="T")
    moved = cho_solve(factor, pull) if pull.size else 0.0
    return np.asarray((most_likely[:, None] + spread - moved).T)


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
    return sparse.vstack((whole[at], sparse.eye_array(width.size, format="csr")), format="csr")

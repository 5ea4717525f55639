"""From a points file to predictions, their bands and their errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import pandas as pd

from calibration.serving.balance import Loop, balance, loop_of, take
from calibration.serving.engine_parameters import StackFit, family_of, kernel_profile, levels_of
from calibration.serving.point_steps import PointSteps, steps_of
from calibration.serving.points import Unpredictable, parse_point
from simulator.model.arrays import Floats
from simulator.progress import Progress

Z90 = NormalDist().inv_cdf(0.9)  # standard deviations from the median to p10 and to p90
INSIDE = 0.8  # share of the errors between p10 and p90
ROWS_A_REPORT = 50  # of progress (assumed)
# Where nothing was fitted: sigma of log errors with the assumed parameters over published rows, roundly.
ASSUMED_SIGMA = {
    "tpot_ms": 0.4, "tok_s_per_user": 0.4, "total_tok_s_per_gpu": 0.4,
    "output_tok_s_per_gpu": 0.4, "input_tok_s_per_gpu": 0.4, "ttft_ms": 0.9,
}  # fmt: skip


@dataclass(frozen=True)
class PreparedPoints:
    """Points with all that a prediction needs, and the rows that have none."""

    steps: tuple[PointSteps, ...]
    levels: tuple[tuple[str, ...], ...]
    loop: Loop | None  # None without points
    unpredicted: tuple[tuple[int, str, str], ...]  # row, id, reason

    @property
    def coverage_of_points(self) -> float:
        total = len(self.steps) + len(self.unpredicted)
        return len(self.steps) / total if total else 0.0


def prepare(frame: pd.DataFrame, progress: Progress | None = None) -> PreparedPoints:
    """Read every row and build the steps it needs."""
    steps: list[PointSteps] = []
    unpredicted: list[tuple[int, str, str]] = []
    rows = frame.to_dict("records")
    for index, row in enumerate(rows):
        named = {str(key): value for key, value in row.items()}
        try:
            steps.append(steps_of(parse_point(index, named)))
        except Unpredictable as why:
            name = named.get("id")
            unpredicted.append((index, str(index) if name is None else str(name), str(why)))
        if progress and index % ROWS_A_REPORT == 0:
            progress("points", index, len(rows))
    rates = [kernel_profile(s.point.gpu, s.point.engine) for s in steps]
    loop = loop_of(steps, rates) if steps else None
    levels = tuple(levels_of(s.point, s.hardware) for s in steps)
    return PreparedPoints(tuple(steps), levels, loop, tuple(unpredicted))


def some(prepared: PreparedPoints, rows: Sequence[int]) -> PreparedPoints:
    """Those of the points, by place."""
    if prepared.loop is None or not len(rows):
        return PreparedPoints((), (), None, ())
    return PreparedPoints(
        tuple(prepared.steps[i] for i in rows),
        tuple(prepared.levels[i] for i in rows),
        take(prepared.loop, np.asarray(rows, dtype=np.intp)),
        (),
    )


def situation_of(levels: Sequence[str], fit: StackFit) -> str:
    """How far a point is from what was fitted."""
    by_name = {level.partition("=")[0]: level for level in levels}
    if by_name["gpu+engine+model"] in fit.effects:
        return "known"
    for name, situation in (("gpu", "new accelerator"), ("family", "new engine"), ("model", "new model")):
        if by_name[name] not in fit.effects:
            return situation
    return "new combination"


def predictions(prepared: PreparedPoints, fit: StackFit) -> pd.DataFrame:
    """One line for each measured metric of each point."""
    if prepared.loop is None:
        return pd.DataFrame(columns=COLUMNS)
    loop = prepared.loop
    found = balance(loop, fit.theta(prepared.levels))
    return lines_of(prepared, fit, found.metrics(loop), found.per_pool(loop))


def lines_of(
    prepared: PreparedPoints, fit: StackFit, everywhere: Mapping[str, Floats], pools: Mapping[str, Floats]
) -> pd.DataFrame:
    """One line for each measured metric of each point; none where the prediction is not finite.

    everywhere: predictions by metric, each over the points. pools: those of rates over the accelerators of one pool.
    """
    lines = []
    for i, one in enumerate(prepared.steps):
        point = one.point
        situation = situation_of(prepared.levels[i], fit)
        # Where both are given, output counts decode accelerators and input prefill ones.
        per_pool = point.disaggregated and "input_tok_s_per_gpu" in point.measured
        for metric, measured in point.measured.items():
            values = pools if per_pool and metric in pools else everywhere
            predicted = float(values[metric][i])
            if not math.isfinite(predicted):
                continue
            sigma = fit.sigma.get(situation, {}).get(metric, ASSUMED_SIGMA[metric])
            band = math.exp(Z90 * sigma)
            lines.append(
                (
                    point.row, point.id, point.model, point.gpu, point.engine, point.disaggregated, metric, situation,
                    measured, predicted, predicted / band, predicted * band, predicted / measured,
                )
            )  # fmt: skip
    return pd.DataFrame(lines, columns=COLUMNS)


COLUMNS = [
    "row", "id", "model", "gpu", "engine", "disaggregated", "metric", "situation",
    "measured", "predicted", "p10", "p90", "ratio",
]  # fmt: skip


def log_spread(errors: Floats) -> float:
    """Standard deviation of the normal whose p10-p90 band holds 80% of `errors` about zero."""
    finite = errors[np.isfinite(errors)]
    return float(np.quantile(np.abs(finite), INSIDE) / Z90) if len(finite) else math.nan


def engines(prepared: PreparedPoints) -> list[str]:
    return [family_of(s.point.engine) for s in prepared.steps]

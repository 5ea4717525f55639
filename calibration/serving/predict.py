"""From a points file to predictions as distributions, and their errors.

Every point is answered for DRAWS sets of parameters of the fit, with what its row does not say drawn too (whether it
drafted) and the noise of one measurement on top. The prediction is the median of the draws, its band their p10 to p90.
Times are sums of parts with errors of their own, so that a median over normal draws of logs is above what the most
likely parameters give; draws are taken back to these, as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from calibration.serving.effects import ServingFit
from calibration.serving.equilibria import Equilibria, PricedPoint, priced_point
from calibration.serving.parameters import Given, family_of, kind_of, levels_of
from calibration.serving.points import METRICS, MTP_DRAFTS, Point, Unpredictable, parse_point
from simulator.model.arrays import Floats
from simulator.model.draws import normal_scores
from simulator.progress import Progress

ROWS_A_REPORT = 50  # of progress (assumed)
ROWS_AT_ONCE = 100  # whose draws are arrays in memory together: some 500 MB (assumed)
BAND = (10.0, 50.0, 90.0)  # percentiles of the draws


@dataclass(frozen=True)
class PreparedPoints:
    """Points with all that a prediction needs, and the rows that have none. also: by place, the same point with drafts
    where its row says that nobody wrote down whether it drafted."""

    points: tuple[PricedPoint, ...]
    levels: tuple[tuple[str, ...], ...]
    also: dict[int, PricedPoint]
    unpredicted: tuple[tuple[int, str, str], ...]  # row, id, reason

    @property
    def coverage_of_points(self) -> float:
        total = len(self.points) + len(self.unpredicted)
        return len(self.points) / total if total else 0.0


def prepare(frame: pd.DataFrame, progress: Progress | None = None) -> PreparedPoints:
    """Read every row and price the steps it needs."""
    points: list[PricedPoint] = []
    also: dict[int, PricedPoint] = {}
    unpredicted: list[tuple[int, str, str]] = []
    rows = frame.to_dict("records")
    for index, row in enumerate(rows):
        named = {str(key): value for key, value in row.items()}
        try:
            points.append(priced_point(parse_point(index, named)))
        except Unpredictable as why:
            name = named.get("id")
            unpredicted.append((index, str(index) if name is None else str(name), str(why)))
            continue
        drafting = _drafting(points[-1].point)
        if drafting is not None:
            also[len(points) - 1] = drafting
        if progress and index % ROWS_A_REPORT == 0:
            progress("points", index, len(rows))
    levels = tuple(levels_of(p.point, p.hardware) for p in points)
    return PreparedPoints(tuple(points), levels, also, tuple(unpredicted))


def _drafting(point: Point) -> PricedPoint | None:
    if point.drafts_recorded:
        return None
    try:
        return priced_point(replace(point, drafts=MTP_DRAFTS))
    except Unpredictable:  # the model has nothing to draft with
        return None


def some(prepared: PreparedPoints, rows: Sequence[int]) -> PreparedPoints:
    """Those of the points, by place."""
    return PreparedPoints(
        tuple(prepared.points[i] for i in rows),
        tuple(prepared.levels[i] for i in rows),
        {new: prepared.also[old] for new, old in enumerate(rows) if old in prepared.also},
        (),
    )


def situation_of(levels: Sequence[str], fit: ServingFit) -> str:
    """How far a point is from what was fitted."""
    by_kind = {kind_of(level): level for level in levels}
    if by_kind["gpu+engine+model"] in fit.effects:
        return "known"
    for kind, situation in (("gpu", "new accelerator"), ("family", "new engine"), ("model", "new model")):
        if by_kind[kind] not in fit.effects:
            return situation
    return "new combination"


def drawn_metrics(prepared: PreparedPoints, fit: ServingFit) -> dict[str, Floats]:
    """[points, DRAWS] of each metric of a points file, as one more measurement would show it; of a disaggregated row
    also per pool, as `decode output_tok_s_per_gpu` and `prefill input_tok_s_per_gpu`."""
    parts: dict[str, list[Floats]] = {}
    for begin in range(0, len(prepared.points), ROWS_AT_ONCE):
        rows = range(begin, min(begin + ROWS_AT_ONCE, len(prepared.points)))
        levels = [prepared.levels[i] for i in rows]
        theta = np.concatenate((fit.theta(levels)[:, None], fit.drawn(levels)), axis=1)
        found = _answered([prepared.points[i] for i in rows], theta)
        again = [i for i in rows if i in prepared.also]
        if again:
            at = np.array(again) - begin
            other = _answered([prepared.also[i] for i in again], theta[at])
            for name, values in found.items():
                values[at, ::2] = other[name][:, ::2]
        for name, values in found.items():
            parts.setdefault(name, []).append(values)
    speed, arrivals = normal_scores(1), normal_scores(2)
    out = {}
    for name, chunks in parts.items():
        metric = name.rpartition(" ")[2]
        if metric == "ttft_ms":
            noise = fit.noise["ttft_ms"] * arrivals
        elif metric == "tpot_ms":
            noise = fit.noise["tpot_ms"] * speed
        else:
            noise = -fit.noise["tpot_ms" if metric == "tok_s_per_user" else "total_tok_s_per_gpu"] * speed
        out[name] = np.concatenate(chunks) * np.exp(noise)
    return out


def _answered(points: Sequence[PricedPoint], theta: Floats) -> dict[str, Floats]:
    """theta: the most likely parameters, then draws."""
    asked = Equilibria(points)
    seen = asked.seen(Given(theta))
    everywhere, pools = seen.metrics(asked), seen.per_pool(asked)
    found = {name: everywhere[name] for name in METRICS} | {POOL_OF[name]: values for name, values in pools.items()}
    return {
        name: each[:, 1:] * (each[:, :1] / np.median(each[:, 1:], axis=1, keepdims=True))
        for name, each in found.items()
    }


POOL_OF = {"output_tok_s_per_gpu": "decode output_tok_s_per_gpu", "input_tok_s_per_gpu": "prefill input_tok_s_per_gpu"}


def predictions(prepared: PreparedPoints, fit: ServingFit) -> pd.DataFrame:
    """One line for each measured metric of each point."""
    if not prepared.points:
        return pd.DataFrame(columns=COLUMNS)
    return lines_of(prepared, fit)


def lines_of(prepared: PreparedPoints, fit: ServingFit, instead: Mapping[str, Floats] | None = None) -> pd.DataFrame:
    """One line for each measured metric of each point; none where the prediction is not finite.

    instead: predictions of another model by metric, each over the points, to which the draws give their bands.
    """
    bands = {name: np.percentile(drawn, BAND, axis=1) for name, drawn in drawn_metrics(prepared, fit).items()}
    lines = []
    for i, one in enumerate(prepared.points):
        point = one.point
        situation = situation_of(prepared.levels[i], fit)
        # Where both are given, output counts decode accelerators and input prefill ones.
        per_pool = point.disaggregated and "input_tok_s_per_gpu" in point.measured
        for metric, measured in point.measured.items():
            name = POOL_OF.get(metric, metric) if per_pool else metric
            p10, predicted, p90 = (float(band[i]) for band in bands[name])
            if instead is not None:
                value = float(instead[metric][i])
                if not math.isfinite(value):
                    continue
                p10, predicted, p90 = (end * value / predicted for end in (p10, predicted, p90))
            lines.append(
                (
                    point.row, point.id, point.model, point.gpu, point.engine, point.disaggregated, metric, situation,
                    measured, predicted, p10, p90, predicted / measured,
                )
            )  # fmt: skip
    return pd.DataFrame(lines, columns=COLUMNS)


COLUMNS = [
    "row", "id", "model", "gpu", "engine", "disaggregated", "metric", "situation",
    "measured", "predicted", "p10", "p90", "ratio",
]  # fmt: skip


def equilibria(prepared: PreparedPoints) -> Equilibria:
    return Equilibria(prepared.points)


def engines(prepared: PreparedPoints) -> list[str]:
    return [family_of(p.point.engine) for p in prepared.points]


def saturated(point: Point, share: float) -> bool:
    """Whether TTFT is above that share of the decode time: queueing for admission, not service."""
    ttft, tpot = (point.measured.get(name, math.nan) for name in ("ttft_ms", "tpot_ms"))
    return ttft > share * tpot * point.output

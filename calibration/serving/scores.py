"""Errors of predictions of measured points, metric by metric."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from calibration.serving.points import METRICS
from calibration.serving.predict import PreparedPoints


@dataclass(frozen=True)
class MetricScores:
    """Errors of one metric over `n` points; error: predicted / measured - 1.

    median_ape, mape: median and mean of absolute errors. bias: median of signed ones. coverage: share of the points
    between p10 and p90 of their prediction.
    """

    n: int
    median_ape: float
    mape: float
    bias: float
    coverage: float

    @classmethod
    def of(cls, lines: pd.DataFrame) -> MetricScores:
        """Of some lines of `predictions`, all of one metric."""
        ratio = lines["ratio"].to_numpy()
        inside = (lines["measured"] >= lines["p10"]) & (lines["measured"] <= lines["p90"])
        return cls(
            len(lines),
            float(np.median(np.abs(ratio - 1))),
            float(np.mean(np.abs(ratio - 1))),
            float(np.median(ratio - 1)),
            float(inside.mean()),
        )


ScoresByMetric = dict[str, MetricScores]


@dataclass(frozen=True)
class UnpredictedRow:
    """A point without a prediction, and why."""

    row: int
    id: str
    reason: str


@dataclass(frozen=True)
class DistrustedRow:
    """A point whose measurement contradicts itself or others, and by which rule."""

    row: int
    reason: str


@dataclass(frozen=True)
class GroupScores:
    """Points of one stack, model and form of serving."""

    model: str
    gpu: str
    engine: str
    disaggregated: bool
    metrics: ScoresByMetric


@dataclass(frozen=True)
class ValidationReport:
    """How well points are predicted. overall: with the distrusted ones; trusted: without."""

    points: int
    predicted: int
    coverage_of_points: float
    unpredicted: tuple[UnpredictedRow, ...]
    overall: ScoresByMetric
    distrusted: tuple[DistrustedRow, ...]
    trusted: ScoresByMetric
    groups: tuple[GroupScores, ...]

    def to_json(self) -> dict[str, Any]:
        """The answer of `moeplan validate --json`."""
        return asdict(self)


def scores_by_metric(lines: pd.DataFrame) -> ScoresByMetric:
    """Errors of each metric that some line has."""
    return {m: MetricScores.of(lines[lines["metric"] == m]) for m in METRICS if (lines["metric"] == m).any()}


def report(prepared: PreparedPoints, lines: pd.DataFrame) -> ValidationReport:
    """lines: of `predictions`."""
    apart = {s.point.row: s.point.distrusted for s in prepared.points if s.point.distrusted}
    groups = [
        GroupScores(str(model), str(gpu), str(engine), bool(disaggregated), scores_by_metric(part))
        for (model, gpu, engine, disaggregated), part in lines.groupby(["model", "gpu", "engine", "disaggregated"])
    ]
    return ValidationReport(
        points=len(prepared.points) + len(prepared.unpredicted),
        predicted=len(prepared.points),
        coverage_of_points=prepared.coverage_of_points,
        unpredicted=tuple(UnpredictedRow(*one) for one in prepared.unpredicted),
        overall=scores_by_metric(lines),
        distrusted=tuple(DistrustedRow(row, why) for row, why in apart.items()),
        trusted=scores_by_metric(lines[~lines["row"].isin(list(apart))]),
        groups=tuple(groups),
    )

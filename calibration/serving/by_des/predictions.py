"""Every point played, on the cores of this machine: predictions by the discrete-event model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import pandas as pd

from calibration.serving.by_des.benchmark import benchmark_of, requests_of
from calibration.serving.by_des.engine import FittedEngine, engines_of_rows
from calibration.serving.by_des.play import reported
from calibration.serving.effects import ServingFit
from calibration.serving.points import METRICS, Point, Unpredictable
from calibration.serving.predict import PreparedPoints, lines_of, some
from hw_profiles.loading import CatalogError
from simulator.model.memory import DoesNotFitError
from simulator.model.parallelism import ParallelismError
from simulator.planner.executor import run_all
from simulator.progress import Progress
from simulator.scenario import ScenarioError

ROWS_TOGETHER = 8  # that a process takes at a time (assumed)

Answer = dict[str, float] | str  # every metric, or why a row cannot be played
Rows = Sequence[tuple[Point, FittedEngine]]


def predictions_by_des(
    prepared: PreparedPoints, fit: ServingFit, progress: Progress | None = None
) -> tuple[PreparedPoints, pd.DataFrame]:
    """The points that can be played, the others among the rows without a prediction; and the lines of the former, as
    `calibration.serving.predict.predictions` has them."""
    points = [priced.point for priced in prepared.points]
    # Long ones first, so that no process ends long after the others.
    order = sorted(range(len(points)), key=lambda i: -requests_of(points[i]))
    rows = list(zip(points, engines_of_rows(points, prepared.levels, fit), strict=True))
    tasks = [[rows[i] for i in order[at : at + ROWS_TOGETHER]] for at in range(0, len(order), ROWS_TOGETHER)]

    def told(ended: int) -> None:
        if progress:
            progress("played", min(len(points), ended * ROWS_TOGETHER), len(points))

    answers = dict(zip(order, chain.from_iterable(run_all(_answers, tasks, told)), strict=True))
    played = [i for i in range(len(points)) if isinstance(answers[i], dict)]
    unplayed = [(points[i].row, points[i].id, answer) for i, answer in answers.items() if isinstance(answer, str)]
    kept = replace(some(prepared, played), unpredicted=tuple(sorted((*prepared.unpredicted, *unplayed))))
    found = [answer for i in played if isinstance(answer := answers[i], dict)]
    values = {metric: np.array([answer[metric] for answer in found]) for metric in METRICS}
    return kept, lines_of(kept, fit, values)


def _answers(rows: Rows) -> list[Answer]:
    return [_answer(point, engine) for point, engine in rows]


def _answer(point: Point, engine: FittedEngine) -> Answer:
    try:
        return reported(benchmark_of(point, engine)).metrics(point)
    except (Unpredictable, ScenarioError, CatalogError, ParallelismError, DoesNotFitError) as why:
        return str(why)

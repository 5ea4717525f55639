"""Published points with fits of some of them, and the splits into fitted and predicted rows that several scripts share.

Splits: random halves of the rows (neighbours of a sweep fall on both sides), drawn three times, for one draw and the
next differ by as much as a change of the model makes; each accelerator left out; each engine left out, and each family
of them (SGLang with Dynamo+SGLang); each model left out; all disaggregated rows left out (fit on colocated ones); all
rows from one month on left out. Older runs of a configuration are left out of fits and scores alike (their notes say
so): software moved on. Rows that another rule of `calibration.serving.points.distrust` names are not fitted, and
scored apart.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calibration.arrays import Index
from calibration.serving.effects import ServingFit
from calibration.serving.fit import SCORED_METRICS, fit_effects, log_predictions, observed
from calibration.serving.points import UNKNOWN, read_points
from calibration.serving.predict import BAND, drawn_metrics, engines, equilibria, prepare, saturated, some
from calibration.serving.served_model import preset_of
from simulator.model.arrays import Floats

# TTFT above this share of the decode time is queueing for admission, not service (assumed).
SATURATED = 0.5
LATER = "2026-06"  # month from which rows are predicted by those before (assumed)
FEWEST_TEST = 8  # rows of a fold, from which its median is told (assumed)
DRAWS = ("random half", "random half, second draw", "random half, third draw")
OLDER = "older run of a configuration"


class Study:
    """Points of one or several files, ready to be fitted and scored."""

    def __init__(self, *paths: Path) -> None:
        self.everything = prepare(pd.concat([read_points(path) for path in paths], ignore_index=True))
        reasons = [p.point.distrusted for p in self.everything.points]
        self.rows: Index = np.flatnonzero([reason != OLDER for reason in reasons])
        self.trusted = np.array([not reasons[i] for i in self.rows])
        self.distrusted = Counter(reason for reason in reasons if reason)
        self.prepared = some(self.everything, self.rows.tolist())
        self.levels = list(self.prepared.levels)
        self.equilibria = equilibria(self.prepared)
        points = [p.point for p in self.prepared.points]
        self.target = observed(points)
        self.gpu = np.array([p.hardware.name for p in self.prepared.points])
        self.engine = np.array([p.engine for p in points])
        self.family = np.array(engines(self.prepared))
        self.model = np.array([p.model for p in points])
        self.network = np.array([preset_of(p.model) for p in points])  # one for all versions of its weights
        self.disaggregated = np.array([p.disaggregated for p in points])
        self.month = np.array([p.released for p in points])
        self.saturated = np.array([saturated(p, SATURATED) for p in points])

    def fit(self, train: Index, frozen: Sequence[str] = ()) -> ServingFit:
        levels = [self.levels[i] for i in train]
        weight = self.trusted[train].astype(float)
        return fit_effects(
            self.equilibria.some(train), levels, self.target[train], weight, "published serving points", frozen
        )

    def errors(self, fit: ServingFit, test: Index) -> Floats:
        """[test, SCORED_METRICS] log(predicted / measured), of the most likely parameters."""
        theta = fit.theta([self.levels[i] for i in test])
        found = log_predictions(self.equilibria.some(test), theta[:, None])[:, 0] - self.target[test]
        return np.asarray(found[:, : len(SCORED_METRICS)])

    def bands(self, fit: ServingFit, test: Index) -> Floats:
        """[BAND, test, SCORED_METRICS] log(predicted / measured) of the draws' p10, median and p90."""
        drawn = drawn_metrics(some(self.prepared, test.tolist()), fit)
        found = np.log([np.percentile(drawn[name], BAND, axis=1) for name in SCORED_METRICS])
        return np.asarray(found.transpose(1, 2, 0) - self.target[test][:, : len(SCORED_METRICS)])


Fold = tuple[str, Index, Index]  # name, train, test


def folds(study: Study) -> dict[str, list[Fold]]:
    """Splits by name."""
    everything = np.arange(len(study.rows))

    def halves(draw: int) -> list[Fold]:
        half = np.random.default_rng(draw).permutation(len(everything)) % 2
        return [(str(side), everything[half != side], everything[half == side]) for side in (0, 1)]

    def without(values: NDArray[Any]) -> list[Fold]:
        named = [(str(v), everything[values != v], everything[values == v]) for v in np.unique(values)]
        return [fold for fold in named if len(fold[2]) >= FEWEST_TEST]

    return {
        **{name: halves(draw) for draw, name in enumerate(DRAWS)},
        "unseen accelerator": without(study.gpu),
        "unseen engine": without(study.engine),
        "unseen engine family": without(study.family),
        "unseen model": without(study.network),
        "colocated to disaggregated": [
            ("disaggregated", everything[~study.disaggregated], everything[study.disaggregated])
        ],
        "later software": [_later(study)],
    }


def _later(study: Study) -> Fold:
    """Rows from `LATER` on of stacks and models that earlier rows know, which are all that is fitted."""
    after = (study.month >= LATER) & (study.month != UNKNOWN)
    what = list(zip(study.gpu, study.engine, study.network, strict=True))
    known = {what[i] for i in np.flatnonzero(~after)}
    return LATER, np.flatnonzero(~after), np.flatnonzero(after & [one in known for one in what])


def stacks(study: Study, rows: Index) -> list[Index]:
    """Places in `rows` of each stack: accelerator, engine, model and form."""
    found: dict[tuple[str, str, str, bool], list[int]] = {}
    for place, row in enumerate(rows):
        name = (study.gpu[row], study.engine[row], study.model[row], bool(study.disaggregated[row]))
        found.setdefault(name, []).append(place)
    return [np.array(places, dtype=np.intp) for places in found.values()]


def unsaturated(study: Study, rows: Index, errors: Floats) -> Floats:
    """`errors` of `rows`, [..., rows, SCORED_METRICS], without TTFT where it is queueing for admission."""
    out = errors.copy()
    out[..., study.saturated[rows], SCORED_METRICS.index("ttft_ms")] = np.nan
    return out


def medians(errors: Floats) -> dict[str, float]:
    """Median absolute errors by metric."""
    found = np.nanmedian(np.abs(np.expm1(errors)), axis=0)
    return {metric: round(float(m), 4) for metric, m in zip(SCORED_METRICS, found, strict=True)}


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """The first line of a script's docstring, and the files of points that it reads."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0] if doc else None)
    parser.add_argument("points", type=Path, nargs="+")
    return parser

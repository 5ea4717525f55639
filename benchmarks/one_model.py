"""Measured points predicted by the steady state itself, with engine parameters fitted to others of them.

    python -m benchmarks.one_model POINTS.csv [--also MORE.csv] [--splits NAME ...] [--json FILE]

What `validate` scores today is a model of its own; this is the model that agrees with the discrete-event one. Splits
are those of `benchmarks.study`, with one draw of random halves; `--also` names points that no fit sees.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.study import SATURATED, Study, folds
from calibration.arrays import Index
from calibration.serving.engine_fit import SCORED_METRICS, observed
from calibration.serving.equilibrium.fit import fit_effects, log_predictions
from calibration.serving.equilibrium.parameters import NAMES, Effects, levels_of
from calibration.serving.equilibrium.points import Equilibria, PricedPoint, priced_point
from calibration.serving.points import Unpredictable, parse_point, read_points
from runtime.machine import machine_facts
from simulator.model.arrays import Floats

SPLITS = ("random half", "colocated to disaggregated", "later software", "unseen accelerator", "unseen engine",
          "unseen model")  # fmt: skip


@cache
def study_of(path: Path) -> tuple[Study, Equilibria, list[tuple[str, ...]]]:
    study = Study(path)
    priced = [priced_point(one.point) for one in study.steps]
    return study, Equilibria(priced), [levels_of(p.point, p.hardware) for p in priced]


def errors_of(points: Equilibria, effects: Effects, levels: Sequence[tuple[str, ...]], target: Floats) -> Floats:
    """[points, SCORED_METRICS] log(predicted / measured)."""
    found = log_predictions(points, effects.theta(levels)[:, None])[:, 0]
    return np.asarray((found - target)[:, : len(SCORED_METRICS)])


def fold(task: tuple[Path, str, int]) -> tuple[str, str, Index, Floats, int]:
    """Split, name, rows predicted, their errors, and how many effects the fit has."""
    path, split, number = task
    study, points, levels = study_of(path)
    name, train, test = folds(study)[split][number]
    weight = study.trusted[train].astype(float)
    effects = fit_effects(points.some(train), [levels[i] for i in train], study.target[train], weight)
    errors = errors_of(points.some(test), effects, [levels[i] for i in test], study.target[test])
    errors[study.saturated[test], SCORED_METRICS.index("ttft_ms")] = np.nan
    return split, name, test, errors[study.trusted[test]], len(effects.by_level) * len(NAMES)


def unseen(path: Path, also: Path) -> tuple[Floats, int]:
    """Errors on points of another file, of a fit to all of the first."""
    study, points, levels = study_of(path)
    effects = fit_effects(points, levels, study.target, study.trusted.astype(float))
    others = list(_points(also))
    target = observed([p.point for p in others])
    own = [levels_of(p.point, p.hardware) for p in others]
    errors = errors_of(Equilibria(others), effects, own, target)
    measured = np.exp(target)
    output = np.array([p.point.output for p in others])
    errors[measured[:, 2] > SATURATED * measured[:, 0] * output, 2] = np.nan
    return errors, len(others)


def _points(path: Path) -> Iterator[PricedPoint]:
    for index, row in enumerate(read_points(path).to_dict("records")):
        try:
            point = parse_point(index, {str(key): value for key, value in row.items()})
            if not point.distrusted:
                yield priced_point(point)
        except Unpredictable:
            continue


def summary(errors: Floats) -> dict[str, dict[str, float]]:
    """Median absolute error and median error by metric; TTFT where it is not saturated."""
    table = {}
    for i, metric in enumerate(SCORED_METRICS):
        seen = errors[np.isfinite(errors[:, i]), i]
        if len(seen):
            ape = np.abs(np.expm1(seen))
            table[metric] = {
                "n": len(seen),
                "median_ape": round(float(np.median(ape)), 4),
                "bias": round(float(np.median(np.expm1(seen))), 4),
            }
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("points", type=Path)
    parser.add_argument("--also", type=Path)
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=SPLITS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    asked = parser.parse_args()
    begun = time.perf_counter()
    study, _, _ = study_of(asked.points)
    todo = [(asked.points, split, i) for split in asked.splits for i in range(len(folds(study)[split]))]
    report: dict[str, Any] = {"machine": machine_facts(), "parameters": list(NAMES), "splits": {}}
    found: dict[str, list[Floats]] = {}
    effects: dict[str, list[int]] = {}
    with ProcessPoolExecutor(asked.processes, get_context("spawn")) as processes:
        for split, name, _, errors, count in processes.map(fold, todo):
            found.setdefault(split, []).append(errors)
            effects.setdefault(split, []).append(count)
            print(f"{split}: {name}: {summary(errors)}", flush=True)
            report["splits"][split] = {
                "effects": max(effects[split]),
                "folds": len(found[split]),
                "overall": summary(np.concatenate(found[split])),
            }
            _keep(report, begun, asked.json)
    if asked.also:
        errors, rows = unseen(asked.points, asked.also)
        report["other points"] = {"rows": rows, "overall": summary(errors)}
        print(f"{asked.also.name}: {report['other points']}", flush=True)
        _keep(report, begun, asked.json)


def _keep(report: dict[str, Any], begun: float, path: Path | None) -> None:
    report["wall_s"] = round(time.perf_counter() - begun, 1)
    if path is not None:
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

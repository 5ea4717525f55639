"""Accuracy of serving predictions on published points that the fit did not see, and what each term carries.

    python -m benchmarks.accuracy POINTS.csv [MORE.csv] [--splits NAME ...] [--ablations] [--ship FILE.json]

Splits and what is left out of them: `benchmarks.study`. Bands are those of the draws of each fold's fit, which has not
seen the rows that it predicts. "own points" gives some rows of a stack to `calibration.serving.own_stack`. Ablations
take a parameter or a kind of level away and fit the rest anew, on the first fold of each of ABLATED.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.own_points import own_points
from benchmarks.study import Study, folds, medians, parser_of, unsaturated
from calibration.arrays import Index
from calibration.serving import effects
from calibration.serving.fit import SCORED_METRICS
from calibration.serving.parameters import LEVELS, NAMES, kind_of
from runtime.machine import machine_facts
from simulator.model.arrays import Floats

RESULTS = Path(__file__).resolve().parent / "results" / "accuracy.json"
ABLATED = ("random half", "unseen accelerator", "colocated to disaggregated", "later software")
FEWEST_OF_GROUP = 8  # rows whose bias is told (assumed)

_studies: list[Study] = []  # of this process; those that fork from it share its arrays


def score(bands: Floats) -> dict[str, dict[str, float]]:
    """By metric; bands: [p10 median p90, rows, SCORED_METRICS] log(predicted / measured)."""
    out = {}
    for i, metric in enumerate(SCORED_METRICS):
        low, middle, high = bands[:, np.isfinite(bands[1, :, i]), i]
        if len(middle):
            ape = np.abs(np.expm1(middle))
            out[metric] = {
                "n": len(middle),
                "median_ape": round(float(np.median(ape)), 4),
                "mape": round(float(ape.mean()), 4),
                "bias": round(float(np.median(np.expm1(middle))), 4),
                "coverage": round(float(((low <= 0) & (high >= 0)).mean()), 4),
            }
    return out


def predicted(task: tuple[str, int]) -> tuple[str, Index, Floats, int]:
    """Of one fold: the trusted rows that it predicts, their bands, TTFT of saturated rows left out, and how many
    effects its fit has."""
    split, number = task
    study = _studies[0]
    _, train, test = folds(study)[split][number]
    fit = study.fit(train)
    test = test[study.trusted[test]]
    return split, test, unsaturated(study, test, study.bands(fit, test)), len(fit.effects) * len(NAMES)


def of_form(study: Study, rows: Index, bands: Floats) -> dict[str, Any]:
    """Overall, and by form of serving."""
    apart = study.disaggregated[rows]
    out = {"overall": score(bands)}
    if apart.any() and not apart.all():
        out |= {"colocated": score(bands[:, ~apart]), "disaggregated": score(bands[:, apart])}
    return out


def ablated(task: tuple[str, str]) -> tuple[str, str, dict[str, float], int]:
    """Held-out medians on the first fold of a split, with one parameter or kind of level taken away."""
    split, without = task
    study = _studies[0]
    _, train, test = folds(study)[split][0]
    everything = study.levels
    study.levels = [tuple(level for level in mine if kind_of(level) != without) for mine in everything]
    fit = study.fit(train, (without,) if without in NAMES else ())
    study.levels = everything
    test = test[study.trusted[test]]
    known = {level: fit.effects[level] for level in fit.effects if kind_of(level) != without}
    found = study.errors(effects.ServingFit(known), test)
    return split, without, medians(unsaturated(study, test, found)), len(known) * len(NAMES)


def biased(study: Study, fit: effects.ServingFit) -> list[dict[str, Any]]:
    """Median errors of groups of rows of one accelerator, engine, model and form that the fit has seen."""
    rows = np.flatnonzero(study.trusted)
    errors = unsaturated(study, rows, study.errors(fit, rows))
    groups: dict[tuple[str, str, str, bool], list[int]] = {}
    for place, row in enumerate(rows):
        key = (study.gpu[row], study.engine[row], study.model[row], bool(study.disaggregated[row]))
        groups.setdefault(key, []).append(place)
    return [
        {
            "gpu": gpu, "engine": engine, "model": model, "disaggregated": apart, "rows": len(places),
            **{
                metric: round(float(np.nanmedian(np.expm1(errors[places, i]))), 3)
                for i, metric in enumerate(SCORED_METRICS)
                if np.isfinite(errors[places, i]).any()
            },
        }
        for (gpu, engine, model, apart), places in sorted(groups.items())
        if len(places) >= FEWEST_OF_GROUP
    ]  # fmt: skip


def in_processes(todo: Sequence[Any], work: Any) -> Iterable[Any]:
    """In as many processes as there are cores, which share the points of this one."""
    with ProcessPoolExecutor(os.cpu_count(), get_context("fork")) as processes:
        yield from processes.map(work, todo)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--splits", nargs="*")
    parser.add_argument("--ablations", action="store_true")
    parser.add_argument("--own", action="store_true", help="what a few rows of one's own are worth")
    parser.add_argument("--ship", type=Path, help="write the fit on all rows there")
    parser.add_argument("--json", type=Path, default=RESULTS)
    asked = parser.parse_args()
    begun = time.perf_counter()
    study = Study(*asked.points)
    _studies.append(study)
    result: dict[str, Any] = json.loads(asked.json.read_text()) if asked.json.exists() else {}
    result |= {
        "files": [path.name for path in asked.points],
        "machine": machine_facts(),
        "points": len(study.everything.points) + len(study.everything.unpredicted),
        "coverage_of_points": round(study.everything.coverage_of_points, 4),
        "fitted_and_scored_rows": int(study.trusted.sum()),
        "distrusted_rows": dict(study.distrusted),
        "parameters": list(NAMES),
        "levels": {kind: share for kind, (share, _) in LEVELS.items()},
    }
    result.setdefault("splits", {})

    def keep() -> None:
        result["wall_s"] = round(time.perf_counter() - begun, 1)
        asked.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    splits = folds(study)
    if asked.ship:
        fit = study.fit(np.arange(len(study.rows)))
        effects.write(fit, asked.ship)
        rows = np.flatnonzero(study.trusted)
        bands = unsaturated(study, rows, study.bands(fit, rows))
        result["seen"] = {"effects": len(fit.effects) * len(NAMES), **of_form(study, rows, bands)}
        result["groups"] = biased(study, fit)
        print("seen", json.dumps(result["seen"]["overall"]), flush=True)
        keep()
    for split in splits if asked.splits is None else asked.splits:
        parts = list(in_processes([(split, i) for i in range(len(splits[split]))], predicted))
        rows = np.concatenate([test for _, test, _, _ in parts])
        bands = np.concatenate([found for _, _, found, _ in parts], axis=1)
        result["splits"][split] = {
            "folds": len(parts), "effects": max(count for *_, count in parts), **of_form(study, rows, bands)
        }  # fmt: skip
        print(split, json.dumps(result["splits"][split]["overall"]), flush=True)
        keep()
    if asked.own:
        result["own points on an unseen accelerator"] = own_points(study, splits["unseen accelerator"])
        keep()
    if asked.ablations:
        todo = [(split, name) for split in ABLATED for name in ("nothing", *NAMES, *LEVELS)]
        found: dict[str, dict[str, Any]] = {}
        for split, without, errors, count in in_processes(todo, ablated):
            found.setdefault(without, {})[split] = {**errors, "effects": count}
            print(f"{split:28s} {without:24s} {errors}", flush=True)
            result["ablations"] = found
            keep()


if __name__ == "__main__":
    main()

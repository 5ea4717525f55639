"""Spread of the simulator's errors on published serving points that its profiles did not see.

    python -m benchmarks.uncertainty POINTS.csv

writes simulator/uncertainty/data/uncertainty.json, from which `plan`, `simulate` and the dashboard draw their bands.
Each split of `benchmarks.study` fits profiles on its training rows; the test rows are simulated with them.
"""

from __future__ import annotations

import subprocess
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.simulated_points import log_ratios
from benchmarks.study import Fold, Study, folds, parser_of
from calibration.arrays import Index
from calibration.serving.engine_fit import SCORED_METRICS
from calibration.serving.engine_parameters import family_of
from simulator.model.arrays import Floats
from simulator.model.engine import Form, form_of
from simulator.uncertainty.spreads import FILE, Evidence, Knowledge, Metric, Spread

NAMED: dict[str, Metric] = {
    "tpot_ms": "tpot_s",
    "ttft_ms": "ttft_s",
    "total_tok_s_per_gpu": "total_tok_s_per_gpu",
}
QUANTILES = (0.1, 0.5, 0.9)  # that a spread holds
MOST_ROWS = 600  # simulated of each split, drawn at random (assumed)
FEWEST = 20  # points that a spread needs (assumed)
SOURCES: dict[tuple[Knowledge, Form], str] = {
    ("known", "colocated"): "random half",
    ("known", "disaggregated"): "random half",
    ("new form", "disaggregated"): "colocated to disaggregated",
    ("new model", "colocated"): "unseen model",
    ("new model", "disaggregated"): "unseen model",
    ("new accelerator", "colocated"): "unseen accelerator",
    ("new accelerator", "disaggregated"): "unseen accelerator",
    ("new engine", "colocated"): "unseen engine family",
    ("new engine", "disaggregated"): "unseen engine family",
}

Errors = tuple[Index, Floats]  # rows, [rows, SCORED_METRICS] logs of measured / simulated


def write(study: Study) -> Path:
    """Judge every split and write the file."""
    commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], text=True).strip()
    splits = folds(study)
    by_split = {name: errors_of(study, splits[name]) for name in dict.fromkeys(SOURCES.values())}
    assumed = _collect(log_ratios(study, None, _drawn(study, np.arange(len(study.steps)))))
    found = {key: by_split[name] for key, name in SOURCES.items()}
    found |= {("assumed", "colocated"): assumed, ("assumed", "disaggregated"): assumed}
    spreads: dict[Knowledge, dict[Form, dict[Metric, Spread]]] = defaultdict(dict)
    coverage: dict[Knowledge, dict[Form, dict[Metric, float]]] = defaultdict(dict)
    for (kind, form), (rows, errors) in found.items():
        of_form = study.disaggregated[rows] == (form == "disaggregated")
        rows, errors = rows[of_form], errors[of_form]
        spreads[kind][form] = {NAMED[m]: spread(errors[:, i]) for i, m in enumerate(SCORED_METRICS)}
        coverage[kind][form] = {NAMED[m]: covered(errors[:, i], study.gpu[rows]) for i, m in enumerate(SCORED_METRICS)}
        print(kind, form, {m: (s.p10, s.p50, s.p90, s.n) for m, s in spreads[kind][form].items()}, coverage[kind][form])
    evidence = Evidence(
        source="published serving points, simulated as closed loops with profiles that had not seen them",
        date=datetime.now(UTC).date().isoformat(),
        commit=commit,
        served=served(study),
        spreads=dict(spreads),
        coverage=dict(coverage),
    )
    FILE.write_text(evidence.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return FILE


def errors_of(study: Study, split: Sequence[Fold]) -> Errors:
    """Errors on a random part of all test rows of a split, each with the fit of its own fold."""
    drawn = _drawn(study, np.concatenate([test for _, _, test in split]))
    parts = [
        _collect(log_ratios(study, study.fit(train), np.intersect1d(test, drawn)))
        for _, train, test in split
        if np.isin(test, drawn).any()
    ]
    return np.concatenate([rows for rows, _ in parts]), np.concatenate([errors for _, errors in parts])


def spread(errors: Floats) -> Spread:
    """Quantiles of the defined errors."""
    seen = errors[np.isfinite(errors)]
    if len(seen) < FEWEST:
        raise ValueError(f"{len(seen)} measured points are too few for a band; {FEWEST} are needed")
    p10, p50, p90 = (round(float(q), 4) for q in np.quantile(seen, QUANTILES))
    return Spread(p10=p10, p50=p50, p90=p90, n=len(seen))


def covered(errors: Floats, groups: NDArray[np.str_]) -> float:
    """Share of the errors inside the p10-p90 band that the other groups' errors give."""
    seen = np.isfinite(errors)
    errors, groups = errors[seen], groups[seen]
    inside = np.zeros(len(errors), dtype=bool)
    for group in np.unique(groups):
        own = groups == group
        low, high = np.quantile(errors[~own], (QUANTILES[0], QUANTILES[-1]))
        inside[own] = (errors[own] >= low) & (errors[own] <= high)
    return round(float(inside.mean()), 3)


def served(study: Study) -> dict[str, dict[str, tuple[Form, ...]]]:
    """Forms measured with each stack on each accelerator."""
    found: dict[str, dict[str, set[Form]]] = defaultdict(lambda: defaultdict(set))
    for steps in study.steps:
        found[steps.hardware.name][family_of(steps.point.engine)].add(form_of(steps.point.disaggregated))
    return {
        gpu: {stack: tuple(sorted(forms)) for stack, forms in sorted(stacks.items())}
        for gpu, stacks in sorted(found.items())
    }


def _drawn(study: Study, rows: Index) -> Index:
    kept = rows[study.trusted[rows]]
    return np.random.default_rng(0).permutation(kept)[:MOST_ROWS]


def _collect(ratios: Iterable[tuple[int, Floats]]) -> Errors:
    found = list(ratios)
    rows = np.array([row for row, _ in found], dtype=np.intp)
    return rows, np.array([errors for _, errors in found]).reshape(len(found), len(SCORED_METRICS))


if __name__ == "__main__":
    print(write(Study(parser_of(__doc__).parse_args().points)))

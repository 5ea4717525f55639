"""Accuracy of serving predictions on published points that the fit did not see, and what each term carries.

    python -m benchmarks.accuracy POINTS.csv [--ablations] [--ship FILE.json]

Splits and what is left out of them: `benchmarks.study`. Bands of a split use the spread of the residuals of its other
folds, never its own. "levels of stacks
known" takes the median error of each stack off, which other rows of it tell; "own points" gives some rows of a stack to
`calibration.serving.own_stack`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import uncertainty
from benchmarks.own_points import own_points
from benchmarks.study import Fold, Study, folds, medians, parser_of, stacks, unsaturated
from calibration.arrays import Index
from calibration.serving.engine_fit import SCORED_METRICS
from calibration.serving.engine_parameters import NAMES
from calibration.serving.predict import Z90, log_spread
from simulator.model.arrays import Floats

RESULTS = Path(__file__).resolve().parent / "results"
# Split whose residuals give the band where there is only one fold.
BAND_OF = {"colocated to disaggregated": "unseen engine", "later software": "random half"}
FEWEST_OF_LEVEL = 4  # rows from which the level of a stack is taken (assumed)


def held_out(study: Study, split: Sequence[Fold], frozen: Sequence[str] = ()) -> list[tuple[str, Index, Floats]]:
    return [(name, test, study.errors(study.fit(train, frozen), test)) for name, train, test in split]


def score(errors: Floats, bands: Floats) -> dict[str, dict[str, float]]:
    """By metric; bands: [rows, metrics] sigma."""
    out = {}
    for i, metric in enumerate(SCORED_METRICS):
        seen = np.isfinite(errors[:, i])
        if not seen.any():
            continue
        ape = np.abs(np.expm1(errors[seen, i]))
        out[metric] = {
            "n": int(seen.sum()),
            "median_ape": round(float(np.median(ape)), 4),
            "mape": round(float(ape.mean()), 4),
            "bias": round(float(np.median(np.expm1(errors[seen, i]))), 4),
            "coverage": round(float((np.abs(errors[seen, i]) <= Z90 * bands[seen, i]).mean()), 4),
        }
    return out


def levelled(study: Study, test: Index, errors: Floats) -> Floats:
    """Errors with the level of each stack (accelerator, engine, model, form) known: less the median of the other half
    of its rows, drawn at random. What is left is not a matter of how fast that stack is in all."""
    half = np.random.default_rng(0).permutation(len(test)) % 2
    out = errors.copy()
    for mine in stacks(study, test):
        for side in (0, 1):
            others = errors[mine[half[mine] != side]]
            known = np.isfinite(others).sum(axis=0) >= FEWEST_OF_LEVEL
            level = np.array([np.nanmedian(others[:, i]) if known[i] else 0.0 for i in range(errors.shape[1])])
            out[mine[half[mine] == side]] -= level
    return out


def scored(study: Study, found: Sequence[tuple[str, Index, Floats]], fallback: Floats) -> dict[str, Any]:
    """A split: overall, by fold and by model. Each fold's band is the spread over the other folds."""
    bands = []
    for k in range(len(found)):
        others = [errors for j, (_, _, errors) in enumerate(found) if j != k]
        spread = [log_spread(np.concatenate(others)[:, i]) for i in range(len(SCORED_METRICS))] if others else fallback
        bands.append(np.tile(np.array(spread), (len(found[k][1]), 1)))
    test = np.concatenate([rows for _, rows, _ in found])
    errors, band = unsaturated(study, test, np.concatenate([e for _, _, e in found])), np.concatenate(bands)
    kept = study.trusted[test]
    return {
        "overall": score(errors[kept], band[kept]),
        "levels of stacks known": score(levelled(study, test[kept], errors[kept]), band[kept]),
        "with distrusted rows": score(errors, band),
        "by fold": {name: score(e, b) for (name, _, e), b in zip(found, bands, strict=True)},
        "by model": {
            str(m): score(errors[study.model[test] == m], band[study.model[test] == m])
            for m in np.unique(study.model[test])
        },
    }


def spreads(study: Study, found: Sequence[tuple[str, Index, Floats]]) -> Floats:
    errors = np.concatenate([e[study.trusted[test]] for _, test, e in found])
    return np.array([log_spread(errors[:, i]) for i in range(len(SCORED_METRICS))])


def ablations(study: Study, split: Sequence[Fold]) -> dict[str, dict[str, float]]:
    """Held-out medians with one thing taken away and the rest fitted anew."""
    changes: dict[str, Callable[[Study], tuple[Study, tuple[str, ...]]]] = {
        f"{name} not fitted": (lambda s, name=name: (s, (name,)))
        for name in NAMES  # type: ignore[misc]
    }
    changes |= {
        "none": lambda s: (s, ()),
        "assumed kernel rates": lambda s: (s.with_assumed_rates(), ()),
    }
    out = {}
    for name, change in changes.items():
        changed, frozen = change(study)
        errors = np.concatenate([e[study.trusted[test]] for _, test, e in held_out(changed, split, frozen)])
        out[name] = medians(errors)
        print(f"{name:32s} {out[name]}", flush=True)
    return out


def sigma_by_situation(by_split: dict[str, Floats]) -> dict[str, dict[str, float]]:
    """What `validate` draws bands with."""
    situations = {
        "known": "random half",
        "new combination": "colocated to disaggregated",
        "new model": "unseen model",
        "new engine": "unseen engine family",
        "new accelerator": "unseen accelerator",
    }
    out = {}
    for situation, split in situations.items():
        tpot, total, ttft = (round(float(x), 3) for x in by_split[split])
        out[situation] = {
            "tpot_ms": tpot, "tok_s_per_user": tpot, "total_tok_s_per_gpu": total,
            "output_tok_s_per_gpu": total, "input_tok_s_per_gpu": total, "ttft_ms": ttft,
        }  # fmt: skip
    return out


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--ablations", action="store_true")
    parser.add_argument("--ship", type=Path, help="write the fit on all rows there, and the bands of plans")
    asked = parser.parse_args()
    study = Study(asked.points)
    result: dict[str, Any] = {
        "points": len(study.everything.steps) + len(study.everything.unpredicted),
        "coverage_of_points": round(study.everything.coverage_of_points, 4),
        "fitted_and_scored_rows": int(study.trusted.sum()),
        "distrusted_rows": dict(study.distrusted),
        "splits": {},
    }
    by_split: dict[str, Floats] = {}
    for name, split in folds(study).items():
        found = held_out(study, split)
        by_split[name] = spreads(study, found)
        fallback = by_split.get(BAND_OF.get(name, ""), by_split[name])
        result["splits"][name] = scored(study, found, fallback)
        print(name, json.dumps(result["splits"][name]["overall"]), flush=True)
    result["own points on an unseen accelerator"] = own_points(study, folds(study)["unseen accelerator"])
    if asked.ship:
        fitted = study.fit(np.arange(len(study.steps)))
        shipped = replace(fitted, sigma=sigma_by_situation(by_split))
        asked.ship.write_text(json.dumps(shipped.to_json(), indent=1) + "\n", encoding="utf-8")
        uncertainty.write(study)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "accuracy.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if asked.ablations:
        result["ablations (random half)"] = ablations(study, folds(study)["random half"])
        (RESULTS / "accuracy.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

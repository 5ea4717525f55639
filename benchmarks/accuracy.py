"""Accuracy of serving predictions on published points that the fit did not see, and what each term carries.

    python -m benchmarks.accuracy POINTS.csv [--ablations] [--ship FILE.json]

Splits: random halves of the rows (neighbours of a sweep fall on both sides), drawn three times, for one draw and the
next differ by as much as a change of the model makes; each accelerator left out; each engine left out, and each family
of them (SGLang with Dynamo+SGLang); each model left out; all disaggregated rows left out (fit on colocated ones); all
rows from one month on left out. Older runs of a configuration are left out of fits and scores alike (their notes say
so): software moved on. Rows that another rule of `calibration.serving.points.distrust` names are not fitted, and
scored apart. Bands of a split use the spread of the residuals of its other folds, never its own. "levels of stacks
known" takes the median error of each stack off, which other rows of it tell; "own points" gives some rows of a stack to
`calibration.serving.own_stack`.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.serving.balance import Loop, loop_of, take
from calibration.serving.engine_fit import SCORED_METRICS, fit_stack, log_predictions, observed
from calibration.serving.engine_parameters import NAMES, StackFit
from calibration.serving.points import UNKNOWN, read_points
from calibration.serving.predict import Z90, engines, log_spread, prepare
from calibration.serving.served_model import preset_of

RESULTS = Path(__file__).resolve().parent / "results"
# TTFT above this share of the decode time is queueing for admission, not service.
SATURATED = 0.5
# Split whose residuals give the band where there is only one fold.
BAND_OF = {"colocated to disaggregated": "unseen engine", "later software": "random half"}
LATER = "2026-03"  # month from which rows are predicted by those before
FEWEST_TEST = 8
DRAWS = ("random half", "random half, second draw", "random half, third draw")
FEWEST_OF_LEVEL = 4  # rows from which the level of a stack is taken
OLDER = "older run of a configuration"

Array = NDArray[np.float64]
Index = NDArray[np.intp]


class Study:
    """Points of one file, ready to be fitted and scored."""

    def __init__(self, path: Path) -> None:
        frame = read_points(path)
        self.everything = prepare(frame)
        assert self.everything.loop is not None
        reasons = [s.point.distrusted for s in self.everything.steps]
        self.rows: Index = np.flatnonzero([reason != OLDER for reason in reasons])
        self.trusted = np.array([not reasons[i] for i in self.rows])
        self.distrusted = Counter(reason for reason in reasons if reason)
        self.loop: Loop = take(self.everything.loop, self.rows)
        self.steps = [self.everything.steps[i] for i in self.rows]
        self.levels = [self.everything.levels[i] for i in self.rows]
        self.target = observed([s.point for s in self.steps])
        points = [s.point for s in self.steps]
        self.gpu = np.array([s.hardware.name for s in self.steps])
        self.engine = np.array([s.point.engine for s in self.steps])
        self.family = np.array(engines(self.everything))[self.rows]
        self.model = np.array([p.model for p in points])
        self.network = np.array([preset_of(p.model) for p in points])  # one for all versions of its weights
        self.disaggregated = np.array([p.disaggregated for p in points])
        self.month = np.array([p.released for p in points])
        ttft = np.array([p.measured.get("ttft_ms", np.nan) for p in points])
        tpot = np.array([p.measured.get("tpot_ms", np.nan) for p in points])
        self.saturated = ttft > SATURATED * tpot * np.array([p.output for p in points])
        self._fits: dict[tuple[bytes, tuple[str, ...]], StackFit] = {}  # a minute each, and asked for again

    def fit(self, train: Index, frozen: Sequence[str] = ()) -> StackFit:
        key = (train.tobytes(), tuple(frozen))
        if key not in self._fits:
            self._fits[key] = fit_stack(
                take(self.loop, train), [self.levels[i] for i in train], self.target[train],
                self.trusted[train].astype(float),
                "published serving points", frozen,
            )  # fmt: skip
        return self._fits[key]

    def with_assumed_rates(self) -> Study:
        """The same points on the assumed kernel rates of each accelerator's generation."""
        other = copy(self)
        other._fits = {}
        other.loop = loop_of(self.steps, [s.hardware for s in self.steps])
        return other

    def errors(self, fit: StackFit, test: Index) -> Array:
        """[test, SCORED_METRICS] log(predicted / measured)."""
        loop = take(self.loop, test)
        found = log_predictions(loop, fit.theta([self.levels[i] for i in test])) - self.target[test]
        return found[:, : len(SCORED_METRICS)]


Fold = tuple[str, Index, Index]  # name, train, test


def folds(study: Study) -> dict[str, list[Fold]]:
    """Splits by name."""
    everything = np.arange(len(study.steps))

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


def held_out(study: Study, split: Sequence[Fold], frozen: Sequence[str] = ()) -> list[tuple[str, Index, Array]]:
    return [(name, test, study.errors(study.fit(train, frozen), test)) for name, train, test in split]


def score(errors: Array, bands: Array) -> dict[str, dict[str, float]]:
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


def stacks(study: Study, rows: Index) -> list[Index]:
    """Places in `rows` of each stack: accelerator, engine, model and form."""
    found: dict[tuple[str, str, str, bool], list[int]] = {}
    for place, row in enumerate(rows):
        name = (study.gpu[row], study.engine[row], study.model[row], bool(study.disaggregated[row]))
        found.setdefault(name, []).append(place)
    return [np.array(places, dtype=np.intp) for places in found.values()]


def unsaturated(study: Study, rows: Index, errors: Array) -> Array:
    """`errors` of `rows` without TTFT where it is queueing for admission."""
    out = errors.copy()
    out[np.ix_(study.saturated[rows], [SCORED_METRICS.index("ttft_ms")])] = np.nan
    return out


def medians(errors: Array) -> dict[str, float]:
    """Median absolute errors by metric."""
    found = np.nanmedian(np.abs(np.expm1(errors)), axis=0)
    return {metric: round(float(m), 4) for metric, m in zip(SCORED_METRICS, found, strict=True)}


def levelled(study: Study, test: Index, errors: Array) -> Array:
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


def scored(study: Study, found: Sequence[tuple[str, Index, Array]], fallback: Array) -> dict[str, Any]:
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


def spreads(study: Study, found: Sequence[tuple[str, Index, Array]]) -> Array:
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


def sigma_by_situation(by_split: dict[str, Array]) -> dict[str, dict[str, float]]:
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("points", type=Path)
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
    by_split: dict[str, Array] = {}
    for name, split in folds(study).items():
        found = held_out(study, split)
        by_split[name] = spreads(study, found)
        fallback = by_split.get(BAND_OF.get(name, ""), by_split[name])
        result["splits"][name] = scored(study, found, fallback)
        print(name, json.dumps(result["splits"][name]["overall"]), flush=True)
    from benchmarks.own_points import own_points  # imports this module

    result["own points on an unseen accelerator"] = own_points(study, folds(study)["unseen accelerator"])
    if asked.ship:
        fitted = study.fit(np.arange(len(study.steps)))
        shipped = replace(fitted, sigma=sigma_by_situation(by_split))
        asked.ship.write_text(json.dumps(shipped.to_json(), indent=1) + "\n", encoding="utf-8")
        from benchmarks import uncertainty  # imports this module

        uncertainty.write(study)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "accuracy.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if asked.ablations:
        result["ablations (random half)"] = ablations(study, folds(study)["random half"])
        (RESULTS / "accuracy.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

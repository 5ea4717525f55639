"""What a few points of one's own are worth: stacks on an accelerator that the fit has never seen.

Of each stack (accelerator, engine, model, form) some rows, drawn at random, are given to `calibration.own_serving` as a
user's own; the others are predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.own_serving import moved
from calibration.validation.run import Prepared, some
from calibration.validation.stack_fit import SCORED_METRICS

GIVEN = (3, 10, 30)  # rows
Array = NDArray[np.float64]
Index = NDArray[np.intp]


def own_points(study: Any, split: Sequence[tuple[str, Index, Index]]) -> dict[str, dict[str, Any]]:
    """By number of rows given: median errors without and with them, over rows of stacks that have twice as many.

    study: a `benchmarks.accuracy.Study`; split: its folds that leave accelerators out.
    """
    everything = Prepared(tuple(study.steps), tuple(study.levels), study.loop, ())
    found: dict[int, list[tuple[Array, Array]]] = {count: [] for count in GIVEN}
    for _, train, test in split:
        before = study.fit(train)
        stacks: dict[tuple[str, str, bool], list[int]] = {}
        for row in test[study.trusted[test]]:
            name = (str(study.engine[row]), str(study.model[row]), bool(study.disaggregated[row]))
            stacks.setdefault(name, []).append(int(row))
        for rows in stacks.values():
            drawn = np.random.default_rng(0).permutation(rows)
            for count in GIVEN:
                if len(rows) < 2 * count:
                    continue
                own, rest = some(everything, drawn[:count].tolist()), drawn[count:]
                after = moved(own, before, "points of one's own")
                found[count].append((_errors(study, before, rest), _errors(study, after, rest)))
    return {
        str(count): {
            "stacks": len(pairs),
            "without": _medians([a for a, _ in pairs]),
            "with": _medians([b for _, b in pairs]),
        }
        for count, pairs in found.items()
    }


def _errors(study: Any, fit: Any, rows: Index) -> Array:
    errors = study.errors(fit, rows)
    errors[np.ix_(study.saturated[rows], [SCORED_METRICS.index("ttft_ms")])] = np.nan
    return np.asarray(errors)


def _medians(errors: Sequence[Array]) -> dict[str, float]:
    apes = np.abs(np.expm1(np.concatenate(errors)))
    return {m: round(float(x), 4) for m, x in zip(SCORED_METRICS, np.nanmedian(apes, axis=0), strict=True)}

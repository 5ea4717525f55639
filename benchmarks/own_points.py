"""What a few points of one's own are worth: stacks on an accelerator that the fit has never seen.

Of each stack (accelerator, engine, model, form) some rows, drawn at random, are given to
`calibration.serving.own_stack` as a user's own; the others are predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.study import Fold, Study, medians, stacks, unsaturated
from calibration.serving.own_stack import moved
from calibration.serving.predict import some
from simulator.model.arrays import Floats

GIVEN = (3, 10, 30)  # rows of a stack given as one's own (assumed; 3 are the fewest that `own_stack` takes)


def own_points(study: Study, split: Sequence[Fold]) -> dict[str, dict[str, Any]]:
    """By number of rows given: median errors without and with them, over rows of stacks that have twice as many.

    split: folds that leave accelerators out.
    """
    found: dict[int, list[tuple[Floats, Floats]]] = {count: [] for count in GIVEN}
    for _, train, test in split:
        before = study.fit(train)
        trusted = test[study.trusted[test]]
        for places in stacks(study, trusted):
            drawn = np.random.default_rng(0).permutation(trusted[places])
            for count in GIVEN:
                if len(drawn) < 2 * count:
                    continue
                own, rest = some(study.prepared, drawn[:count].tolist()), drawn[count:]
                after = moved(own, before, "points of one's own")
                without, given = (unsaturated(study, rest, study.errors(fit, rest)) for fit in (before, after))
                found[count].append((without, given))
    return {
        str(count): {
            "stacks": len(pairs),
            "without": medians(np.concatenate([without for without, _ in pairs])),
            "with": medians(np.concatenate([given for _, given in pairs])),
        }
        for count, pairs in found.items()
    }

"""Published serving points through the discrete-event model, as `plan` and `simulate` would predict them.

`validate` gives a point every effect that was fitted to its configuration. A plan has a profile of the stack on the
accelerator and nothing more, so its errors are larger and need a spread of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from benchmarks.study import Study
from calibration.arrays import Index
from calibration.serving.by_des.benchmark import benchmark_of
from calibration.serving.by_des.engine import FittedEngine
from calibration.serving.by_des.play import reported
from calibration.serving.engine_fit import SCORED_METRICS
from calibration.serving.engine_parameters import NOTHING_FITTED, StackFit, family_of, values
from calibration.serving.export_profiles import in_engine
from calibration.serving.points import Unpredictable
from hw_profiles.efficiency import Efficiency
from simulator.model.arrays import Floats
from simulator.model.memory import DoesNotFitError


def log_ratios(study: Study, fit: StackFit | None, rows: Index) -> Iterator[tuple[int, Floats]]:
    """(row, logs of measured / simulated by SCORED_METRICS) of those rows that can be played.

    fit: gives the profile of each stack, as `calibration.serving.export_profiles` writes it; None: assumed profiles.
    """
    profiles: dict[tuple[str, str], Efficiency] = {}
    for row in rows:
        steps, levels = study.steps[row], study.levels[row]
        point, hardware = steps.point, steps.hardware
        if point.phase != "e2e":
            continue
        given = {name: float(value[0]) for name, value in values((fit or NOTHING_FITTED).theta([levels])).items()}
        if fit is not None:
            key = (hardware.name, family_of(point.engine))
            if key not in profiles:
                profiles[key] = in_engine(*key, fit)
            # The row ran the software of its month, the profile is of the newest.
            host_s = profiles[key].kernel_overhead_s / given["renewal"] ** point.age
            hardware = replace(hardware, efficiency=profiles[key].model_copy(update={"kernel_overhead_s": host_s}))
        try:
            # A user states the acceptance length; here it is what the levels of the fit say. Engines are warm.
            found = reported(benchmark_of(point, FittedEngine(hardware, given["acceptance"], 0.0))).metrics(point)
        except (DoesNotFitError, Unpredictable):
            continue
        measured = dict(point.measured)
        if point.median_ttft_ms is not None:  # without the first wave, which a plan leaves out
            measured["ttft_ms"], found["ttft_ms"] = point.median_ttft_ms, found["median_ttft_ms"]
        ratios = np.array([math.log(measured[m] / found[m]) if m in measured else math.nan for m in SCORED_METRICS])
        if study.saturated[row]:
            ratios[SCORED_METRICS.index("ttft_ms")] = np.nan
        yield int(row), ratios

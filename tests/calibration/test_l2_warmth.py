"""Repeated launches stream what fits from L2; fits of such tables still find the rates of memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calibration.l2_warmth import share_of_time
from calibration.rate_parameters import Parameters
from calibration.roofline_fit import MeasuredWork, Work, fit, kernels_of
from hw_profiles.catalog import load
from hw_profiles.efficiency import OpClass
from simulator.model.ops import Op
from simulator.model.roofline import roof_times


def test_small_working_sets_take_a_third_of_the_time_and_large_ones_all_of_it() -> None:
    assert share_of_time(1e6, "blackwell") == pytest.approx(0.3, abs=0.01)
    assert share_of_time(1e9, "blackwell") == pytest.approx(1.0, abs=0.01)
    sizes = np.geomspace(1e5, 1e10, 60)
    times = [size * share_of_time(size, "hopper") for size in sizes]
    assert times == sorted(times)  # more bytes never take less time


def test_fit_of_warm_launches_finds_cold_rates() -> None:
    part = load("b200_sxm")
    classes = part.efficiency.classes
    changes = {"memory_fraction": 0.85, "latency_s": 9e-6}
    rates = {**classes, OpClass.MIXING: classes[OpClass.MIXING].model_copy(update=changes)}
    truth = replace(part, efficiency=part.efficiency.model_copy(update={"classes": rates}))
    measured = []
    for num_bytes in np.geomspace(1e5, 1e10, 40):
        op = Op("mHC post", OpClass.MIXING, hbm_bytes=float(num_bytes))
        times = roof_times(op, truth)
        seconds = times.latency_s + times.memory_s * share_of_time(num_bytes, "blackwell")
        measured.append(MeasuredWork("mhc_module", (op,), seconds, "row", warm=True))
    start = Parameters.of(classes, kernels_of(measured))
    found = fit(Work.of(measured, part, start), start, {OpClass.MIXING}).parameters
    assert found.value("memory_fraction", OpClass.MIXING) == pytest.approx(0.85, rel=0.02)
    assert found.value("latency_s", OpClass.MIXING) == pytest.approx(9e-6, rel=0.02)

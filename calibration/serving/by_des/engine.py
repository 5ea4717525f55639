"""What a serving fit says of the engine that served a row, as a profile that `simulate` would take.

This is all that playing points asks of a fit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from calibration.serving.effects import ServingFit
from calibration.serving.export_profiles import factors_of, in_engine
from calibration.serving.parameters import NAMES, RELEASE, family_of, kind_of, values
from calibration.serving.point_engines import hardware_of
from calibration.serving.points import Point
from hw_profiles.efficiency import Efficiency, Situation
from hw_profiles.profile import HardwareProfile
from simulator.model.engine import Form


@dataclass(frozen=True)
class FittedEngine:
    """hardware: the accelerator with the profile of its stack, as `calibration.serving.export_profiles` writes it, on
    the software of the row's month. acceptance: chance that a draft token is accepted given that those before it were.
    running: sequences that an attention rank runs at once. warm_up_s: wait of the first wave for kernels and graphs
    that an engine makes when it first needs them."""

    hardware: HardwareProfile
    acceptance: float
    running: float
    warm_up_s: float


def engines_of_rows(
    points: Sequence[Point], levels: Sequence[tuple[str, ...]], fit: ServingFit
) -> Iterator[FittedEngine]:
    """The engine of each row."""
    profiles: dict[tuple[str, str], Efficiency] = {}
    for point, mine in zip(points, levels, strict=True):
        hardware = hardware_of(point.gpu)
        key = (hardware.name, point.engine)
        if key not in profiles:
            engine = point.engine
            stands_for: dict[Form, str] = {"colocated": engine, "disaggregated": engine}
            profiles[key] = in_engine(hardware.name, family_of(engine), fit, stands_for, "fit to serving points")
        given = {name: float(value[0]) for name, value in values(fit.theta([mine])).items()}
        profile = _of_its_month(profiles[key], point, mine, fit, given["renewal"])
        doublings = math.log2(max(1.0, point.concurrency))  # of the batch size, each with kernels of its own
        yield FittedEngine(
            replace(hardware, efficiency=profile), given["acceptance"], given["running"], given["warm_up_s"] * doublings
        )


def _of_its_month(
    profile: Efficiency, point: Point, levels: Sequence[str], fit: ServingFit, renewal: float
) -> Efficiency:
    """With the host times of software of the row's age, and what is known of its release alone: a profile, which is of
    the newest software, has neither."""
    log = sum(
        (fit.effects[level] for level in fit.counted(levels) if kind_of(level) == RELEASE and level in fit.effects),
        np.zeros(len(NAMES)),
    )
    factors = factors_of(log)
    factors["kernel_overhead_s"] = factors.get("kernel_overhead_s", 1.0) / renewal**point.age
    release = Situation(when={}, factors=factors)
    return profile.model_copy(update={"situations": (*profile.situations, release)})

"""From measurements of one machine to its profile: the simulator's roofline fitted to ops, then to whole steps.

Each profile carries its error: by op class on held-out shapes, and of the deepest model's steps predicted from
shallower ones (which is what lets a few layers at true shapes stand for a model too large for the machine).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calibration.microbench import models
from calibration.microbench.fit.base_profile import base_profile
from calibration.microbench.fit.op_fit import OpPoint, class_of, fit_ops, gated, shape_of
from calibration.microbench.fit.step_fit import (
    FEWEST_STEPS,
    DepthCheck,
    StepFit,
    StepRow,
    applied,
    classes_of,
    columns_of,
    depth_check,
    fit_steps,
    from_other_half,
)
from calibration.microbench.measurement import FitError, Measurements
from calibration.microbench.step_ops import StepPricer
from calibration.rate_parameters import Parameters, fitted_class, residual_sigma
from calibration.roofline_fit import MeasuredWork
from hw_profiles import catalog
from hw_profiles.efficiency import WHOLE_STEPS, Efficiency, OpClass
from hw_profiles.profile import HardwareProfile, profile_of

STACK = "moeplan"
FEWEST_SHAPES = 4  # of a class: it has as many parameters


@dataclass(frozen=True)
class MachineFit:
    """A fitted profile and what it rests on. rejected: rows that the gates threw out, with the rule."""

    efficiency: Efficiency
    hardware: HardwareProfile
    points: tuple[OpPoint, ...]
    steps: StepFit
    step_error: float  # median |predicted / measured - 1|, each half predicted from the other
    step_sum_ratio: float
    depth: DepthCheck | None
    rejected: tuple[tuple[str, str], ...]

    def to_json(self) -> str:
        return self.efficiency.model_dump_json(indent=1, exclude_none=True) + "\n"


def fit_machine(measured: Measurements, stack: str = STACK) -> MachineFit:
    """Fit a profile; FitError where the measurements do not suffice or contradict each other."""
    hardware = base_profile(measured)
    rows, rejected = gated(measured, hardware)
    steps = _step_rows(measured, hardware)
    _check_enough(rows, steps)
    parameters, points = fit_ops(rows, hardware)
    alone = _alone(measured, hardware, parameters, points, stack)
    classes = classes_of(steps)
    columns = columns_of(steps, profile_of(hardware.accelerator, alone), classes)
    seconds = np.array([step.seconds for step in steps])
    fitted = fit_steps(columns, seconds, classes)
    predicted = from_other_half(columns, seconds, classes)
    depth = depth_check([step.layers for step in steps], columns, seconds, classes)
    error = float(np.median(np.abs(predicted / seconds - 1)))
    errors = alone.held_out_error | {WHOLE_STEPS: round(error, 4)}
    if depth is not None:
        errors[f"steps of {depth.layers} layers from fewer"] = round(depth.median_error, 4)
    efficiency = applied(fitted, alone).model_copy(update={"held_out_error": errors})
    return MachineFit(
        efficiency,
        profile_of(hardware.accelerator, efficiency),
        points,
        fitted,
        error,
        float(predicted.sum() / seconds.sum()),
        depth,
        tuple(rejected),
    )


def _step_rows(measured: Measurements, hardware: HardwareProfile) -> list[StepRow]:
    pricers: dict[tuple[str, int], StepPricer] = {}
    rows = []
    for row in measured.family("step"):
        assert row.step is not None
        key = (row.model, row.layers)
        if key not in pricers:
            config = models.cut_to(measured.configs[row.model], row.layers)
            pricers[key] = StepPricer(models.model_spec(config, measured.machine, row.model), hardware)
        rows.append(StepRow(pricers[key].ops(row.step), row.seconds, row.layers))
    return rows


def _check_enough(rows: Sequence[MeasuredWork], steps: Sequence[StepRow]) -> None:
    if len(steps) < FEWEST_STEPS:
        raise FitError(
            f"the file has {len(steps)} whole steps, at least {FEWEST_STEPS} are needed; run `moeplan calibrate "
            "measure` on it again: it goes on where it stopped"
        )
    needed = {op.op_class for step in steps for op in step.ops}
    shapes = {op_class: {shape_of(row) for row in rows if class_of(row) is op_class} for op_class in needed}
    short = [f"{c.value} ({len(shapes[c])})" for c in OpClass if c in needed and len(shapes[c]) < FEWEST_SHAPES]
    if short:
        raise FitError(
            f"too few shapes of {', '.join(short)}: each class needs {FEWEST_SHAPES}; run `moeplan calibrate measure` "
            "on the file again, or use --preset full"
        )


def _alone(
    measured: Measurements, hardware: HardwareProfile, parameters: Parameters, points: Sequence[OpPoint], stack: str
) -> Efficiency:
    """The profile of ops outside steps, each class with its held-out error."""
    machine = measured.machine
    where = f"measured with the runtime on {machine.display_name}, torch {machine.torch}, commit {machine.commit}"
    classes = dict(hardware.efficiency.classes)
    errors: dict[str, float] = {}
    for op_class in dict.fromkeys(point.op_class for point in points):
        mine = [point for point in points if point.op_class is op_class]
        errors[op_class.value] = round(float(np.median([abs(p.held_out_error) for p in mine])), 4)
        classes[op_class] = fitted_class(
            parameters,
            op_class,
            classes[op_class],
            network_fraction=parameters.value("network_fraction", op_class),
            sigma=residual_sigma(np.array([np.log(p.measured_s / p.predicted_s) for p in mine]), clipped_share=0.0),
            source=f"{where}, {len(mine)} ops",
        )
    data = hardware.efficiency.model_dump() | {
        "stack": stack,
        "classes": classes,
        "step_overhead_s": 0.0,
        "kernel_overhead_s": 0.0,
        "request_overhead_s": 0.0,
        "overhead_source": f"{where}: what whole steps take beyond their ops; requests come from the same process",
        "overhead_assumed": False,
        "provenance": f"{where}, {machine.time}, driver {machine.driver or 'none'}, triton {machine.triton or 'none'}",
        "origin": "measured",
        "held_out_error": errors,
        "part": None if machine.name in catalog.names() else hardware.accelerator,
    }
    return Efficiency.model_validate(data)


def refit(hardware: HardwareProfile, steps: Sequence[StepRow]) -> HardwareProfile:
    """A profile of this machine as it runs now, by whole steps alone."""
    classes = classes_of(steps)
    seconds = np.array([step.seconds for step in steps])
    known = hardware.efficiency
    fitted = fit_steps(columns_of(steps, hardware, classes), seconds, classes, known.step_overhead_s)
    return profile_of(hardware.accelerator, applied(fitted, known))

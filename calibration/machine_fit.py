"""From measurements of one machine to its profile: the simulator's roofline fitted to ops, then to whole steps.

Each profile carries its error: by op class on held-out shapes, and of the deepest model's steps predicted from
shallower ones (which is what lets a few layers at true shapes stand for a model too large for the machine).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calibration import models
from calibration.device import part_of
from calibration.fit import UPPER, Measured, Parameters, Work, at_peak, dtypes_of, fit
from calibration.measurement import Measurements
from calibration.step_fit import StepFit, StepRow, columns_of, fit_steps
from calibration.step_ops import StepPricer
from hw_profiles import catalog
from hw_profiles.efficiency import DEFAULT_STACK, ClassEfficiency, Efficiency, OpClass, load_efficiency
from hw_profiles.profile import HardwareProfile, profile_of

STACK = "moeplan"
FEWEST_ROWS = 4  # of a class: it has as many parameters
FEWEST_STEPS = 30
CONTRADICTION = 4.0  # ratio of two times of the same work
CONTRADICTING_SHARE = 0.2  # of the work that was measured more than once
FASTEST = 0.9  # of the time at peak: clocks may exceed the data sheet by less
LONGEST_FLOOR_S = 5e-3  # ops of plain PyTorch on a CPU are many calls each


class FitError(ValueError):
    """Measurements that no profile can be fitted to; the message says what is missing or wrong."""


@dataclass(frozen=True)
class OpPoint:
    """One op measured alone: what was measured and what its class's fit says. [s]"""

    op_class: OpClass
    label: str
    measured_s: float
    predicted_s: float
    held_out_error: float  # signed, predicted / measured - 1 by a fit that did not see it


@dataclass(frozen=True)
class DepthCheck:
    """Steps of `layers` layers predicted from those of fewer."""

    layers: int
    fitted_on: tuple[int, ...]
    median_error: float
    sum_ratio: float  # predicted / measured over all of them


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
    hardware = _base(measured)
    rows, rejected = _gated(measured, hardware)
    steps = _step_rows(measured, hardware)
    _check_enough(rows, steps)
    parameters, points = _fit_ops(rows, hardware)
    classes = sorted({op.op_class for step in steps for op in step.ops}, key=lambda c: list(OpClass).index(c))
    columns = columns_of(steps, parameters, hardware, classes)
    seconds = np.array([step.seconds for step in steps])
    fitted = fit_steps(columns, seconds, classes)
    predicted = _halves(columns, seconds, classes)
    depth = _depth_check(steps, columns, seconds, classes)
    error = float(np.median(np.abs(predicted / seconds - 1)))
    efficiency = _efficiency(measured, hardware, parameters, points, fitted, stack, error, depth)
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


def _base(measured: Measurements) -> HardwareProfile:
    """The accelerator with the assumed efficiency of its generation: where the fit starts."""
    if measured.machine.name in catalog.names():
        return catalog.load(measured.machine.name)
    copies = [row.num_bytes / row.seconds for row in measured.family("copy")]
    flops: dict[str, float] = {}
    for row in measured.family("gemm"):
        flops[row.dtype] = max(flops.get(row.dtype, 0.0), row.flops / row.seconds)
    for row in measured.usable:  # ops of the model may beat the square products, which ran in a slower minute
        for op in row.ops if len(row.ops) == 1 else ():
            for dtype, work in op.flops.items():
                key = "fp32" if dtype == "tf32" and "fp32" in flops else dtype
                flops[key] = max(flops.get(key, 0.0), work / row.seconds)
    missing = [name for name, found in (("copies", copies), ("dense products in bf16", "bf16" in flops)) if not found]
    if missing:
        raise FitError(f"the file lacks {' and '.join(missing)}, which set this machine's peaks; measure to the end")
    part = part_of(measured.machine, flops, max(copies))
    assert part is not None
    efficiency = load_efficiency(part.name, part.generation, DEFAULT_STACK, catalog.DATA / "efficiency")
    return profile_of(part, efficiency)


def _gated(measured: Measurements, hardware: HardwareProfile) -> tuple[list[Measured], list[tuple[str, str]]]:
    """Ops that physics allows. Where many pieces of work have two very different times, the file is refused."""
    kept: list[Measured] = []
    rejected: list[tuple[str, str]] = []
    times: dict[tuple[str, str], list[tuple[str, float]]] = {}
    for row in measured.usable:
        if not row.ops:
            continue
        floor = sum(op.count * at_peak(op, hardware)[0] for op in row.ops)
        if row.seconds < FASTEST * floor:
            rejected.append((row.key, "faster than its FLOPs at peak"))
            continue
        times.setdefault((row.family, repr(row.ops)), []).append((row.key, row.seconds))
        kept.append(Measured(row.family, row.ops, row.seconds, row.key))
    repeated = [sorted(same, key=lambda pair: pair[1]) for same in times.values() if len(same) > 1]
    apart = [same for same in repeated if same[-1][1] > CONTRADICTION * same[0][1]]
    if len(apart) > CONTRADICTING_SHARE * len(repeated):
        (fast, low), (slow, high) = apart[0][0], apart[0][-1]
        raise FitError(
            f"{len(apart)} of {len(repeated)} pieces of work that were measured more than once contradict themselves: "
            f"'{fast}' took {low * 1e6:.0f} us and '{slow}', the same work, {high * 1e6:.0f} us; the machine was busy "
            "with something else: measure again"
        )
    return kept, rejected


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


def _check_enough(rows: Sequence[Measured], steps: Sequence[StepRow]) -> None:
    if len(steps) < FEWEST_STEPS:
        raise FitError(
            f"the file has {len(steps)} whole steps, at least {FEWEST_STEPS} are needed; run `moeplan calibrate "
            "measure` on it again: it goes on where it stopped"
        )
    needed = {op.op_class for step in steps for op in step.ops}
    counts = {op_class: sum(op_class == _class_of(row) for row in rows) for op_class in needed}
    short = [f"{c.value} ({counts[c]})" for c in OpClass if c in needed and counts[c] < FEWEST_ROWS]
    if short:
        raise FitError(
            f"too few ops of {', '.join(short)}: each class needs {FEWEST_ROWS}; run `moeplan calibrate measure` on "
            "the file again, or use --preset full"
        )


def _class_of(row: Measured) -> OpClass:
    return row.ops[0].op_class


def _fit_ops(rows: Sequence[Measured], hardware: HardwareProfile) -> tuple[Parameters, tuple[OpPoint, ...]]:
    """Class by class; elementwise first, for it takes part in grouped products' measurements."""
    parameters = Parameters.of(hardware.efficiency.classes, dtypes_of(rows))
    upper = {**UPPER, "latency_s": LONGEST_FLOOR_S}
    points: list[OpPoint] = []
    for op_class in sorted({_class_of(row) for row in rows}, key=lambda c: (c is not OpClass.ELEMENTWISE, c)):
        mine = [row for row in rows if _class_of(row) is op_class]
        result = fit(Work.of(mine, hardware, parameters), parameters, {op_class}, upper=upper)
        parameters = result.parameters
        points += [
            OpPoint(op_class, row.label, row.seconds, row.seconds * float(np.exp(-inside)), float(np.expm1(-outside)))
            for row, inside, outside in zip(mine, result.residuals, result.held_out, strict=True)
        ]
    return parameters, tuple(points)


def _halves(columns: np.ndarray, seconds: np.ndarray, classes: Sequence[OpClass]) -> np.ndarray:
    """Each step predicted from the other half of them."""
    even = np.arange(len(seconds)) % 2 == 0
    predicted = np.zeros_like(seconds)
    for mine in (even, ~even):
        predicted[mine] = fit_steps(columns[~mine], seconds[~mine], classes).seconds(columns[mine], classes)
    return predicted


def _depth_check(
    steps: Sequence[StepRow], columns: np.ndarray, seconds: np.ndarray, classes: Sequence[OpClass]
) -> DepthCheck | None:
    layers = np.array([step.layers for step in steps])
    depths = sorted({step.layers for step in steps})
    if len(depths) < 2 or (layers < depths[-1]).sum() < FEWEST_STEPS:
        return None
    deepest = layers == depths[-1]
    fitted = fit_steps(columns[~deepest], seconds[~deepest], classes)
    predicted = fitted.seconds(columns[deepest], classes)
    return DepthCheck(
        depths[-1],
        tuple(depths[:-1]),
        float(np.median(np.abs(predicted / seconds[deepest] - 1))),
        float(predicted.sum() / seconds[deepest].sum()),
    )


def _efficiency(
    measured: Measurements,
    hardware: HardwareProfile,
    parameters: Parameters,
    points: Sequence[OpPoint],
    steps: StepFit,
    stack: str,
    step_error: float,
    depth: DepthCheck | None,
) -> Efficiency:
    machine = measured.machine
    where = f"measured with the runtime on {machine.display_name}, torch {machine.torch}, commit {machine.commit}"
    classes = dict(hardware.efficiency.classes)
    errors: dict[str, float] = {}
    for op_class in dict.fromkeys(point.op_class for point in points):
        mine = [point for point in points if point.op_class is op_class]
        errors[op_class.value] = round(float(np.median([abs(p.held_out_error) for p in mine])), 4)
        sigma = float(np.std([np.log(p.measured_s / p.predicted_s) for p in mine]))
        classes[op_class] = _class(parameters, op_class, steps, sigma, f"{where}, {len(mine)} ops", classes[op_class])
    errors["whole steps"] = round(step_error, 4)
    if depth is not None:
        errors[f"steps of {depth.layers} layers from fewer"] = round(depth.median_error, 4)
    data = hardware.efficiency.model_dump() | {
        "stack": stack,
        "classes": classes,
        "step_overhead_s": round(steps.host_s, 7),
        "request_overhead_s": 0.0,
        "overhead_source": f"{where}: what whole steps take beyond their ops; requests come from the same process",
        "overhead_assumed": False,
        "provenance": f"{where}, {machine.time}, driver {machine.driver or 'none'}, triton {machine.triton or 'none'}",
        "origin": "measured",
        "held_out_error": errors,
        "part": None if machine.name in catalog.names() else hardware.accelerator,
    }
    return Efficiency.model_validate(data)


def _class(
    parameters: Parameters, op_class: OpClass, steps: StepFit, sigma: float, source: str, before: ClassEfficiency
) -> ClassEfficiency:
    """A class as it runs within steps: floors and rates of ops alone times the factors of `steps`."""
    slow, floor = steps.rates.get(op_class, 1.0), steps.floors.get(op_class, 1.0)

    def fraction(value: float) -> float:
        return float(f"{min(1.5, value / max(slow, 1e-3)):.4g}")

    dtypes = {d for field, c, d in parameters.slots if field == "matrix_fraction" and c == op_class and d}
    by = {dtype: fraction(parameters.value("matrix_fraction", op_class, dtype)) for dtype in sorted(dtypes)}
    return before.model_copy(
        update={
            "matrix_fraction": min(by.values(), default=before.matrix_fraction),
            "matrix_fraction_by": by,
            "memory_fraction": fraction(parameters.value("memory_fraction", op_class)),
            "latency_s": float(f"{parameters.value('latency_s', op_class) * floor:.4g}"),
            "exponent": round(parameters.value("exponent", op_class), 3),
            "residual_sigma": round(sigma, 3),
            "source": source,
            "assumed": False,
        }
    )

"""What whole steps add to ops timed alone: host time per step, and by op class how floors and rates change in a step.

    step = host + sum over classes (a * hops * t0 + b * roofline)

Alone, an op starts with cold caches; in a step it finds what its neighbour left, and pays for work that has no op.
a and b are one number each per class, held near 1, so that ops decide what steps cannot tell apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import lsq_linear

from hw_profiles.efficiency import ClassEfficiency, Efficiency, OpClass
from hw_profiles.profile import HardwareProfile
from simulator.model.arrays import Floats
from simulator.model.ops import Op
from simulator.model.roofline import roof_times

PRIOR_WEIGHT = 0.03  # of "a = b = 1" against each step, in relative error (assumed)
SLOWEST = 20.0  # bound of a and b (assumed)
STALL = 1.0  # relative error from which a step counts less: another process had the core (assumed)
ROUNDS = 6  # of weights by the prediction before (assumed)
FEWEST_STEPS = 30  # for a fit (assumed)
SHORTEST_STEP_S = 1e-9  # that a fit predicts, for it divides by it
FASTEST_FRACTION = 1.5  # of a peak, in a step: caches are faster than memory (assumed)
LEAST_SLOWING = 1e-3  # of rates, for fractions are divided by it


@dataclass(frozen=True)
class StepRow:
    """One measured step."""

    ops: tuple[Op, ...]
    seconds: float
    layers: int


@dataclass(frozen=True)
class StepFit:
    """host_s: per step. floors, rates: the factors a and b of each class."""

    host_s: float
    floors: dict[OpClass, float]
    rates: dict[OpClass, float]

    def seconds(self, columns: Floats, classes: Sequence[OpClass]) -> Floats:
        factors = [self.host_s, *(self.floors[c] for c in classes), *(self.rates[c] for c in classes)]
        return columns @ np.array(factors)


@dataclass(frozen=True)
class DepthCheck:
    """Steps of `layers` layers predicted from those of fewer."""

    layers: int
    fitted_on: tuple[int, ...]
    median_error: float
    sum_ratio: float  # predicted / measured over all of them


def columns_of(rows: Sequence[StepRow], hardware: HardwareProfile, classes: Sequence[OpClass]) -> Floats:
    """[steps, 1 + 2 * classes]: one for the host, then floor and roofline seconds of each class on `hardware`."""
    place = {op_class: i for i, op_class in enumerate(classes)}
    columns = np.zeros((len(rows), 1 + 2 * len(classes)))
    columns[:, 0] = 1.0
    for number, row in enumerate(rows):
        for op in row.ops:
            index = 1 + place[op.op_class]
            times = roof_times(op, hardware)
            columns[number, index] += op.count * times.latency_s
            columns[number, index + len(classes)] += op.count * (times.seconds - times.latency_s)
    return columns


def classes_of(rows: Sequence[StepRow]) -> list[OpClass]:
    """Classes that the steps have ops of."""
    found = {op.op_class for row in rows for op in row.ops}
    return [op_class for op_class in OpClass if op_class in found]


def fit_steps(columns: Floats, seconds: Floats, classes: Sequence[OpClass], host_s: float | None = None) -> StepFit:
    """Least squares of relative errors, weighted by the prediction (weights by the measurement would favour fast
    outliers and predict sums too low).

    host_s: of the same machine at another time, if `columns` are of its profile. A machine that drifts is slower in
    everything, so all factors are then drawn towards one.
    """
    unknowns = columns.shape[1]
    prior = np.array([host_s or 0.0, *[1.0] * (unknowns - 1)])
    if host_s is not None:
        prior *= float(np.median(seconds / (columns @ prior)))
    weight = PRIOR_WEIGHT * len(seconds) ** 0.5
    pull = np.diag(np.divide(weight, prior, out=np.zeros(unknowns), where=prior > 0))
    weights = 1.0 / seconds
    factors = prior
    for _ in range(ROUNDS):
        system = np.vstack((columns * weights[:, None], pull))
        factors = lsq_linear(system, np.concatenate((seconds * weights, pull @ prior)), bounds=(0.0, SLOWEST)).x
        predicted = np.maximum(columns @ factors, SHORTEST_STEP_S)
        error = np.abs(seconds / predicted - 1)
        weights = np.where(error > STALL, np.sqrt(STALL / np.maximum(error, STALL)), 1.0) / predicted
    half = len(classes)
    floors, rates = factors[1 : 1 + half], factors[1 + half :]
    return StepFit(
        float(factors[0]),
        dict(zip(classes, map(float, floors), strict=True)),
        dict(zip(classes, map(float, rates), strict=True)),
    )


def within_steps(rates: ClassEfficiency, floor: float, slow: float) -> ClassEfficiency:
    """A class whose floor takes `floor` times as long, and whose rates `slow` times."""

    def fraction(value: float) -> float:
        return float(f"{min(FASTEST_FRACTION, value / max(slow, LEAST_SLOWING)):.4g}")

    def seconds(value: float) -> float:
        return float(f"{value * floor:.4g}")

    return rates.model_copy(
        update={
            "matrix_fraction": fraction(rates.matrix_fraction),
            "matrix_fraction_by": {dtype: fraction(value) for dtype, value in rates.matrix_fraction_by.items()},
            "memory_fraction": fraction(rates.memory_fraction),
            "memory_fraction_by": {dtype: fraction(value) for dtype, value in rates.memory_fraction_by.items()},
            "network_fraction": fraction(rates.network_fraction),
            "latency_s": seconds(rates.latency_s),
            "latency_s_by": {dtype: seconds(value) for dtype, value in rates.latency_s_by.items()},
            "depth_s": seconds(rates.depth_s),
            "depth_s_by": {dtype: seconds(value) for dtype, value in rates.depth_s_by.items()},
        }
    )


def applied(fitted: StepFit, efficiency: Efficiency) -> Efficiency:
    """An efficiency of ops as it is within steps."""
    classes = {
        op_class: within_steps(rates, fitted.floors.get(op_class, 1.0), fitted.rates.get(op_class, 1.0))
        for op_class, rates in efficiency.classes.items()
    }
    return efficiency.model_copy(
        update={"classes": classes, "step_overhead_s": round(fitted.host_s, 7), "kernel_overhead_s": 0.0}
    )


def from_other_half(columns: Floats, seconds: Floats, classes: Sequence[OpClass]) -> Floats:
    """Each step predicted from the other half of them."""
    even = np.arange(len(seconds)) % 2 == 0
    predicted = np.zeros_like(seconds)
    for mine in (even, ~even):
        predicted[mine] = fit_steps(columns[~mine], seconds[~mine], classes).seconds(columns[mine], classes)
    return predicted


def depth_check(
    layers_of: Sequence[int], columns: Floats, seconds: Floats, classes: Sequence[OpClass]
) -> DepthCheck | None:
    layers = np.array(layers_of)
    depths = sorted(set(layers_of))
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

"""What whole steps add to ops timed alone: host time per step, and by op class how floors and rates change in a step.

    step = host + sum over classes (a * hops * t0 + b * roofline)

Alone, an op starts with cold caches; in a step it finds what its neighbour left, and pays for work that has no op.
a and b are one number each per class, held near 1, so that ops decide what steps cannot tell apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import lsq_linear

from calibration.fit import Parameters, at_peak
from hw_profiles.efficiency import OpClass
from hw_profiles.profile import HardwareProfile
from simulator.model.ops import Op

Array = NDArray[np.float64]

PRIOR_WEIGHT = 0.03  # of "a = b = 1" against each step, in relative error
SLOWEST = 20.0  # bound of a and b
STALL = 1.0  # relative error from which a step counts less: another process had the core
ROUNDS = 6
FEWEST_STEPS = 30  # for a fit


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

    def seconds(self, columns: Array, classes: Sequence[OpClass]) -> Array:
        factors = [self.host_s, *(self.floors[c] for c in classes), *(self.rates[c] for c in classes)]
        return columns @ np.array(factors)


@dataclass(frozen=True)
class DepthCheck:
    """Steps of `layers` layers predicted from those of fewer."""

    layers: int
    fitted_on: tuple[int, ...]
    median_error: float
    sum_ratio: float  # predicted / measured over all of them


def columns_of(
    rows: Sequence[StepRow], parameters: Parameters, hardware: HardwareProfile, classes: Sequence[OpClass]
) -> Array:
    """[steps, 1 + 2 * classes]: one for the host, then floor and roofline seconds of each class."""
    place = {op_class: i for i, op_class in enumerate(classes)}
    columns = np.zeros((len(rows), 1 + 2 * len(classes)))
    columns[:, 0] = 1.0
    for number, row in enumerate(rows):
        for op in row.ops:
            index = 1 + place[op.op_class]
            floor, rate = _floor_and_rate(op, parameters, hardware)
            columns[number, index] += op.count * floor
            columns[number, index + len(classes)] += op.count * rate
    return columns


def _floor_and_rate(op: Op, parameters: Parameters, hardware: HardwareProfile) -> tuple[float, float]:
    """hops * t0, and the p-norm of the roofs, of one launch. FLOPs of several dtypes are priced as the first's."""
    compute, memory, _ = at_peak(op, hardware)
    op_class = op.op_class
    dtype = next(iter(op.flops), "")
    known = ("matrix_fraction", op_class, dtype) in parameters.place
    compute /= parameters.value("matrix_fraction", op_class, dtype if known else "")
    memory /= parameters.value("memory_fraction", op_class)
    exponent = parameters.value("exponent", op_class)
    largest = max(compute, memory)
    if largest == 0.0:
        return op.hops * parameters.value("latency_s", op_class), 0.0
    norm = largest * ((compute / largest) ** exponent + (memory / largest) ** exponent) ** (1 / exponent)
    return op.hops * parameters.value("latency_s", op_class), norm


def fit_steps(columns: Array, seconds: Array, classes: Sequence[OpClass]) -> StepFit:
    """Least squares of relative errors, weighted by the prediction (weights by the measurement would favour fast
    outliers and predict sums too low)."""
    unknowns = columns.shape[1]
    prior = np.array([0.0, *[1.0] * (unknowns - 1)])
    pull = np.diag([0.0, *[PRIOR_WEIGHT * len(seconds) ** 0.5] * (unknowns - 1)])
    weights = 1.0 / seconds
    factors = prior
    for _ in range(ROUNDS):
        system = np.vstack((columns * weights[:, None], pull))
        factors = lsq_linear(system, np.concatenate((seconds * weights, pull @ prior)), bounds=(0.0, SLOWEST)).x
        predicted = np.maximum(columns @ factors, 1e-9)
        error = np.abs(seconds / predicted - 1)
        weights = np.where(error > STALL, np.sqrt(STALL / np.maximum(error, STALL)), 1.0) / predicted
    half = len(classes)
    floors, rates = factors[1 : 1 + half], factors[1 + half :]
    return StepFit(
        float(factors[0]),
        dict(zip(classes, map(float, floors), strict=True)),
        dict(zip(classes, map(float, rates), strict=True)),
    )


def from_other_half(columns: np.ndarray, seconds: np.ndarray, classes: Sequence[OpClass]) -> np.ndarray:
    """Each step predicted from the other half of them."""
    even = np.arange(len(seconds)) % 2 == 0
    predicted = np.zeros_like(seconds)
    for mine in (even, ~even):
        predicted[mine] = fit_steps(columns[~mine], seconds[~mine], classes).seconds(columns[mine], classes)
    return predicted


def depth_check(
    layers_of: Sequence[int], columns: np.ndarray, seconds: np.ndarray, classes: Sequence[OpClass]
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

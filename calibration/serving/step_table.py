"""Steps of many points as arrays: what each takes from every roof, to be priced under any parameters of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calibration.arrays import Index
from calibration.serving.point_steps import GRID, PointSteps
from hw_profiles.efficiency import OpClass
from hw_profiles.profile import HardwareProfile
from simulator.model import engine as situations
from simulator.model.arrays import Floats
from simulator.model.ops import Op
from simulator.model.roofline import roof_times

COLUMNS = 3  # kinds of prompts beside the decode grid: own, arriving, packed
ALL = GRID + COLUMNS

CLASSES = tuple(OpClass)
ATTENTION = [CLASSES.index(c) for c in situations.CORES]
EXPERTS = [CLASSES.index(c) for c in situations.EXPERTS]


def rates_of(given: dict[str, Floats]) -> Floats:
    """[points, classes, 3] matrix, memory and network rates inside the engine over those of kernels alone."""
    three = np.stack((given["matrix"], given["memory"], given["network"]), axis=1)
    rates = np.repeat(three[:, None, :], len(CLASSES), axis=1)
    rates[:, ATTENTION, :2] *= given["attention"][:, None, None]
    rates[:, EXPERTS, :2] *= given["experts"][:, None, None]
    return rates


@dataclass(frozen=True)
class LaunchTable:
    """All steps of many points, in seconds under the kernels' own rates.

    Launches with one roof add up (`linear`: compute, memory, network by op class); those with several are kept apart
    for their p-norm.
    """

    latency: Floats  # [points, ALL]
    exits: Floats  # [points, ALL] collectives that leave the scale-up domain
    linear: Floats  # [points, ALL, classes, 3]
    point: Index  # of each launch with several roofs
    step: Index  # its step: decode steps, then prompts
    op_class: Index
    count: Floats
    roofs: Floats  # [launches, 3]
    exponent: Floats

    @property
    def points(self) -> int:
        return len(self.linear)

    def seconds(self, given: dict[str, Floats]) -> Floats:
        """[points, ALL] seconds of each step, host time left out. given: parameters of `engine_parameters`."""
        rates = rates_of(given)
        times = self.roofs / rates[self.point, self.op_class]
        q = self.exponent
        norm = (times ** q[:, None]).sum(axis=1) ** (1 / q)
        mixed = np.bincount(self.step, weights=self.count * norm, minlength=self.points * ALL)
        alone = (self.linear / rates[:, None]).sum(axis=(2, 3)) + self.latency * given["launch"][:, None]
        alone += self.exits * given["exit_latency_s"][:, None]
        return alone + mixed.reshape(self.points, ALL)

    def take(self, rows: Index) -> LaunchTable:
        """The points `rows` alone, in that order."""
        place = np.full(self.points, -1, dtype=np.intp)
        place[rows] = np.arange(len(rows))
        kept = place[self.point] >= 0
        point = place[self.point[kept]]
        return LaunchTable(
            self.latency[rows], self.exits[rows], self.linear[rows], point,
            point * ALL + self.step[kept] % ALL, self.op_class[kept], self.count[kept],
            self.roofs[kept], self.exponent[kept],
        )  # fmt: skip


@dataclass(frozen=True)
class _Launches:
    """Sums of launches with one roof, and (count, roofs, exponent, class) of the others."""

    latency_s: float
    exits: float
    linear: Floats  # [classes, 3]
    mixed: list[tuple[float, ...]]

    @classmethod
    def of(cls, ops: tuple[Op, ...], hardware: HardwareProfile) -> _Launches:
        latency_s = exits = 0.0
        linear = np.zeros((len(CLASSES), 3))
        mixed: dict[tuple[float, ...], float] = {}
        for op in ops:
            times = roof_times(op, hardware)
            roofs = (times.compute_s, times.memory_s, times.network_s)
            latency_s += op.count * times.latency_s
            exits += op.count * op.hops * (op.link == "scale_out")
            place = CLASSES.index(op.op_class)
            if sum(roof > 0 for roof in roofs) > 1:
                key = (*roofs, times.exponent, place)
                mixed[key] = mixed.get(key, 0.0) + op.count
            else:
                linear[place] += op.count * np.array(roofs)
        return cls(latency_s, exits, linear, [(count, *key) for key, count in mixed.items()])


def table_of(steps: Sequence[PointSteps], rates: Sequence[HardwareProfile]) -> LaunchTable:
    latency, exits = np.zeros((len(steps), ALL)), np.zeros((len(steps), ALL))
    linear = np.zeros((len(steps), ALL, len(CLASSES), 3))
    point: list[int] = []
    step: list[int] = []
    rows: list[tuple[float, ...]] = []
    known: dict[tuple[int, int], _Launches] = {}

    def add(index: int, place: int, ops: tuple[Op, ...], weight: float = 1.0) -> None:
        key = (id(ops), id(rates[index]))
        if key not in known:
            known[key] = _Launches.of(ops, rates[index])
        found = known[key]
        latency[index, place] += weight * found.latency_s
        exits[index, place] += weight * found.exits
        linear[index, place] += weight * found.linear
        rows.extend((weight * count, *rest) for count, *rest in found.mixed)
        point.extend([index] * len(found.mixed))
        step.extend([index * ALL + place] * len(found.mixed))

    for index, one in enumerate(steps):
        for place, ops in enumerate(one.decode):
            add(index, place, ops)
        if one.point.disaggregated:
            for place in range(len(one.decode), GRID):  # padding repeats the last batch
                add(index, place, one.decode[-1])
        for column, prompts in enumerate((one.own, one.arriving, one.packed)):
            for weight, ops in prompts.steps:
                add(index, GRID + column, ops, weight)
    data = np.array(rows).reshape(-1, 6)  # count, three roofs, exponent, class: as `_Launches.mixed` has them
    return LaunchTable(
        latency, exits, linear, np.array(point, dtype=np.intp), np.array(step, dtype=np.intp),
        data[:, 5].astype(np.intp), data[:, 0], data[:, 1:4], data[:, 4],
    )  # fmt: skip

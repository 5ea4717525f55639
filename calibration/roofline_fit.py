"""Robust fit of ClassEfficiency parameters to measured times of ops, with the formula of `simulator.model.roofline`.

A measurement is one op or a module of several; its time is the sum over its ops of
    hops * t0 + d K + ((FLOPs/F)^q + (bytes/B)^q + (net/N)^q)^(1/q)
with the FLOPs of ragged tiles (see `simulator.model.roofline`).
Residuals are logs of predicted / measured under a soft-L1 loss; weak lognormal priors keep parameters that no
measurement sees where they were.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import least_squares

from calibration.arrays import Index
from calibration.l2_warmth import share_of_time
from calibration.rate_parameters import FIELDS, LOWER, PRIOR_WIDTH, UNIT_WIDTH, UPPER, Parameters, Slot
from hw_profiles.efficiency import OpClass
from hw_profiles.profile import HardwareProfile
from simulator.model.arrays import Floats
from simulator.model.ops import Op, kernel_of

SOFT_L1_SCALE = 0.1  # log error beyond which residuals count linearly (assumed)
FOLDS = 4  # of the measurements, each predicted by a fit of the others (assumed)
EVALUATIONS = 60  # of the residuals at most in one fit (assumed)
TYPICAL_MOVE = 0.5  # of a log parameter, by which the solver scales its steps (assumed)
MARGIN = 1e-6  # log units by which a fit starts inside its bounds, where the solver wants it


@dataclass(frozen=True)
class MeasuredWork:
    """`seconds` that `ops` took one after the other. family: table it comes from; label: row, for reports; warm: one
    launch timed over and over (see `warm`)."""

    family: str
    ops: tuple[Op, ...]
    seconds: float
    label: str
    warm: bool = False


def at_peak(op: Op, hardware: HardwareProfile) -> tuple[float, float, float]:
    """Seconds of one launch against each roof at data-sheet peak: compute, memory, network."""
    compute = sum(flops / hardware.matrix_peak(dtype) for dtype, flops in op.flops.items())
    link = {"scale_up": hardware.scale_up_bandwidth, "scale_out": hardware.scale_out_bandwidth}
    network = op.network_bytes / link[op.link] if op.link else 0.0
    return compute, op.hbm_bytes / hardware.memory_bandwidth, network


def row_at_peak(op: Op, hardware: HardwareProfile) -> float:
    """Seconds of one more row in each ragged tile, at data-sheet peak."""
    return sum(op.row_flops / hardware.matrix_peak(dtype) for dtype in op.flops)


@dataclass(frozen=True)
class Work:
    """Ops of many measurements as flat arrays, in seconds at full peak; slots say which parameter prices what."""

    owner: Index  # measurement of each op
    count: Floats
    hops: Floats
    roofs: Floats  # [ops, 3]: compute, memory, network
    row: Floats  # compute of one more row in each ragged tile
    short: Floats  # memory of short rows
    again: Floats  # memory of weights read again
    depth: Floats  # length of the sums
    slots: Index  # [ops, fields]: of FIELDS
    log_seconds: Floats  # [measurements]

    @classmethod
    def of(cls, measured: Sequence[MeasuredWork], hardware: HardwareProfile, parameters: Parameters) -> Work:
        owner, count, hops, roofs, row, short, again, depth, slots = [], [], [], [], [], [], [], [], []
        generation = hardware.accelerator.generation
        for index, one in enumerate(measured):
            for op in one.ops:
                owner.append(index)
                count.append(float(op.count))
                hops.append(float(op.hops))
                compute, memory, network = at_peak(op, hardware)
                share = share_of_time(op.hbm_bytes, generation) if one.warm else 1.0
                roofs.append((compute, share * memory, network))
                row.append(row_at_peak(op, hardware))
                short.append(op.short_row_bytes / hardware.memory_bandwidth)
                again.append(op.again_bytes / hardware.memory_bandwidth)
                depth.append(op.depth)
                slots.append([parameters.place_for(field, op) for field in FIELDS])
        return cls(
            np.array(owner, dtype=np.intp),
            np.array(count),
            np.array(hops),
            np.array(roofs, dtype=float).reshape(-1, 3),
            np.array(row),
            np.array(short),
            np.array(again),
            np.array(depth),
            np.array(slots, dtype=np.intp).reshape(-1, len(FIELDS)),
            np.log([one.seconds for one in measured]),
        )

    def take(self, rows: Index) -> Work:
        """The measurements `rows` alone."""
        place = np.full(len(self.log_seconds), -1, dtype=np.intp)
        place[rows] = np.arange(len(rows))
        kept = place[self.owner] >= 0
        return replace(
            self,
            owner=place[self.owner[kept]],
            count=self.count[kept],
            hops=self.hops[kept],
            roofs=self.roofs[kept],
            row=self.row[kept],
            short=self.short[kept],
            again=self.again[kept],
            depth=self.depth[kept],
            slots=self.slots[kept],
            log_seconds=self.log_seconds[rows],
        )

    def seconds(self, logs: Floats) -> Floats:
        """Predicted seconds of each measurement."""
        each = np.exp(logs)[self.slots]
        latency, exponent, tile_rows, short_row_factor, reread_share, depth_s = each[:, 3:].T
        times = self.roofs.copy()
        times[:, 0] += tile_rows * self.row
        times[:, 1] += (short_row_factor - 1.0) * self.short + reread_share * self.again
        times /= each[:, :3]
        largest = times.max(axis=1, keepdims=True)  # scaled by it, powers do not underflow
        scaled = np.divide(times, largest, out=np.zeros_like(times), where=largest > 0)
        norm = largest[:, 0] * np.power(np.power(scaled, exponent[:, None]).sum(axis=1), 1 / exponent)
        work: Floats = self.count * (latency * self.hops + depth_s * self.depth + norm)
        return np.bincount(self.owner, weights=work, minlength=len(self.log_seconds)).astype(np.float64)


def kernels_of(measured: Sequence[MeasuredWork]) -> dict[OpClass, set[str]]:
    """Kernels that each class is measured with."""
    found: dict[OpClass, set[str]] = {}
    for one in measured:
        for op in one.ops:
            found.setdefault(op.op_class, set()).add(kernel_of(op))
    return found


@dataclass(frozen=True)
class Fitted:
    """Parameters, and log(measured / predicted) of each measurement with itself in and held out."""

    parameters: Parameters
    residuals: Floats
    held_out: Floats


def fit(
    work: Work,
    start: Parameters,
    free: Collection[OpClass],
    seed: int = 0,
    upper: Mapping[str, float] = UPPER,
    shapes: Sequence[Hashable] | None = None,
    apart: Collection[Slot] = (),
) -> Fitted:
    """Fit the classes `free` on all measurements, and again without each fold in turn for held-out residuals.

    upper: the largest value of each parameter. shapes: of each measurement; those of one shape are held out together.
    Left out, each measurement is a shape of its own. apart: parameters that are fitted just where their class is not.
    """
    seen = np.unique(work.slots)
    open_slots = np.array([i for i in seen if (start.slots[i][1] in free) != (start.slots[i] in apart)], dtype=np.intp)
    everything = np.arange(len(work.log_seconds))
    logs = _solve(work, start, open_slots, start.logs, upper)
    held_out = np.zeros(len(everything))
    shape_of = everything if shapes is None else _numbered(shapes)
    folds = np.random.default_rng(seed).permutation(int(shape_of.max()) + 1)[shape_of] % FOLDS
    for fold in range(FOLDS):
        rest = _solve(work.take(everything[folds != fold]), start, open_slots, logs, upper)
        outside = everything[folds == fold]
        part = work.take(outside)
        held_out[outside] = part.log_seconds - np.log(part.seconds(rest))
    return Fitted(start.with_logs(logs), work.log_seconds - np.log(work.seconds(logs)), held_out)


def _numbered(shapes: Sequence[Hashable]) -> Index:
    """Equal shapes have equal numbers, from 0 in order of appearance."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(shape, len(numbers)) for shape in shapes], dtype=np.intp)


def _solve(work: Work, prior: Parameters, free: Index, begin: Floats, upper: Mapping[str, float]) -> Floats:
    fields = [prior.slots[i][0] for i in free]
    width = np.array([PRIOR_WIDTH.get(field, UNIT_WIDTH) for field in fields])
    low = np.log([LOWER[field] for field in fields])
    high = np.log([upper[field] for field in fields])

    def full(x: Floats) -> Floats:
        logs = prior.logs.copy()
        logs[free] = x
        return logs

    def residuals(x: Floats) -> Floats:
        data = np.log(work.seconds(full(x))) - work.log_seconds
        return np.concatenate((data, (x - prior.logs[free]) / width * SOFT_L1_SCALE))

    inside = np.clip(begin[free], low + MARGIN, high - MARGIN)
    found = least_squares(
        residuals,
        inside,
        bounds=(low, high),
        loss="soft_l1",
        f_scale=SOFT_L1_SCALE,
        max_nfev=EVALUATIONS,
        x_scale=TYPICAL_MOVE,
    )
    return full(found.x)

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
from hw_profiles.efficiency import ClassEfficiency, OpClass
from hw_profiles.profile import HardwareProfile
from simulator.model.arrays import Floats
from simulator.model.ops import Op, kernel_of

CLASSES = tuple(OpClass)
# One parameter: field, class, and the kernel it is of (operand dtype, and that of weights it widens; "" for ops that
# multiply nothing, and for fields that all kernels share).
Slot = tuple[str, OpClass, str]
FIELDS = ("matrix_fraction", "memory_fraction", "network_fraction", "latency_s", "exponent", "tile_rows",
          "short_row_factor", "reread_share", "depth_s")  # fmt: skip
# Classes whose kernels share a memory fraction: dense products stream their weights alike in every precision.
SHARED_MEMORY = (OpClass.DENSE_GEMM,)
# Classes whose kernels have floors of their own: SGLang casts the queries of FP8 caches before the core, in kernels
# with which a decode step of grouped heads takes 17 us at least instead of 10; vLLM and TensorRT-LLM do not. Experts of
# one token take 20 us in NVFP4 and 50 us in FP8, beyond what their bytes explain. MLA decode takes 10 us at least where
# the cache is FP8, 15 us where it is bf16.
OWN_FLOORS = (OpClass.ATTENTION_DECODE, OpClass.LATENT_DECODE, OpClass.GROUPED_GEMM)
OWN_REREADS = (OpClass.GROUPED_GEMM,)
LOWER = {
    "matrix_fraction": 0.01, "memory_fraction": 0.001, "network_fraction": 0.02, "latency_s": 2e-7, "exponent": 1.0,
    "tile_rows": 1e-9,  # none
    "short_row_factor": 1.0,
    "reread_share": 0.01,
    "depth_s": 1e-13,
}  # fmt: skip
UPPER = {
    "matrix_fraction": 1.0, "memory_fraction": 1.0, "network_fraction": 1.0, "latency_s": 4e-4, "exponent": 8.0,
    "tile_rows": 1024.0,
    "short_row_factor": 1000.0,
    "reread_share": 2.0,
    "depth_s": 2e-9,
}  # fmt: skip
RAGGED = (
    OpClass.DENSE_GEMM, OpClass.ATTENTION_PREFILL, OpClass.LATENT_PREFILL, OpClass.SPARSE_PREFILL,
    OpClass.RECURRENT_PREFILL,
)  # fmt: skip
TILE_ROWS = 32.0  # where a fit of them starts
SHORT_ROW_FACTOR = 100.0  # likewise
DEEP = (OpClass.DENSE_GEMM,)  # whose kernels have sums of a pace of their own
# Width of the priors in log units: a factor of e in rates and floors, of 1.5 in the exponent. Each weighs as much
# as one measurement.
PRIOR_WIDTH = {"exponent": 0.4, "tile_rows": 2.0, "short_row_factor": 2.0, "reread_share": 0.5, "depth_s": 0.5}
SOFT_L1_SCALE = 0.1  # residuals beyond 10% count linearly
FOLDS = 4


@dataclass(frozen=True)
class Measured:
    """`seconds` that `ops` took one after the other. family: table it comes from; label: row, for reports; warm: one
    launch timed over and over (see `warm`)."""

    family: str
    ops: tuple[Op, ...]
    seconds: float
    label: str
    warm: bool = False


def ragged(classes: Mapping[OpClass, ClassEfficiency]) -> dict[OpClass, ClassEfficiency]:
    """The same rates, with ragged tiles that a fit may then make smaller or larger."""
    given = {"tile_rows": TILE_ROWS}
    return {name: rates.model_copy(update=given) if name in RAGGED else rates for name, rates in classes.items()}


def with_short_rows(classes: Mapping[OpClass, ClassEfficiency]) -> dict[OpClass, ClassEfficiency]:
    """The same rates, with slow choices among few, which fits do not find from a factor of 1."""
    selection = classes[OpClass.SELECTION].model_copy(update={"short_row_factor": SHORT_ROW_FACTOR})
    return {**classes, OpClass.SELECTION: selection}


def at_peak(op: Op, hardware: HardwareProfile) -> tuple[float, float, float]:
    """Seconds of one launch against each roof at data-sheet peak: compute, memory, network."""
    compute = sum(flops / hardware.matrix_peak(dtype) for dtype, flops in op.flops.items())
    link = {"scale_up": hardware.scale_up_bandwidth, "scale_out": hardware.scale_out_bandwidth}
    network = op.network_bytes / link[op.link] if op.link else 0.0
    return compute, op.hbm_bytes / hardware.memory_bandwidth, network


def row_at_peak(op: Op, hardware: HardwareProfile) -> float:
    """Seconds of one more row in each ragged tile, at data-sheet peak."""
    return sum(op.row_flops / hardware.matrix_peak(dtype) for dtype in op.flops)


def _kernel_for(field: str, op_class: OpClass, kernel: str) -> str:
    """`kernel` where each has a `field` of its own in the class, else that of all."""
    own = {
        "matrix_fraction": True,
        "memory_fraction": op_class not in SHARED_MEMORY,
        "latency_s": op_class in OWN_FLOORS,
        "depth_s": op_class in DEEP,
        "reread_share": op_class in OWN_REREADS,
    }
    return kernel if own.get(field) else ""


class Parameters:
    """Log parameters of every class, laid out flat."""

    def __init__(self, slots: Sequence[Slot], logs: Floats) -> None:
        self.slots, self.logs = tuple(slots), logs
        self.place = {slot: i for i, slot in enumerate(self.slots)}

    @classmethod
    def of(cls, classes: dict[OpClass, ClassEfficiency], kernels: dict[OpClass, set[str]]) -> Parameters:
        slots: list[Slot] = []
        values: list[float] = []
        for op_class, rates in classes.items():
            given = {
                "matrix_fraction": rates.matrix_fraction_of,
                "memory_fraction": rates.memory_fraction_of,
                "latency_s": rates.latency_s_of,
                "depth_s": rates.depth_s_of,
                "reread_share": rates.reread_share_of,
            }
            for field in FIELDS:
                for kernel in sorted({_kernel_for(field, op_class, k) for k in kernels.get(op_class, {""})}):
                    slots.append((field, op_class, kernel))
                    values.append(given[field](kernel) if field in given else getattr(rates, field))
        low = np.array([LOWER[field] for field, _, _ in slots])
        high = np.array([UPPER[field] for field, _, _ in slots])
        return cls(slots, np.log(np.clip(values, low, high)))

    def with_logs(self, logs: Floats) -> Parameters:
        return Parameters(self.slots, logs)

    def value(self, field: str, op_class: OpClass, kernel: str = "") -> float:
        return float(np.exp(self.logs[self.place[field, op_class, kernel]]))

    def place_for(self, field: str, op: Op) -> int:
        """Place of the parameter that prices `op`."""
        return self.place[field, op.op_class, _kernel_for(field, op.op_class, kernel_of(op))]

    def by_kernel(self, field: str, op_class: OpClass) -> dict[str, float]:
        """Values of a field that differs by kernel, "" for ops that multiply nothing; none where all share it."""
        found = sorted(k for f, c, k in self.slots if (f, c) == (field, op_class))
        return {} if found == [""] else {kernel: self.value(field, op_class, kernel) for kernel in found}

    def _rest(self, field: str, op_class: OpClass) -> float:
        """Of kernels without a row: the least of those that have one and multiply, or what all share."""
        own = [value for kernel, value in self.by_kernel(field, op_class).items() if kernel]
        return min(own) if own else self.value(field, op_class)

    def fractions(self, op_class: OpClass, before: ClassEfficiency) -> dict[str, float | dict[str, float]]:
        """Matrix and memory fractions as fields of a `ClassEfficiency`, rounded. Kernels without a row take the least
        of those that have one."""
        matrix, memory = ({k: round(v, 4) for k, v in self.by_kernel(f, op_class).items()} for f in FIELDS[:2])
        matrix.pop("", None)
        return {
            "matrix_fraction": min(matrix.values(), default=before.matrix_fraction),
            "matrix_fraction_by": matrix,
            "memory_fraction": round(self._rest("memory_fraction", op_class), 4),
            "memory_fraction_by": memory,
        }

    def floors(self, op_class: OpClass) -> dict[str, float | dict[str, float]]:
        """Latencies, and depths of deep products, as fields of a `ClassEfficiency`, in four digits. Kernels without a
        row take the least."""
        found: dict[str, float | dict[str, float]] = {}
        for field in ("latency_s", "depth_s") if op_class in DEEP else ("latency_s",):
            own = {kernel: float(f"{value:.4g}") for kernel, value in self.by_kernel(field, op_class).items()}
            found |= {field: float(f"{self._rest(field, op_class):.4g}"), f"{field}_by": own}
        return found

    def rereads(self, op_class: OpClass) -> dict[str, float | dict[str, float]]:
        """Shares of reading again as fields of a `ClassEfficiency`, rounded. Kernels without a row take the mean."""
        own = {k: round(v, 3) for k, v in self.by_kernel("reread_share", op_class).items() if k}
        return {"reread_share": round(sum(own.values()) / len(own), 3), "reread_share_by": own} if own else {}


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
    def of(cls, measured: Sequence[Measured], hardware: HardwareProfile, parameters: Parameters) -> Work:
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


def kernels_of(measured: Sequence[Measured]) -> dict[OpClass, set[str]]:
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
    width = np.array([PRIOR_WIDTH.get(field, 1.0) for field in fields])
    low = np.log([LOWER[field] for field in fields])
    high = np.log([upper[field] for field in fields])

    def full(x: Floats) -> Floats:
        logs = prior.logs.copy()
        logs[free] = x
        return logs

    def residuals(x: Floats) -> Floats:
        data = np.log(work.seconds(full(x))) - work.log_seconds
        return np.concatenate((data, (x - prior.logs[free]) / width * SOFT_L1_SCALE))

    inside = np.clip(begin[free], low + 1e-6, high - 1e-6)
    found = least_squares(
        residuals, inside, bounds=(low, high), loss="soft_l1", f_scale=SOFT_L1_SCALE, max_nfev=60, x_scale=0.5
    )
    return full(found.x)

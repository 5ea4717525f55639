"""Ops measured alone: what physics forbids is thrown out, the rest is fitted class by class."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from calibration.microbench.measurement import FitError, Measurement, Measurements
from calibration.op_tables.row_filters import CACHE_BYTES, FASTEST
from calibration.rate_parameters import UPPER, Parameters, ragged
from calibration.roofline_fit import MeasuredWork, Work, at_peak, fit, kernels_of
from hw_profiles import catalog
from hw_profiles.efficiency import OpClass
from hw_profiles.profile import HardwareProfile

CONTRADICTION = 4.0  # ratio of two times of the same work (assumed)
CONTRADICTING_SHARE = 0.2  # of the work that was measured more than once (assumed)
PRICED = ("op_class", "hbm_bytes", "network_bytes", "link", "count", "hops", "row_flops",
          "short_row_bytes", "again_bytes", "depth", "stored")  # and FLOPs by dtype  # fmt: skip
LONGEST_FLOOR_S = 5e-3  # ops of plain PyTorch on a CPU are many calls each (assumed)


@dataclass(frozen=True)
class OpPoint:
    """One op measured alone: what was measured and what its class's fit says. [s]"""

    op_class: OpClass
    label: str
    measured_s: float
    predicted_s: float
    held_out_error: float  # signed, predicted / measured - 1 by a fit that did not see it


def gated(measured: Measurements, hardware: HardwareProfile) -> tuple[list[MeasuredWork], list[tuple[str, str]]]:
    """Ops that physics allows. Where many pieces of work have two very different times, the file is refused."""
    kept: list[MeasuredWork] = []
    rejected: list[tuple[str, str]] = []
    data_sheet = hardware.name in catalog.names()
    times: dict[tuple[str, str], list[tuple[str, float]]] = {}
    for row in measured.usable:
        if not row.ops:
            continue
        impossible = _impossible(row, hardware, data_sheet)
        if impossible:
            rejected.append((row.key, impossible))
            continue
        times.setdefault((row.family, repr(row.ops)), []).append((row.key, row.seconds))
        kept.append(MeasuredWork(row.family, row.ops, row.seconds, row.key))
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


def _impossible(row: Measurement, hardware: HardwareProfile, data_sheet: bool) -> str:
    """What physics forbids about a row; "" where it allows it.

    Bytes count where they are too many for caches, and on parts with a data sheet: the bandwidth of a machine without
    one is that of copies, and reads may be faster.
    """
    peaks = [(op.count, *at_peak(op, hardware)[:2]) for op in row.ops]
    if row.seconds < FASTEST * sum(count * compute for count, compute, _ in peaks):
        return "faster than its FLOPs at peak"
    streamed = sum(op.count * op.hbm_bytes for op in row.ops) > CACHE_BYTES
    if data_sheet and streamed and row.seconds < FASTEST * sum(count * memory for count, _, memory in peaks):
        return "faster than its bytes at peak"
    return ""


def shape_of(row: MeasuredWork) -> Hashable:
    """Equal for measurements that the simulator prices alike, whichever kernel or step they come from."""
    return tuple(tuple(getattr(op, key) for key in PRICED) + tuple(sorted(op.flops.items())) for op in row.ops)


def class_of(row: MeasuredWork) -> OpClass:
    return row.ops[0].op_class


def fit_ops(rows: Sequence[MeasuredWork], hardware: HardwareProfile) -> tuple[Parameters, tuple[OpPoint, ...]]:
    """Class by class; elementwise first, for it takes part in other classes' measurements. Errors are of shapes held
    out: repeats of one in other steps and layers tell nothing of it."""
    parameters = Parameters.of(ragged(hardware.efficiency.classes), kernels_of(rows))
    upper = {**UPPER, "latency_s": LONGEST_FLOOR_S}
    points: list[OpPoint] = []
    for op_class in sorted({class_of(row) for row in rows}, key=lambda c: (c is not OpClass.ELEMENTWISE, c)):
        mine = [row for row in rows if class_of(row) is op_class]
        shapes = [shape_of(row) for row in mine]
        result = fit(Work.of(mine, hardware, parameters), parameters, {op_class}, upper=upper, shapes=shapes)
        parameters = result.parameters
        points += [
            OpPoint(op_class, row.label, row.seconds, row.seconds * float(np.exp(-inside)), float(np.expm1(-outside)))
            for row, inside, outside in zip(mine, result.residuals, result.held_out, strict=True)
        ]
    return parameters, tuple(points)

"""Efficiency of a stack on an accelerator from published op tables.

Classes are fitted from the tables of their own ops; the indexer, and cores of stacks without a table of their own,
from attention modules with everything else held. Classes without a usable table stay assumed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from calibration.op_tables.row_filters import (
    Rejected,
    copied_from,
    data_sheets_agree,
    gate_rows,
    host_bound,
    slower_kernel,
)
from calibration.op_tables.table_ops import measurements
from calibration.op_tables.tables import FAMILIES, TableError, Tables, read_tables, systems
from calibration.rate_parameters import Parameters, fitted_class, ragged, residual_sigma, with_short_rows
from calibration.roofline_fit import Fitted, MeasuredWork, Work, fit, kernels_of
from hw_profiles.catalog import load
from hw_profiles.efficiency import Efficiency, OpClass
from hw_profiles.profile import HardwareProfile

MODULES = ("dsv4_csa_context_module", "dsv4_csa_generation_module", "dsv4_hca_context_module",
           "dsv4_hca_generation_module")  # fmt: skip
# NCCL stands in for an all-reduce only where the stack's own kernel has no table.
FALLBACKS = {"nccl": "custom_allreduce"}
# Classes that only whole attention modules show.
IN_MODULES = {
    OpClass.SPARSE_PREFILL, OpClass.SPARSE_DECODE, OpClass.INDEXER, OpClass.SELECTION, OpClass.ELEMENTWISE,
}  # fmt: skip
FEWEST = 12  # rows for a class of 4-7 parameters (assumed)
CLIPPED = 0.02  # share of held-out residuals at either end that a table's misprints may be (assumed)


@dataclass(frozen=True)
class FamilyError:
    """How well a family is predicted. Errors are |predicted / measured - 1|."""

    family: str
    op_class: str  # the class fitted from it, or "module"
    rows: int
    in_sample: float  # median
    held_out: float  # median over rows that their fit did not see
    bias: float  # median of predicted / measured - 1, held out
    each: tuple[float, ...]  # predicted / measured - 1 of every row, held out


@dataclass(frozen=True)
class Calibration:
    """A fitted efficiency with what it rests on."""

    efficiency: Efficiency
    errors: tuple[FamilyError, ...]
    rejected: tuple[Rejected, ...]
    left_out: dict[str, int]  # rows by family that no op of the simulator stands for, or beyond the sample

    def beside(self, other: Calibration) -> Calibration:
        """This one with what `other` fitted too."""
        fitted = {name: rates for name, rates in other.efficiency.classes.items() if not rates.assumed}
        classes = {**self.efficiency.classes, **fitted}
        return Calibration(
            self.efficiency.model_copy(update={"classes": classes}),
            (*self.errors, *other.errors),
            (*self.rejected, *other.rejected),
            {**self.left_out, **other.left_out},
        )

    def to_json(self) -> str:
        """The profile file: the efficiency, its errors told in the provenance."""
        return json.dumps(self.efficiency.model_dump(mode="json"), indent=1) + "\n"


def calibrate(system: str, stack: str, folder: Path | None = None, families: Collection[str] = FAMILIES) -> Calibration:
    """Fit `stack` on `system` from the tables in `folder`, or of the installed wheel."""
    hardware = load(system)
    tables = read_tables(hardware.name, stack, folder, families)
    others: dict[str, Tables] = {}
    for name in systems(folder, stack):
        if name != system:
            with suppress(TableError):  # it has none of these families
                others[name] = read_tables(name, stack, folder, families)
    measured, rejected, left_out = _gated(tables, hardware, others)
    start = Parameters.of(with_short_rows(ragged(hardware.efficiency.classes)), kernels_of(measured))
    # A product of which no short row is left tells its floor from that of others, its depth not at all; modules do.
    apart = {("depth_s", OpClass.DENSE_GEMM, one.kernel) for one in rejected if one.kernel}
    groups: dict[str, list[MeasuredWork]] = {}
    for one in measured:
        groups.setdefault(_group(one), []).append(one)
    fitted: dict[OpClass, float] = {}
    errors: list[FamilyError] = []
    parameters = start
    for name in sorted(groups, key=lambda group: group == "module"):
        rows = groups[name]
        free = _free(name, set(fitted), rows)
        if len(rows) < FEWEST or not free:
            continue
        work = Work.of(rows, hardware, parameters)
        result = fit(work, parameters, free, apart=apart)
        parameters = result.parameters
        fitted |= dict.fromkeys(free, residual_sigma(result.held_out, clipped_share=CLIPPED))
        errors += _family_errors(name, rows, result)
    return Calibration(
        _efficiency(hardware, stack, tables, parameters, fitted, groups, errors),
        tuple(errors),
        tuple(rejected),
        left_out,
    )


def _gated(
    tables: Tables, hardware: HardwareProfile, others: Mapping[str, Tables]
) -> tuple[list[MeasuredWork], list[Rejected], dict[str, int]]:
    measured: list[MeasuredWork] = []
    rejected: list[Rejected] = []
    left_out: dict[str, int] = {}
    for family, frame in tables.frames.items():
        if FALLBACKS.get(family) in tables.frames:
            continue
        twin = copied_from(frame, {name: t.frames[family] for name, t in others.items() if family in t.frames})
        if twin is not None and not data_sheets_agree(hardware, load(twin)):
            rejected.append(Rejected(family, "copied table", len(frame), f"the times of {twin}"))
            continue
        if family == "moe":
            frame, thrown = _without_slower_kernels(frame, hardware, others)
            rejected += thrown
        found = measurements(family, frame, hardware)
        left_out[family] = len(frame) - len(found)
        kept, thrown = gate_rows(family, frame, found, hardware)
        measured += kept
        rejected += thrown
    modules = [one for one in measured if one.family in MODULES]
    products, thrown = host_bound([one for one in measured if one.family == "gemm"], modules)
    rest = [one for one in measured if one.family != "gemm"]
    return [*products, *rest], [*rejected, *thrown], left_out


def _without_slower_kernels(
    frame: pd.DataFrame, hardware: HardwareProfile, others: Mapping[str, Tables]
) -> tuple[pd.DataFrame, list[Rejected]]:
    alike = {
        name: tables.frames["moe"]
        for name, tables in others.items()
        if "moe" in tables.frames and data_sheets_agree(hardware, load(name))
    }
    rejected = []
    for dtype, name in slower_kernel(frame, alike).items():
        slow = frame["moe_dtype"] == dtype
        rejected.append(Rejected("moe", "slower kernel", int(slow.sum()), f"{dtype}: than on {name}"))
        frame = frame[~slow]
    return frame, rejected


def _group(one: MeasuredWork) -> str:
    """The class that a measurement decides: that of its FLOPs, else of its bytes."""
    if one.family in MODULES:
        return "module"
    return max(one.ops, key=lambda op: (sum(op.flops.values()), op.hbm_bytes)).op_class.value


def _free(group: str, fitted: set[OpClass], rows: Sequence[MeasuredWork]) -> set[OpClass]:
    """Classes that a group decides: its own; of modules the indexer and cores that have no table of their own."""
    if group != "module":
        return {OpClass(group)}
    inside = {op.op_class for one in rows for op in one.ops}
    return (inside & IN_MODULES) - fitted


def _family_errors(name: str, rows: Sequence[MeasuredWork], result: Fitted) -> Iterable[FamilyError]:
    families = np.array([one.family for one in rows])
    for family in dict.fromkeys(families):
        mine = families == family
        inside, outside = np.expm1(-result.residuals[mine]), np.expm1(-result.held_out[mine])
        yield FamilyError(
            family,
            name,
            int(mine.sum()),
            float(np.median(np.abs(inside))),
            float(np.median(np.abs(outside))),
            float(np.median(outside)),
            tuple(outside.tolist()),
        )


def _efficiency(
    hardware: HardwareProfile,
    stack: str,
    tables: Tables,
    parameters: Parameters,
    fitted: dict[OpClass, float],
    groups: dict[str, list[MeasuredWork]],
    errors: Sequence[FamilyError],
) -> Efficiency:
    """Fitted classes laid over the assumed ones."""
    assumed = hardware.efficiency
    classes = dict(assumed.classes)
    for op_class, sigma in fitted.items():
        own = [e for e in errors if e.op_class in (op_class.value, "module")]
        text = "; ".join(f"{e.family} ({e.rows} rows, held-out median error {e.held_out:.0%})" for e in own)
        classes[op_class] = fitted_class(
            parameters,
            op_class,
            classes[op_class],
            network_fraction=round(parameters.value("network_fraction", op_class), 4),
            sigma=sigma,
            source=f"Fit to {tables.origin}: {text}",
        )
    return assumed.model_copy(
        update={
            "stack": stack,
            "origin": "published",
            "classes": classes,
            "provenance": f"Kernel rates of {stack} on {hardware.name} from {tables.origin}, "
            f"{sum(len(rows) for rows in groups.values())} rows. Host overheads: {assumed.provenance}",
        }
    )

"""Physics gates: measured rows and tables that cannot be what they say, thrown out by rule and reported.

1. faster than the data sheet: a row takes less time than its FLOPs at peak, or than its bytes at peak where they are
   too many for caches;
2. less time for more work: a row is much faster than another of its series with less to do (the larger one took
   another code path, or less work than stated);
3. slow table: large rows of one kernel and precision take several times the roofline of the assumed efficiency
   (timed with launches, a fallback path, or wrong units);
4. copied table: the same times, digit for digit, as another accelerator whose data sheet differs;
5. launched from the host: products that alone take several times what a whole attention module of the same stack
   has for each of its own (timed without a graph): rows near the shortest say nothing of the kernel;
6. other work: experts that are bound by reading weights, and take several times as long as that at peak (kernels that
   prepare room for every expert of the layer: one token takes longer the more experts there are);
7. slower kernel: experts of one precision take longer than those of the same stack on an accelerator with the same
   data sheet, whose table has a faster kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from calibration.roofline_fit import MeasuredWork, at_peak
from hw_profiles.efficiency import OpClass
from hw_profiles.profile import HardwareProfile
from simulator.model.ops import Op
from simulator.model.roofline import op_seconds

# Thresholds are assumed: wide of what a sound table showed, near enough to what an unsound one did.
FASTEST = 0.9  # of the time at peak: boost clocks exceed data-sheet rates by less
CACHE_BYTES = 256e6  # twice the largest L2 of the catalogue's NVIDIA parts
MUCH_FASTER = 0.7  # of the time of a row with less work
SLOW_TABLE = 3.0  # median of measured / predicted over the larger half of a table
HOST_BOUND = 2.0  # of what a module leaves; and of the shortest row, for rows that launches hide
OTHER_WORK = 4.0  # times the time of the bytes at peak
SAME_KERNEL = 1.2  # most between times of one kernel
FEWEST_COPIED = 20  # rows of one shape
COPY_SHARE = 0.5  # of times that equal another accelerator's
SAME_PEAK = 0.1  # relative difference of data sheets within which a copy is harmless


@dataclass(frozen=True)
class Rejected:
    """Rows of one family that a gate threw out."""

    family: str
    rule: str
    rows: int
    detail: str
    kernel: str = ""  # whose small rows are all among them


def gate_rows(
    family: str, frame: pd.DataFrame, measured: Sequence[MeasuredWork], hardware: HardwareProfile
) -> tuple[list[MeasuredWork], list[Rejected]]:
    """Gates 1-3 and 6. measured: one for each used row, labelled with its index in `frame`."""
    rejected: list[Rejected] = []
    kept = [one for one in measured if one.seconds > 0 and np.isfinite(one.seconds)]

    impossible = {id(one) for one in kept if _faster_than_data_sheet(one, hardware)}
    kept = _drop(kept, impossible, Rejected(family, "faster than the data sheet", len(impossible), ""), rejected)

    if family == "moe":
        other = {id(one) for one in kept if _mostly_other_work(one, hardware)}
        kept = _drop(kept, other, Rejected(family, "other work", len(other), ""), rejected)

    table = _describe(frame, kept, hardware)
    shrinking = _less_for_more(table)
    kept = _drop(kept, shrinking, Rejected(family, "less time for more work", len(shrinking), ""), rejected)

    for key, rows in _describe(frame, kept, hardware).groupby("kind", dropna=False):
        large = rows[rows["work"] >= rows["work"].median()]
        ratio = float((large["seconds"] / large["assumed"]).median())
        if ratio > SLOW_TABLE:
            detail = f"{key}: {ratio:.1f} times the assumed efficiency"
            kept = _drop(kept, set(rows["one"]), Rejected(family, "slow table", len(rows), detail), rejected)
    return kept, rejected


def _drop(kept: list[MeasuredWork], ids: set[int], what: Rejected, rejected: list[Rejected]) -> list[MeasuredWork]:
    if ids:
        rejected.append(what)
    return [one for one in kept if id(one) not in ids]


def _at_peak(one: MeasuredWork, hardware: HardwareProfile) -> tuple[float, float, float]:
    """(compute seconds, memory seconds, bytes) of all ops at peak."""
    compute = memory = size = 0.0
    for op in one.ops:
        c, m, _ = at_peak(op, hardware)
        compute, memory = compute + op.count * c, memory + op.count * m
        size += op.count * op.hbm_bytes
    return compute, memory, size


def _faster_than_data_sheet(one: MeasuredWork, hardware: HardwareProfile) -> bool:
    compute, memory, size = _at_peak(one, hardware)
    floor = max(compute, memory if size > CACHE_BYTES else 0.0)
    return one.seconds < FASTEST * floor


def _mostly_other_work(one: MeasuredWork, hardware: HardwareProfile) -> bool:
    compute, memory, _ = _at_peak(one, hardware)
    return compute < memory and one.seconds > OTHER_WORK * memory


# Columns along which a series grows, and columns that name the kernel or precision of a table.
GROWS = ("m", "num_tokens", "isl", "step", "message_size", "num_token", "batch_size")
KINDS = ("kernel_source", "gemm_dtype", "moe_dtype", "kv_cache_dtype", "comm_dtype", "backend", "op_name")
NOT_SHAPE = ("latency", "power", "power_limit", "db_version", "system")


def _describe(frame: pd.DataFrame, kept: Sequence[MeasuredWork], hardware: HardwareProfile) -> pd.DataFrame:
    """Work, time and identity of each kept row."""
    rows = frame.loc[[int(one.label.rpartition(" ")[2]) for one in kept]]
    out = pd.DataFrame({"one": [id(one) for one in kept], "seconds": [one.seconds for one in kept]})
    out["work"] = [sum(_at_peak(one, hardware)[:2]) for one in kept]
    out["assumed"] = [sum(op_seconds(op, hardware) for op in one.ops) for one in kept]
    kinds = [c for c in KINDS if c in rows]
    out["kind"] = _joined(rows, kinds) if kinds else "all"
    for axis in (c for c in GROWS if c in rows):
        rest = [c for c in map(str, rows) if c != axis and c not in NOT_SHAPE and not c.endswith(("_us", "_gbps"))]
        out[f"series {axis}"] = _joined(rows, rest)
    return out


def _joined(rows: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    return [" ".join(map(str, values)) for values in zip(*(rows[c] for c in columns), strict=True)]


def _less_for_more(table: pd.DataFrame) -> set[int]:
    found: set[int] = set()
    ordered = table.sort_values("work", kind="stable")
    for column in (str(c) for c in table if str(c).startswith("series ")):
        series = ordered.groupby(column)["seconds"].cummax().groupby(ordered[column])
        found |= set(ordered.loc[ordered["seconds"] < MUCH_FASTER * series.shift(), "one"])
    return found


def host_bound(
    measured: Sequence[MeasuredWork], modules: Sequence[MeasuredWork]
) -> tuple[list[MeasuredWork], list[Rejected]]:
    """Gate 5, by precision. measured: dense products one by one. modules: what runs several of them."""
    rejected: list[Rejected] = []
    kept = list(measured)
    for dtype in sorted({_operands(one.ops[0]) for one in measured}):
        mine = [one for one in kept if _operands(one.ops[0]) == dtype]
        counts = [sum(op.count for op in m.ops if _is_product(op) and _operands(op) == dtype) for m in modules]
        allowed = min((m.seconds / n for m, n in zip(modules, counts, strict=True) if n), default=np.inf)
        least = min(one.seconds for one in mine)
        if least > HOST_BOUND * allowed:
            short = {id(one) for one in mine if one.seconds < HOST_BOUND * least}
            detail = f"{dtype}: {least * 1e6:.0f} us at least; modules leave {allowed * 1e6:.0f} us for each"
            gate = Rejected(mine[0].family, "launched from the host", len(short), detail, dtype)
            kept = _drop(kept, short, gate, rejected)
    return kept, rejected


def _is_product(op: Op) -> bool:
    return op.op_class is OpClass.DENSE_GEMM


def _operands(op: Op) -> str:
    return " ".join(op.flops)


def same_shapes(frame: pd.DataFrame) -> list[str]:
    """Columns that say what a row of a table ran."""
    return [c for c in map(str, frame) if c not in (*NOT_SHAPE, "kernel_source")]


def fastest(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of the fastest kernel where a table has several under one name: those within 20% of the least time of their
    shape. TensorRT-LLM's NVFP4 experts on B200 and GB200 have two, one 1.3 to 3 times as slow."""
    least = frame.groupby(same_shapes(frame), dropna=False)["latency"].transform("min")
    return frame[frame["latency"] <= SAME_KERNEL * least]


def slower_kernel(frame: pd.DataFrame, others: dict[str, pd.DataFrame]) -> dict[str, str]:
    """Precisions of experts whose kernel is slower than in tables of accelerators with the same data sheet (gate 7),
    and the accelerator."""
    shape, own = same_shapes(frame), fastest(frame)
    found: dict[str, str] = {}
    for name, other in others.items():
        both = own.merge(fastest(other), on=shape, suffixes=("", "_other"))
        ratio = (both["latency"] / both["latency_other"]).groupby(both["moe_dtype"]).median()
        found |= {str(dtype): name for dtype in ratio.index[ratio > SAME_KERNEL]}
    return found


def copied_from(frame: pd.DataFrame, others: dict[str, pd.DataFrame]) -> str | None:
    """Name of another accelerator whose table has the same times of the same shapes (gate 4)."""
    if "latency" not in frame:
        return None
    for name, other in others.items():
        if set(same_shapes(frame)) == set(same_shapes(other)):
            both = frame.merge(other, on=same_shapes(frame), suffixes=("", "_other"))
            if len(both) >= FEWEST_COPIED and both["latency"].eq(both["latency_other"]).mean() > COPY_SHARE:
                return name
    return None


def data_sheets_agree(one: HardwareProfile, other: HardwareProfile) -> bool:
    """Peaks that a copied table would have to share."""
    pairs = ((one.matrix_peak("bf16"), other.matrix_peak("bf16")), (one.memory_bandwidth, other.memory_bandwidth))
    return all(abs(a / b - 1) <= SAME_PEAK for a, b in pairs)

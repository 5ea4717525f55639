"""The accelerator that a fit is a fraction of: the catalogue's, or one made from this machine's own best rates."""

from __future__ import annotations

from datetime import datetime
from typing import cast

from calibration.microbench.device import Machine
from calibration.microbench.measurement import FitError, Measurements
from hw_profiles import catalog
from hw_profiles.efficiency_files import DEFAULT_STACK, load_efficiency
from hw_profiles.profile import HardwareProfile, profile_of
from hw_profiles.schema import Accelerator, Dtype, ScaleUp, Sourced


def base_profile(measured: Measurements) -> HardwareProfile:
    """The accelerator with the assumed efficiency of its generation: where the fit starts."""
    if measured.machine.name in catalog.names():
        return catalog.load(measured.machine.name)
    part = _part(measured)
    efficiency = load_efficiency(part.name, part.generation, DEFAULT_STACK, catalog.DATA / "efficiency")
    return profile_of(part, efficiency)


def _part(measured: Measurements) -> Accelerator:
    """An entry whose peaks are the best rates of the file."""
    machine = measured.machine
    flops = _flops(measured)
    copies = [row.num_bytes / row.seconds for row in measured.family("copy")]
    missing = [name for name, found in (("copies", copies), ("dense products in bf16", "bf16" in flops)) if not found]
    if missing:
        raise FitError(f"the file lacks {' and '.join(missing)}, which set this machine's peaks; measure to the end")
    return Accelerator(
        name=machine.name,
        display_name=machine.display_name,
        vendor="other",
        generation=machine.device,
        status="shipping",
        matrix={dtype: _figure(machine, rate / 1e12, "TFLOP/s") for dtype, rate in flops.items()},
        memory_capacity=_figure(machine, machine.memory_bytes / 1e9, "GB"),
        memory_bandwidth=_figure(machine, max(copies) / 1e9, "GB/s"),
        memory_kind="DRAM" if machine.device == "cpu" else "device memory",
        scale_up=_link(measured),
    )


def _flops(measured: Measurements) -> dict[Dtype, float]:
    """Best rate by operand dtype, of square products and of the model's own. [FLOP/s]"""
    found: dict[str, float] = {}
    for row in measured.family("gemm"):
        found[row.dtype] = max(found.get(row.dtype, 0.0), row.flops / row.seconds)
    for row in measured.usable:  # ops of the model may beat the square products, which ran in a slower minute
        for op in row.ops if len(row.ops) == 1 else ():
            for dtype, work in op.flops.items():
                key = "fp32" if dtype == "tf32" and "fp32" in found else dtype
                found[key] = max(found.get(key, 0.0), work / row.seconds)
    return cast("dict[Dtype, float]", found)


def _link(measured: Measurements) -> ScaleUp | None:
    """The best rate between ranks, where any were measured."""
    rates = [op.network_bytes / row.seconds for row in measured.usable for op in row.ops if op.link == "scale_up"]
    if not rates:
        return None
    machine, ranks = measured.machine, max(row.ranks for row in measured.rows)
    over = "gloo between processes" if machine.device == "cpu" else "NCCL"
    domain, bandwidth = _figure(machine, ranks, "accelerators"), _figure(machine, max(rates) / 1e9, "GB/s")
    return ScaleUp(link=over, domain=domain, bandwidth=bandwidth)


def _figure(machine: Machine, value: float, unit: str) -> Sourced:
    where = f"measured on {machine.display_name}, torch {machine.torch}, commit {machine.commit}"
    return Sourced(value=float(value), unit=unit, source=where, accessed=datetime.fromisoformat(machine.time).date())

"""The roofs that a kernel is held against: measured on this device, not taken from a data sheet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from triton.testing import do_bench

WARM_UP_MS, REPEAT_MS = 50, 200  # of one timing (assumed)
COPY_BYTES = 1 << 30  # beyond any cache
MATRIX = 8192  # rows and columns: large enough for the rate of the library (assumed)
FIRST_FP8 = (8, 9)  # compute capability of Ada, the first with FP8 products
FP32_BYTES = 4  # of an element


@dataclass(frozen=True)
class Roof:
    """Achieved rates: a large device copy, and large products through the vendor's library."""

    bandwidth: float  # bytes read plus written, [B/s]
    flops: dict[str, float]  # by operand type, [FLOP/s]


@dataclass(frozen=True)
class RoofStanding:
    """One timing against the roof."""

    tflops: float
    gigabytes_per_s: float
    floor_s: float  # no version can be faster under this roof
    fraction: float  # floor over time
    bound: str  # "matrix" or "memory"


def standing(seconds: float, flops: float, num_bytes: float, matrix_dtype: str, roof: Roof) -> RoofStanding:
    """floor = max(FLOPs / matrix roof, bytes / memory roof); fraction = floor / time.

    >>> roof = Roof(bandwidth=2e12, flops={"bf16": 5e14})
    >>> s = standing(4e-3, flops=1e12, num_bytes=2e9, matrix_dtype="bf16", roof=roof)
    >>> s.bound, s.fraction, s.tflops, s.gigabytes_per_s
    ('matrix', 0.5, 250.0, 500.0)
    >>> standing(2e-3, flops=0, num_bytes=2e9, matrix_dtype="bf16", roof=roof).bound
    'memory'

    Reference: Williams et al., "Roofline", CACM 2009.
    """
    matrix_s = flops / roof.flops[matrix_dtype] if flops else 0.0
    memory_s = num_bytes / roof.bandwidth
    floor = max(matrix_s, memory_s)
    bound = "matrix" if matrix_s > memory_s else "memory"
    return RoofStanding(flops / seconds / 1e12, num_bytes / seconds / 1e9, floor, floor / seconds, bound)


def median_s(call: Callable[[], object]) -> float:
    """Median device time of one call; the L2 cache is cleared before each."""
    return float(do_bench(call, warmup=WARM_UP_MS, rep=REPEAT_MS, return_mode="median")) * 1e-3


def copy_bandwidth(device: torch.device) -> float:
    source = torch.randn(COPY_BYTES // FP32_BYTES, device=device)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / median_s(lambda: target.copy_(source))


def measure_roof(device: torch.device) -> Roof:
    a, b = (torch.randn(MATRIX, MATRIX, device=device, dtype=torch.bfloat16) for _ in range(2))
    work = 2.0 * MATRIX**3
    flops = {"bf16": work / median_s(lambda: a @ b)}
    if torch.cuda.get_device_capability(device) >= FIRST_FP8 and torch.version.hip is None:
        left, right = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t().contiguous().t()
        one = torch.ones((), device=device)
        fp8_s = median_s(lambda: torch._scaled_mm(left, right, one, one, out_dtype=torch.bfloat16))
        flops["fp8"] = work / fp8_s
    return Roof(copy_bandwidth(device), flops)

"""What the bare machine does: copies, dense products, one launch, copies between host and device.

They set the peaks of a machine without a data sheet.
"""

from __future__ import annotations

from collections.abc import Iterator

from calibration.microbench.bench import Bench, Item
from calibration.microbench.measurement import Measurement

HOST_COPY_BYTES = 64 << 20  # large beside the start of a copy (assumed)
FP32_BYTES = 4  # of an element


def items(bench: Bench) -> list[Item]:
    preset = bench.preset
    cpu = bench.machine.device == "cpu"
    found = [_copy(bench, size) for size in preset.copy_bytes]
    dtypes = ("fp32", "bf16") if cpu else ("tf32", "bf16")
    found += [_gemm(bench, dtype, size) for dtype in dtypes for size in preset.gemm_sizes]
    found.append(_launch(bench))
    if not cpu:
        found += [_host_copy(bench, direction) for direction in ("to device", "to host")]
    return found


def _copy(bench: Bench, size: int) -> Item:
    def run() -> Iterator[Measurement]:
        import torch

        pairs = [torch.rand(2, size // FP32_BYTES, device=bench.device) for _ in range(2)]
        sample = bench.timer.sample([lambda p=p: p[0].copy_(p[1]) for p in pairs], flush=False)  # type: ignore[misc]
        yield Measurement(key, "copy", sample=sample, num_bytes=2.0 * size)

    key = f"copy of {size} bytes"
    return Item(key, run)


def _gemm(bench: Bench, dtype: str, size: int) -> Item:
    def run() -> Iterator[Measurement]:
        import torch

        element = torch.bfloat16 if dtype == "bf16" else torch.float32
        a, b = (torch.randn(size, size, device=bench.device).to(element) for _ in range(2))
        sample = bench.timer.sample([lambda: a @ b, lambda: b @ a])
        yield Measurement(key, "gemm", sample=sample, dtype=dtype, flops=2.0 * size**3)

    key = f"{dtype} product of {size}"
    return Item(key, run)


def _launch(bench: Bench) -> Item:
    def run() -> Iterator[Measurement]:
        import torch

        x = torch.zeros(1, device=bench.device)
        yield Measurement(key, "launch", sample=bench.timer.sample([lambda: x.add_(1)], flush=False))

    key = "launch of one small op"
    return Item(key, run)


def _host_copy(bench: Bench, direction: str) -> Item:
    def run() -> Iterator[Measurement]:
        import torch

        host = torch.rand(HOST_COPY_BYTES // FP32_BYTES).pin_memory()
        device = host.to(bench.device)
        target, source = (device, host) if direction == "to device" else (host, device)
        sample = bench.timer.sample([lambda: target.copy_(source, non_blocking=True)], flush=False)
        yield Measurement(key, "host copy", sample=sample, num_bytes=float(HOST_COPY_BYTES), note=direction)

    key = f"copy {direction}"
    return Item(key, run)

"""Compile every kernel for every supported architecture on a machine without any GPU.

    python -m benchmarks.kernels.compile_gate [--representative] [--arch sm90] [--case NAME] [--json FILE]

Each case calls the runtime's own launch code on meta tensors (shapes without memory), so what is compiled is what a
GPU would run at that shape: same tiles, same warps, same specialisation. It shows that kernels compile and fit
in shared memory, not that they are right or fast.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from benchmarks.kernels.cases import CASES, REPRESENTATIVE, Case
from runtime.kernels.configs import ARCHITECTURES, architecture

TARGETS = {
    "sm80": GPUTarget("cuda", 80, 32),
    "sm90": GPUTarget("cuda", 90, 32),
    "sm100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Most shared memory one program may use, in bytes. CUDA C++ Programming Guide 13.0, table "Technical
# specifications per compute capability" (163 KiB for 8.0, 227 KiB for 9.0 and 10.0); AMD CDNA3 ISA guide, section
# 2.2 (64 KiB LDS per workgroup).
SHARED_MEMORY_BYTES = {"sm80": 163 * 1024, "sm90": 227 * 1024, "sm100": 227 * 1024, "gfx942": 64 * 1024}
# Cases with fp8 tensors are not compiled here, by name and not silently; their bf16 and fp4 forms are.
NO_FP8 = {"sm80": "compute capability 8.0 has no e4m3 type (first in 8.9); load fp8 weights as bf16 there"}
MATRIX_INSTRUCTIONS = ("wgmma.mma_async", "tcgen05.mma", "mma.sync", "v_mfma")


@dataclass(frozen=True)
class Compiled:
    """One kernel of one case, as the compiler left it."""

    arch: str
    case: str
    kernel: str
    shared_memory_bytes: int
    warps: int
    matrix_instruction: str | None
    stack_bytes: int  # per thread, in local memory: registers that spilled; does not fail the gate
    seconds: float
    error: str | None = None


def stack_bytes(kernel: Any) -> int:
    """Local memory a thread was given, read from the machine code."""
    if "amdgcn" in kernel.asm:
        return sum(int(n) for n in re.findall(r"^\s*\.private_segment_fixed_size:\s*(\d+)", kernel.asm["amdgcn"], re.M))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return max(int(n) for n in re.findall(r"STACK:(\d+)", text))


class _Target:
    """Stands in for the driver: it names a target and has no device to launch on."""

    def __init__(self, arch: str) -> None:
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self.arch]

    def get_current_device(self) -> int:
        return ARCHITECTURES.index(self.arch)  # JIT caches are kept per device

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_case(case: Case, arch: str) -> list[Compiled]:
    """Every kernel that the case launches on `arch`."""
    found: list[Compiled] = []
    run = JITFunction.run

    def skip(self: JITFunction, *args: Any, **kwargs: Any) -> None:
        """Launches that only prepare inputs."""

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool = False, **kwargs: Any) -> None:
        start = time.perf_counter()
        name = self.fn.__name__
        try:
            kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        except Exception as error:  # any failure of the compiler is a finding about this kernel
            cause = error.__cause__ or error
            reason = " ".join(f"{type(cause).__name__}: {cause}".split())
            found.append(Compiled(arch, case.name, name, 0, 0, None, 0, time.perf_counter() - start, reason))
            return
        text = kernel.asm.get("ptx") or kernel.asm.get("amdgcn") or ""
        instruction = next((i for i in MATRIX_INSTRUCTIONS if i in text), None)
        shared, limit = kernel.metadata.shared, SHARED_MEMORY_BYTES[arch]
        over = f"needs {shared} bytes of shared memory, {arch} has {limit}" if shared > limit else None
        warps, stack = kernel.metadata.num_warps, stack_bytes(kernel)
        seconds = time.perf_counter() - start
        found.append(Compiled(arch, case.name, name, shared, warps, instruction, stack, seconds, over))

    driver.set_active(_Target(arch))  # for good: this process compiles and never launches
    with architecture(arch):
        with patch.object(JITFunction, "run", skip):
            call = case.build(torch.device("meta"))
        with patch.object(JITFunction, "run", compile_only):
            call()
    return found


def report(results: list[Compiled]) -> str:
    lines = [
        f"{'arch':7}{'case':26}{'kernel':26}{'shared KiB':>11}{'warps':>6}  {'matrix unit':16}{'stack':>6}{'s':>6}"
    ]
    for r in results:
        tail = f"  FAILED {r.error}" if r.error else ""
        lines.append(
            f"{r.arch:7}{r.case:26}{r.kernel:26}{r.shared_memory_bytes / 1024:11.1f}{r.warps:6}  "
            f"{r.matrix_instruction or '-':16}{r.stack_bytes:6}{r.seconds:6.2f}{tail}"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arch", choices=ARCHITECTURES, action="append", help="default: all")
    parser.add_argument("--case", choices=[case.name for case in CASES], action="append", help="default: all")
    parser.add_argument(
        "--representative", action="store_true", help="one shape a kernel and format: a third of the time"
    )
    parser.add_argument("--json", type=Path, help="write the table as JSON")
    options = parser.parse_args(argv)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 replaces the compiler; unset it")
    results: list[Compiled] = []
    skipped: list[str] = []
    with tempfile.TemporaryDirectory() as cache, triton.knobs.cache.scope():
        triton.knobs.cache.dir = cache
        for arch in options.arch or ARCHITECTURES:
            for case in CASES:
                if options.case and case.name not in options.case:
                    continue
                if options.representative and case.name not in REPRESENTATIVE:
                    continue
                if case.fp8 and arch in NO_FP8:
                    skipped.append(f"{arch:7}{case.name:26}unsupported: {NO_FP8[arch]}")
                else:
                    results += compile_case(case, arch)
    print(report(results))
    for line in skipped:
        print(line)
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in results], indent=1))
    failed = [r for r in results if r.error]
    print(
        f"{len(results)} kernels, {len(failed)} failed, {len(skipped)} unsupported, Triton {triton.__version__}",
        file=sys.stderr,
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

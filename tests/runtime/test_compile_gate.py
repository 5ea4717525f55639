"""Every kernel compiles for every supported architecture, in a process of its own that has no interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
# By architecture, a kernel and the matrix instruction that it has to use.
UNITS = {
    "sm80": ("_gemm2_kernel", "mma.sync"),
    "sm90": ("_gemm1_kernel", "wgmma.mma_async"),
    "sm100": ("_window_prefill_kernel", "tcgen05.mma"),
    "gfx942": ("_gemm2_kernel", "v_mfma"),
}
# Half a minute each: `make test` compiles for the newest, `make test-night` for the others too.
NIGHT = pytest.mark.skipif(os.environ.get("HYPOTHESIS_PROFILE") != "night", reason="compiled by make test-night")


def run_gate(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def launched_kernels() -> set[str]:
    """Names of the jitted functions that are launched, by the naming rule of runtime.kernels."""
    names: set[str] = set()
    for path in (ROOT / "runtime" / "kernels").glob("*.py"):
        lines = path.read_text().splitlines()
        jitted = [lines[i + 1] for i, line in enumerate(lines) if line == "@triton.jit"]
        names |= {line.removeprefix("def ").split("(")[0] for line in jitted}
    return {name for name in names if name.endswith("_kernel")}


@pytest.mark.parametrize(
    "arch",
    [
        pytest.param("sm80", marks=NIGHT),
        pytest.param("sm90", marks=NIGHT),
        "sm100",
        pytest.param("gfx942", marks=NIGHT),
    ],
)
def test_every_kernel_compiles_and_fits(arch: str, tmp_path: Path) -> None:
    table = tmp_path / "gate.json"
    done = run_gate(
        "import sys; from benchmarks.kernels.compile_gate import main; "
        f"sys.exit(main(['--representative', '--arch', {arch!r}, '--json', {str(table)!r}]))"
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    results = json.loads(table.read_text())
    kernels = launched_kernels()
    assert len(kernels) >= 20
    compiled = {r["kernel"] for r in results if r["arch"] == arch}
    if arch == "sm80":
        assert kernels - compiled == {"_quantize_kernel", "_fp8_gemm_kernel", "_unpack_kernel"}
        assert "sm80   fp8_gemm_8192             unsupported" in done.stdout
    else:
        assert compiled == kernels
    kernel, unit = UNITS[arch]
    used = {r["matrix_instruction"] for r in results if r["kernel"] == kernel}
    assert used == {unit} if arch in ("sm80", "gfx942") else unit in used


def test_a_kernel_that_does_not_fit_or_compile_fails_the_gate() -> None:
    done = run_gate(
        """
import sys
import torch
from benchmarks.kernels import compile_gate
from benchmarks.kernels.cases import Case
from runtime.kernels import fp8_gemm, rms_norm

def too_large(device):
    x = torch.empty(64, 4096, device=device, dtype=torch.float8_e4m3fn)
    s = torch.empty(64, 32, device=device)
    return lambda: fp8_gemm.fp8_gemm(x, s, x, s)

def wrong(device):
    x = torch.empty(4, 64, device=device, dtype=torch.int32)
    return lambda: rms_norm.rms_norm(x.bool(), x, 1e-6)

compile_gate.SHARED_MEMORY_BYTES["sm90"] = 1024
compile_gate.CASES[:] = [Case("large", too_large, 0, 0), Case("wrong", wrong, 0, 0)]
sys.exit(compile_gate.main(["--arch", "sm90"]))
"""
    )
    assert done.returncode == 1
    assert "bytes of shared memory, sm90 has 1024" in done.stdout

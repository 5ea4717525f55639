"""The kernel benchmark says what it needs, and counts work right. It times nothing here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so_and_measures_nothing(tmp_path: Path) -> None:
    table = tmp_path / "out.json"
    command = [sys.executable, "-m", "benchmarks.kernels", "--json", str(table)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip() == "benchmarks.kernels needs a CUDA device and found none: nothing was measured"
    assert not table.exists()


def test_work_of_the_cases_matches_the_model() -> None:
    """Hand-worked for DeepSeek-V4-Flash: 4096 hidden, 2048 expert width, top 6 of 256, 64 heads of 512."""
    from benchmarks.kernels.cases import CASES

    by_name = {case.name: case for case in CASES}
    assert len(by_name) == len(CASES)
    pair = 3 * 2 * 4096 * 2048  # gate, up and down of one token-choice, multiply and add
    experts = by_name["grouped_gemm1_bf16_8192"].flops + by_name["grouped_gemm2_bf16_8192"].flops
    assert experts == 8192 * 6 * pair
    attention = by_name["window_decode_csa_64"]
    assert attention.flops == 4 * 64 * 64 * 512 * (128 + 512)
    assert attention.num_bytes == 64 * (640 + 128) * 1024
    weight_bytes = 256 * 3 * 4096 * 2048 * 17 / 32
    streamed = by_name["grouped_gemm1_fp4_8192"].num_bytes + by_name["grouped_gemm2_fp4_8192"].num_bytes
    assert weight_bytes < streamed < weight_bytes + 8192 * 7 * (4096 + 2048) * 2 * 4

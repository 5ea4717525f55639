import pytest
import torch

from runtime.kernels import fp8_gemm as kernels
from runtime.reference import fp8_gemm as reference
from runtime.reference import quantize


@pytest.mark.parametrize(("m", "n", "k"), [(5, 70, 272), (37, 130, 141)])
@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16])
def test_fp8_gemm_matches_reference(m: int, n: int, k: int, out_dtype: torch.dtype, device: torch.device) -> None:
    a, a_scale = quantize.quantize_fp8(torch.randn(m, k, device=device))
    weight = torch.randn(n, k, device=device) * torch.logspace(-2, 2, k, device=device)
    b, b_scale = quantize.quantize_fp8_blocks(weight)
    got = kernels.fp8_gemm(a, a_scale, b, b_scale, out_dtype)
    expected = reference.fp8_gemm(a, a_scale, b, b_scale, torch.float32)
    assert got.dtype == out_dtype
    error = ((got.float() - expected).norm() / expected.norm()).item()
    assert error < (1e-5 if out_dtype == torch.float32 else 4e-3)

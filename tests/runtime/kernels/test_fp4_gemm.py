"""Dense products with packed fp4 weights: the kernel against the reference, NVFP4 codes against their bits."""

import pytest
import torch

from runtime.kernels import fp4_gemm as kernels
from runtime.reference import fp4_gemm as reference
from runtime.reference import quantize


@pytest.mark.parametrize(("form", "m", "n", "k"), [("mxfp4", 5, 70, 96), ("nvfp4", 18, 33, 176)])
def test_fp4_gemm_matches_reference(form: str, m: int, n: int, k: int, device: torch.device) -> None:
    x = torch.randn(m, k, device=device).bfloat16()
    weight = torch.randn(n, k, device=device) * torch.logspace(-2, 2, n, device=device)[:, None]
    rows = None
    if form == "mxfp4":
        codes, scale = quantize.quantize_fp4(weight)
    else:
        codes, scale, whole = quantize.quantize_nvfp4(weight)
        rows = whole.expand(n).contiguous()
    got = kernels.fp4_gemm(x, codes, scale, rows, torch.float32)
    expected = reference.fp4_gemm(x, codes, scale, rows, torch.float32)
    assert ((got - expected).norm() / expected.norm()).item() < 1e-5


def test_nvfp4_rounds_to_a_sixteenth_of_the_largest_of_a_group() -> None:
    """Between codes 4 and 6 the step is 2, so half of it bounds the error; an e4m3 scale errs by 1 in 16 more."""
    weight = torch.randn(24, 64, generator=torch.Generator().manual_seed(2))
    codes, scale, whole = quantize.quantize_nvfp4(weight)
    assert (codes.dtype, tuple(codes.shape)) == (torch.uint8, (24, 32))
    assert (scale.dtype, tuple(scale.shape)) == (torch.float8_e4m3fn, (24, 4))
    back = quantize.dequantize_weight(codes, scale, whole.expand(24))
    largest = weight.unflatten(-1, (4, 16)).abs().amax(-1, keepdim=True)
    bound = largest * (1 / 6 + 1 / 16)
    assert ((back - weight).unflatten(-1, (4, 16)).abs() <= bound).all()

"""Grouped expert products against the reference, at shapes that divide nothing."""

import pytest
import torch

from runtime.kernels import grouped_gemm as kernels
from runtime.kernels.moe_align import moe_align
from runtime.reference import grouped_gemm as reference
from runtime.reference import quantize

EXPERTS, TOP_K, TOKENS = 5, 3, 13


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got.float() - expected.float()).norm() / expected.float().norm()).item()


Stored = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]


def stored(weight: torch.Tensor, form: str) -> Stored:
    """Values, scales and row scales: NVFP4's scale of a whole matrix is one a row."""
    if form == "fp8":
        return *quantize.quantize_fp8_blocks(weight), None
    if form == "fp8 channels":
        rows = weight.abs().amax(-1) / quantize.FP8_MAX
        blocks = torch.ones(len(weight), *(-(-n // quantize.SCALE_BLOCK) for n in weight.shape[1:]))
        return (weight / rows[..., None]).to(torch.float8_e4m3fn), blocks.to(weight.device), rows
    if form == "fp4":
        return *quantize.quantize_fp4(weight), None
    if form == "nvfp4":
        codes, scale, whole = quantize.quantize_nvfp4(weight)
        return codes, scale, whole[:, None].expand(-1, weight.shape[1]).contiguous()
    return weight.to({"float32": torch.float32, "bfloat16": torch.bfloat16}[form]), None, None


@pytest.mark.parametrize(
    ("form", "hidden", "inter", "limit", "quantized", "tolerance"),
    [
        ("float32", 72, 40, 0.5, False, 1e-5),
        ("bfloat16", 72, 40, None, False, 1e-2),  # rows of 16-byte units: tensor descriptors
        ("bfloat16", 70, 35, 0.5, False, 1e-2),  # and pointers
        ("fp8", 160, 136, 0.5, True, 2e-2),
        ("fp8", 144, 256, None, True, 2e-2),
        ("fp8 channels", 144, 136, 0.5, True, 2e-2),
        ("fp4", 96, 64, 0.5, False, 1e-2),
        ("nvfp4", 96, 48, 0.5, False, 1e-2),
    ],
)
def test_both_products_match_reference(
    form: str, hidden: int, inter: int, limit: float, quantized: bool, tolerance: float, device: torch.device
) -> None:
    ids = torch.randint(0, EXPERTS, (TOKENS, TOP_K), dtype=torch.int32, device=device)
    ids[4, 1] = -1  # held by another rank
    weights = torch.rand(TOKENS, TOP_K, device=device)
    dtype = torch.float32 if form == "float32" else torch.bfloat16
    x = torch.randn(TOKENS, hidden, device=device).to(dtype)
    w13, w13_scale, rows13 = stored(torch.randn(EXPERTS, 2 * inter, hidden, device=device) / 8, form)
    w2, w2_scale, rows2 = stored(torch.randn(EXPERTS, hidden, inter, device=device) / 8, form)
    codes, x_scale = quantize.quantize_fp8(x) if quantized else (x, None)
    alignment = moe_align(ids, EXPERTS, 16)

    h, h_scale = kernels.grouped_gemm1(codes, x_scale, w13, w13_scale, alignment, TOP_K, limit, quantized, rows13)
    want, want_scale = reference.grouped_gemm1(
        codes, x_scale, w13, w13_scale, alignment, TOP_K, limit, quantized, rows13
    )
    held = (ids >= 0).flatten()
    if quantized:
        assert h_scale is not None
        assert want_scale is not None
        got_values = quantize.dequantize_fp8(h[held], h_scale[held])
        assert relative_error(got_values, quantize.dequantize_fp8(want[held], want_scale[held])) < tolerance
    else:
        assert relative_error(h[held], want[held]) < tolerance

    arguments = (want, want_scale, w2, w2_scale, alignment, weights, ids, dtype, rows2)
    out = kernels.grouped_gemm2_combine(*arguments)
    assert relative_error(out, reference.grouped_gemm2_combine(*arguments)) < tolerance


def test_fp4_weights_are_decoded_exactly(device: torch.device) -> None:
    """Every code under several scales, read back through an identity product."""
    codes = torch.arange(256, dtype=torch.uint8, device=device)[:32].repeat(1, 2, 1)  # [1, 2, 32] bytes
    codes[0, 1] = torch.arange(224, 256, dtype=torch.uint8, device=device)
    scale = torch.tensor([[[127, 120], [2, 200]]], dtype=torch.uint8, device=device)
    h = torch.eye(64, device=device, dtype=torch.bfloat16)
    ids = torch.zeros(64, 1, dtype=torch.int32, device=device)
    ones = torch.ones(64, 1, device=device)
    alignment = moe_align(ids, 1, 16)
    out = kernels.grouped_gemm2_combine(h, None, codes, scale, alignment, ones, ids, torch.float32)
    assert torch.equal(out.T, quantize.dequantize_fp4(codes, scale)[0])


def test_a_step_without_local_pairs_gives_zeros(device: torch.device) -> None:
    ids = torch.full((3, 2), -1, dtype=torch.int32, device=device)
    alignment = moe_align(ids, 4, 16)
    h = torch.randn(6, 32, device=device)
    w2 = torch.randn(4, 48, 32, device=device)
    out = kernels.grouped_gemm2_combine(
        h, None, w2, None, alignment, torch.ones(3, 2, device=device), ids, torch.float32
    )
    assert torch.equal(out, torch.zeros(3, 48, device=device))

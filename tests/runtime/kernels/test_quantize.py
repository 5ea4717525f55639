import pytest
import torch

from runtime.kernels import quantize as kernels
from runtime.reference import quantize as reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("power_of_two", [True, False])
def test_quantize_fp8_gives_the_same_codes(dtype: torch.dtype, power_of_two: bool, device: torch.device) -> None:
    x = (torch.randn(19, 300, device=device) * torch.logspace(-4, 4, 300, device=device)).to(dtype)
    x[3] = 0
    codes, scales = kernels.quantize_fp8(x, 128, power_of_two)
    expected_codes, expected_scales = reference.quantize_fp8(x, 128, power_of_two)
    assert torch.equal(scales, expected_scales)
    assert torch.equal(codes.view(torch.uint8), expected_codes.view(torch.uint8))
    if power_of_two:
        assert (torch.frexp(scales).mantissa == 0.5).all()


def test_fp8_error_is_within_half_a_step(device: torch.device) -> None:
    """e4m3 keeps four significant bits: relative error at most 2^-4 for normal values."""
    x = torch.rand(4, 256, device=device) + 0.5
    restored = reference.dequantize_fp8(*reference.quantize_fp8(x))
    assert ((restored - x).abs() <= x * 2**-4).all()


def test_fp4_round_trip_is_exact_on_representable_values(device: torch.device) -> None:
    grid = torch.tensor(reference.FP4_VALUES, device=device)
    weight = torch.cat([grid, -grid]).repeat(3, 4) * torch.tensor([[1.0], [0.25], [8.0]], device=device)
    packed, exponent = reference.quantize_fp4(weight)
    assert packed.shape == (3, 32)
    assert exponent.tolist() == [[127, 127], [125, 125], [130, 130]]
    assert torch.equal(reference.dequantize_fp4(packed, exponent), weight)


def test_fp4_rounds_to_the_nearest_value_ties_to_even(device: torch.device) -> None:
    weight = torch.zeros(32, device=device)
    weight[:8] = torch.tensor([6.0, 5.0, 3.5, 2.5, 0.25, -0.75, 1.25, 1.8])
    restored = reference.dequantize_fp4(*reference.quantize_fp4(weight))
    assert restored[:8].tolist() == [6.0, 4.0, 4.0, 2.0, 0.0, -1.0, 1.0, 2.0]


def test_block_scales_are_per_128_square(device: torch.device) -> None:
    weight = torch.randn(2, 200, 300, device=device)
    codes, scales = reference.quantize_fp8_blocks(weight, power_of_two=False)
    assert scales.shape == (2, 2, 3)
    assert scales[1, 1, 2].item() == pytest.approx(weight[1, 128:, 256:].abs().max().item() / 448, rel=1e-6)
    restored = reference.dequantize_fp8_blocks(codes, scales)
    assert ((restored - weight).norm() / weight.norm()).item() < 0.04

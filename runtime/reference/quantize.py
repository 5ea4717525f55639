"""Block-scaled number formats: fp8 e4m3 activations and weights, fp4 e2m1 expert weights.

Scales multiply: value = code * scale. A ue8m0 scale is a power of two stored as its biased exponent byte.
"""

import torch
from torch import Tensor

FP8_MAX = 448.0  # largest finite float8_e4m3fn (OCP 8-bit Floating Point Specification, 2023)
FP4_VALUES = (
    0.0,
    0.5,
    1.0,
    1.5,
    2.0,
    3.0,
    4.0,
    6.0,
)  # e2m1 magnitudes by code (OCP Microscaling Formats 1.0)
FP4_MAX = FP4_VALUES[-1]
UE8M0_BIAS = 127  # of exponent bytes (OCP Microscaling Formats 1.0)
SCALE_BLOCK = 128  # columns that share an fp8 scale, of weights rows too (DeepSeek-V3 report, section 3.3.2)
FP4_GROUP = 32  # columns that share an fp4 scale (OCP Microscaling Formats 1.0)
TINY = 1e-10  # keeps the scale of an all-zero group finite


def power_of_two_ceiling(scale: Tensor) -> Tensor:
    """The smallest power of two >= scale (float32), exactly: by exponent bits, not by log2."""
    mantissa, exponent = torch.frexp(scale)
    return torch.ldexp(torch.ones_like(scale), exponent - (mantissa == 0.5).to(exponent.dtype))


def quantize_fp8(x: Tensor, group_size: int = SCALE_BLOCK, power_of_two: bool = False) -> tuple[Tensor, Tensor]:
    """Per-token, per-group quantisation of activations.

    x: [M, K]. Returns codes [M, K] float8_e4m3fn and scales [M, ceil(K / group_size)] float32.
    The last group may be short.
    """
    rows, columns = x.shape
    groups = -(-columns // group_size)
    padded = torch.nn.functional.pad(x.float(), (0, groups * group_size - columns))
    grouped = padded.view(rows, groups, group_size)
    scale = grouped.abs().amax(-1).clamp_min(TINY) / FP8_MAX
    if power_of_two:
        scale = power_of_two_ceiling(scale)
    codes = (grouped / scale[..., None]).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    return codes.view(rows, -1)[:, :columns].contiguous(), scale


def dequantize_fp8(codes: Tensor, scale: Tensor, group_size: int = SCALE_BLOCK) -> Tensor:
    """Inverse of quantize_fp8: float32 [M, K]."""
    return codes.float() * scale.repeat_interleave(group_size, -1)[:, : codes.shape[1]]


def quantize_fp8_blocks(
    weight: Tensor, block_size: int = SCALE_BLOCK, power_of_two: bool = True
) -> tuple[Tensor, Tensor]:
    """Square-block quantisation of weights.

    weight: [..., N, K]. Returns codes of the same shape in float8_e4m3fn and scales
    [..., ceil(N / block), ceil(K / block)] float32.
    """
    *lead, rows, columns = weight.shape
    row_blocks, column_blocks = -(-rows // block_size), -(-columns // block_size)
    pad = (0, column_blocks * block_size - columns, 0, row_blocks * block_size - rows)
    blocks = torch.nn.functional.pad(weight.float(), pad)
    blocks = blocks.view(*lead, row_blocks, block_size, column_blocks, block_size)
    scale = blocks.abs().amax((-3, -1)).clamp_min(TINY) / FP8_MAX
    if power_of_two:
        scale = power_of_two_ceiling(scale)
    codes = (blocks / scale[..., :, None, :, None]).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    codes = codes.view(*lead, row_blocks * block_size, column_blocks * block_size)
    return codes[..., :rows, :columns].contiguous(), scale


def dequantize_fp8_blocks(codes: Tensor, scale: Tensor, block_size: int = SCALE_BLOCK) -> Tensor:
    """Inverse of quantize_fp8_blocks: float32 [..., N, K]."""
    rows, columns = codes.shape[-2:]
    spread = scale.repeat_interleave(block_size, -2).repeat_interleave(block_size, -1)
    return codes.float() * spread[..., :rows, :columns]


def decode_ue8m0(exponent: Tensor) -> Tensor:
    """Biased exponent bytes (uint8) to float32 powers of two."""
    power = exponent.int() - UE8M0_BIAS
    return torch.ldexp(torch.ones_like(power, dtype=torch.float32), power)


def quantize_fp4(weight: Tensor, group_size: int = FP4_GROUP) -> tuple[Tensor, Tensor]:
    """Expert weights in e2m1 with one ue8m0 scale per group of the last axis.

    weight: [..., K] with K a multiple of group_size. Returns packed codes [..., K / 2] uint8 (the even
    element in the low four bits) and exponents [..., K / group_size] uint8.
    """
    grouped = weight.float().unflatten(-1, (-1, group_size))
    scale = power_of_two_ceiling(grouped.abs().amax(-1).clamp_min(TINY) / FP4_MAX)
    magnitude = (grouped / scale[..., None]).abs()
    # Midpoints between neighbouring e2m1 values; a tie goes to the even code, as round-to-nearest-even does.
    values = torch.tensor(FP4_VALUES, device=weight.device)
    middle = (values[1:] + values[:-1]) / 2
    above, reached = torch.bucketize(magnitude, middle), torch.bucketize(magnitude, middle, right=True)
    code = torch.where(above % 2 == 0, above, reached) + 8 * torch.signbit(grouped).int()
    code = code.flatten(-2).to(torch.uint8)
    exponent = (torch.frexp(scale).exponent - 1 + UE8M0_BIAS).to(torch.uint8)
    return code[..., 0::2] | (code[..., 1::2] << 4), exponent


def dequantize_fp4(packed: Tensor, exponent: Tensor) -> Tensor:
    """Inverse of quantize_fp4: float32 [..., K]. The group size follows from the two shapes."""
    codes = torch.stack([packed & 15, packed >> 4], -1).flatten(-2).long()
    table = torch.tensor([*FP4_VALUES, *(-v for v in FP4_VALUES)], device=packed.device)
    group_size = codes.shape[-1] // exponent.shape[-1]
    return table[codes] * decode_ue8m0(exponent).repeat_interleave(group_size, -1)


def dequantize_weight(weight: Tensor, scale: Tensor | None) -> Tensor:
    """A stored weight [..., N, K] to float32, its format read from its dtype.

    Floating point without scale: as it is. float8_e4m3fn: 128 x 128 block scales. uint8: packed fp4.
    """
    if scale is None:
        return weight.float()
    if weight.dtype == torch.uint8:
        return dequantize_fp4(weight, scale)
    return dequantize_fp8_blocks(weight, scale)

"""Block-scaled number formats: fp8 e4m3 activations and weights, fp4 e2m1 weights (MXFP4 and NVFP4).

Scales multiply: value = code * scale. A ue8m0 scale is a power of two stored as its biased exponent byte; a scale of
each row, float32, may multiply on top (NVFP4's scale of the whole tensor, fp8 with one scale a channel).
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
FP4_GROUP = 32  # columns that share an MXFP4 scale (OCP Microscaling Formats 1.0)
NVFP4_GROUP = 16  # columns that share an NVFP4 scale, of e4m3 (NVIDIA Blackwell architecture brief)
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


def _nearest_fp4(grouped: Tensor, scale: Tensor) -> Tensor:
    """e2m1 codes [..., K] uint8 of values [..., groups, group size] under scales [..., groups]."""
    magnitude = (grouped / scale[..., None]).abs()
    # Midpoints between neighbouring e2m1 values; a tie goes to the even code, as round-to-nearest-even does.
    values = torch.tensor(FP4_VALUES, device=grouped.device)
    middle = (values[1:] + values[:-1]) / 2
    above, reached = torch.bucketize(magnitude, middle), torch.bucketize(magnitude, middle, right=True)
    code = torch.where(above % 2 == 0, above, reached) + 8 * torch.signbit(grouped).int()
    return code.flatten(-2).to(torch.uint8)


def _pack_fp4(code: Tensor) -> Tensor:
    return code[..., 0::2] | (code[..., 1::2] << 4)


def quantize_fp4(weight: Tensor, group_size: int = FP4_GROUP) -> tuple[Tensor, Tensor]:
    """Expert weights in e2m1 with one ue8m0 scale per group of the last axis.

    weight: [..., K] with K a multiple of group_size. Returns packed codes [..., K / 2] uint8 (the even
    element in the low four bits) and exponents [..., K / group_size] uint8.
    """
    grouped = weight.float().unflatten(-1, (-1, group_size))
    scale = power_of_two_ceiling(grouped.abs().amax(-1).clamp_min(TINY) / FP4_MAX)
    exponent = (torch.frexp(scale).exponent - 1 + UE8M0_BIAS).to(torch.uint8)
    return _pack_fp4(_nearest_fp4(grouped, scale)), exponent


def quantize_nvfp4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """NVFP4: e2m1 codes, an e4m3 scale a group of 16, and one float32 scale a matrix that fills e4m3's range.

    weight: [..., N, K] with K a multiple of 16. Returns packed codes [..., N, K / 2] uint8, scales [..., N, K / 16]
    float8_e4m3fn and the matrix's scale [...] float32.
    """
    grouped = weight.float().unflatten(-1, (-1, NVFP4_GROUP))
    largest = grouped.abs().amax(-1)
    whole = largest.amax((-2, -1)).clamp_min(TINY) / (FP4_MAX * FP8_MAX)
    scale = (largest / FP4_MAX / whole[..., None, None]).clamp_max(FP8_MAX).to(torch.float8_e4m3fn)
    spread = scale.float() * whole[..., None, None]
    return _pack_fp4(_nearest_fp4(grouped, spread.clamp_min(TINY))), scale, whole


def dequantize_fp4(packed: Tensor, scale: Tensor) -> Tensor:
    """float32 [..., K] of packed codes under exponent bytes (uint8) or e4m3 scales; shapes tell the group size."""
    codes = torch.stack([packed & 15, packed >> 4], -1).flatten(-2).long()
    table = torch.tensor([*FP4_VALUES, *(-v for v in FP4_VALUES)], device=packed.device)
    group_size = codes.shape[-1] // scale.shape[-1]
    factor = decode_ue8m0(scale) if scale.dtype == torch.uint8 else scale.float()
    return table[codes] * factor.repeat_interleave(group_size, -1)


def dequantize_weight(weight: Tensor, scale: Tensor | None, row_scale: Tensor | None = None) -> Tensor:
    """A stored weight [..., N, K] to float32, its format read from its dtype.

    Floating point without scale: as it is. float8_e4m3fn: 128 x 128 block scales. uint8: packed fp4. row_scale:
    [..., N] float32, on top of those.
    """
    if scale is None:
        values = weight.float()
    elif weight.dtype == torch.uint8:
        values = dequantize_fp4(weight, scale)
    else:
        values = dequantize_fp8_blocks(weight, scale)
    return values if row_scale is None else values * row_scale[..., None]

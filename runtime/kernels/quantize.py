"""Per-token, per-group fp8 quantisation of activations."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.reference.quantize import FP8_MAX, SCALE_BLOCK, TINY

ROWS = 16  # of one program (assumed)
_TINY = tl.constexpr(TINY)
_FP8_MAX = tl.constexpr(FP8_MAX)


@triton.jit
def power_of_two_ceiling(scale):
    """The smallest power of two >= a positive normal float32, by its bits: any mantissa bit carries over."""
    bits = scale.to(tl.int32, bitcast=True)
    return ((bits + 0x7FFFFF) & 0x7F800000).to(tl.float32, bitcast=True)


@triton.jit
def group_scale(value, POWER_OF_TWO: tl.constexpr):
    """Scale that brings the largest of each row of a float32 tile [R, G] to the largest fp8: [R]."""
    scale = tl.div_rn(tl.maximum(tl.max(tl.abs(value), 1), _TINY), tl.full((value.shape[0],), _FP8_MAX, tl.float32))
    if POWER_OF_TWO:
        scale = power_of_two_ceiling(scale)
    return scale


@triton.jit
def to_fp8(value, scale):
    """Codes of a float32 tile [R, G] under row scales [R]."""
    wide = tl.div_rn(value, tl.broadcast_to(scale[:, None], value.shape))
    return tl.minimum(tl.maximum(wide, -_FP8_MAX), _FP8_MAX).to(tl.float8e4nv)


@triton.jit
def _quantize_kernel(
    x,
    codes,
    scales,
    rows,
    columns,
    groups,
    x_stride,
    POWER_OF_TWO: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    group = tl.program_id(1)
    column = group * GROUP + tl.arange(0, GROUP)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    value = tl.load(x + row[:, None] * x_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
    scale = group_scale(value, POWER_OF_TWO)
    tl.store(codes + row[:, None] * columns + column[None, :], to_fp8(value, scale), mask=inside)
    tl.store(scales + row * groups + group, scale, mask=row < rows)


def quantize_fp8(x: Tensor, group_size: int = SCALE_BLOCK, power_of_two: bool = False) -> tuple[Tensor, Tensor]:
    """See runtime.reference.quantize. group_size must be a power of two."""
    rows, columns = x.shape
    groups = triton.cdiv(columns, group_size)
    codes = torch.empty(rows, columns, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(rows, groups, dtype=torch.float32, device=x.device)
    if rows:
        _quantize_kernel[(triton.cdiv(rows, ROWS), groups)](
            x,
            codes,
            scales,
            rows,
            columns,
            groups,
            x.stride(0),
            POWER_OF_TWO=power_of_two,
            GROUP=group_size,
            ROWS=ROWS,
            num_warps=4,
        )
    return codes, scales

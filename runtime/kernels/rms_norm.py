"""Root-mean-square normalisation: one program a row."""

import torch
import triton
import triton.language as tl
from torch import Tensor

WARPS = ((8, 4096), (4, 1024), (1, 0))  # of a program whose block has that many columns (assumed)


@triton.jit
def _rms_norm_kernel(x, weight, out, columns, x_stride, eps, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < columns
    value = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    normed = value * tl.rsqrt(tl.sum(value * value, 0) / columns + eps)
    if WEIGHTED:
        normed = normed * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * columns + column, normed.to(out.dtype.element_ty), mask=inside)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """See runtime.reference.rms_norm."""
    columns = x.shape[-1]
    rows = x.reshape(-1, columns)
    out = torch.empty_like(rows, memory_format=torch.contiguous_format)
    if rows.shape[0]:
        block = triton.next_power_of_2(columns)
        warps = next(warps for warps, columns in WARPS if block >= columns)
        _rms_norm_kernel[(rows.shape[0],)](
            rows, weight, out, columns, rows.stride(0), eps, weight is not None, block, num_warps=warps
        )
    return out.view(x.shape)

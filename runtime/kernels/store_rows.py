"""Scatter of rows into a cache."""

import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 1024  # of one program at most (assumed)


@triton.jit
def _store_rows_kernel(values, cache, rows, width, value_stride, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + token).to(tl.int64)
    if row >= 0:
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(values + token * value_stride + column, mask=column < width, other=0.0)
        tl.store(cache + row * width + column, value.to(cache.dtype.element_ty), mask=column < width)


def store_rows(values: Tensor, cache: Tensor, rows: Tensor) -> None:
    """See runtime.reference.store_rows."""
    if not cache.is_contiguous():
        raise ValueError(f"cache with strides {cache.stride()} must be contiguous to be stored to")
    tokens = values.shape[0]
    if tokens == 0:
        return
    flat = values.reshape(tokens, -1)
    if flat.stride(1) != 1:
        flat = flat.contiguous()
    width = flat.shape[1]
    block = min(triton.next_power_of_2(width), COLUMNS)
    grid = (tokens, triton.cdiv(width, block))
    _store_rows_kernel[grid](flat, cache, rows, width, flat.stride(0), BLOCK=block, num_warps=4)

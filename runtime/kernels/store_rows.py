"""Scatter of rows into a cache."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.kernels.packed_rows import store_packed
from runtime.reference.packed_rows import Packing
from runtime.reference.quantize import FP8_MAX

_FP8_MAX = tl.constexpr(FP8_MAX)
COLUMNS = 1024  # of one program at most (assumed)


@triton.jit
def _store_rows_kernel(values, cache, rows, width, value_stride, CLAMP: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + token).to(tl.int64)
    if row >= 0:
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(values + token * value_stride + column, mask=column < width, other=0.0)
        if CLAMP:
            value = tl.minimum(tl.maximum(value.to(tl.float32), -_FP8_MAX), _FP8_MAX)
        tl.store(cache + row * width + column, value.to(cache.dtype.element_ty), mask=column < width)


def store_rows(values: Tensor, cache: Tensor, rows: Tensor, packing: Packing | None = None) -> None:
    """See runtime.reference.store_rows."""
    if not cache.is_contiguous():
        raise ValueError(f"cache with strides {cache.stride()} must be contiguous to be stored to")
    tokens = values.shape[0]
    if tokens == 0:
        return
    flat = values.reshape(tokens, -1)
    if flat.stride(1) != 1:
        flat = flat.contiguous()
    if packing is not None:
        store_packed(flat, cache, rows, packing)
        return
    width = flat.shape[1]
    block = min(triton.next_power_of_2(width), COLUMNS)
    grid = (tokens, triton.cdiv(width, block))
    clamp = cache.dtype == torch.float8_e4m3fn
    _store_rows_kernel[grid](flat, cache, rows, width, flat.stride(0), CLAMP=clamp, BLOCK=block, num_warps=4)

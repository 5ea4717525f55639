"""Scatter rows into a cache: how blocks, window rings and compressor states are written."""

import torch
from torch import Tensor

from runtime.reference.packed_rows import Packing, pack
from runtime.reference.quantize import FP8_MAX


def store_rows(values: Tensor, cache: Tensor, rows: Tensor, packing: Packing | None = None) -> None:
    """cache[rows[t]] = values[t] where rows[t] >= 0, cast to the cache's dtype or packed; other rows are skipped.

    values: [T, ...]; cache: [N, ...] with the same trailing shape, contiguous in it (with packing [N, bytes] uint8);
    rows: [T] int32, distinct where not negative. A cache in fp8 takes values up to 448, larger ones as 448.
    """
    kept = rows >= 0
    new = values[kept]
    if packing is not None:
        new = pack(new.reshape(len(new), packing.dim), packing).view(len(new), *cache.shape[1:])
    elif cache.dtype == torch.float8_e4m3fn:
        new = new.clamp(-FP8_MAX, FP8_MAX)
    cache[rows[kept].long()] = new.to(cache.dtype)

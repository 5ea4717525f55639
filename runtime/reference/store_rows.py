"""Scatter rows into a cache: how blocks, window rings and compressor states are written."""

from torch import Tensor


def store_rows(values: Tensor, cache: Tensor, rows: Tensor) -> None:
    """cache[rows[t]] = values[t] where rows[t] >= 0, cast to the cache's dtype; other rows are skipped.

    values: [T, ...]; cache: [N, ...] with the same trailing shape, contiguous in it; rows: [T] int32,
    distinct where not negative.
    """
    kept = rows >= 0
    cache[rows[kept].long()] = values[kept].to(cache.dtype)

"""RMSNorm, RoPE and the write to the cache in one pass, for keys and (unstored) for queries."""

from torch import Tensor

from runtime.reference.rms_norm import rms_norm
from runtime.reference.rope import rope
from runtime.reference.store_rows import store_rows


def norm_rope_store(
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool = True,
    cache: Tensor | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    """rope(rms_norm(x)) over each head, returned, and also stored at cache[rows[t]] where rows[t] >= 0.

    x: [T, H, D]; weight: [D] or None (unweighted); cos, sin: [T, P] float32 (see `rope`);
    cache: [N, H, D] with rows: [T] int32, or both None to store nothing.
    """
    out = rope(rms_norm(x, weight, eps), cos, sin, interleaved)
    if cache is not None and rows is not None:
        store_rows(out, cache, rows)
    return out

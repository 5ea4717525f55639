"""RMSNorm, rotary embedding and the write to the cache in one pass over each head."""

import torch
import triton
import triton.language as tl
from torch import Tensor

VALUES = 2048  # of one program (assumed)


@triton.jit
def _norm_rope_kernel(
    x,
    weight,
    cos,
    sin,
    out,
    cache,
    rows,
    heads,
    dim,
    pairs,
    token_stride,
    head_stride,
    eps,
    NORM: tl.constexpr,
    WEIGHTED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    INVERSE: tl.constexpr,
    STORE: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    column = tl.arange(0, BLOCK)
    inside = (head < heads)[:, None] & (column < dim)[None, :]
    base = x + token * token_stride + head[:, None] * head_stride
    value = tl.load(base + column[None, :], mask=inside, other=0.0)

    # The rotated tail: each column needs its own value and its partner's.
    first = dim - 2 * pairs
    place = column - first
    if INTERLEAVED:
        pair, second, partner = place // 2, place % 2 == 1, first + (place ^ 1)
    else:
        pair, second = tl.where(place < pairs, place, place - pairs), place >= pairs
        partner = first + tl.where(second, place - pairs, place + pairs)
    tail = (column >= first) & (column < dim)
    other = tl.load(base + partner[None, :], mask=inside & tail[None, :], other=0.0)
    if NORM:
        wide, other_wide = value.to(tl.float32), other.to(tl.float32)
        scale = tl.rsqrt(tl.sum(wide * wide, 1) / dim + eps)[:, None]
        wide, other_wide = wide * scale, other_wide * scale
        if WEIGHTED:
            wide *= tl.load(weight + column, mask=column < dim, other=0.0).to(tl.float32)[None, :]
            other_wide *= tl.load(weight + partner, mask=tail, other=0.0).to(tl.float32)[None, :]
        value, other = wide.to(x.dtype.element_ty), other_wide.to(x.dtype.element_ty)
    c = tl.load(cos + token * pairs + pair, mask=tail, other=1.0)
    s = tl.load(sin + token * pairs + pair, mask=tail, other=0.0)
    if INVERSE:
        s = -s
    signed = tl.where(second, s, -s)
    turned = value.to(tl.float32) * c[None, :] + other.to(tl.float32) * signed[None, :]
    result = tl.where(tail[None, :], turned.to(out.dtype.element_ty), value)

    place_out = head[:, None] * dim + column[None, :]
    tl.store(out + token * heads * dim + place_out, result, mask=inside)
    if STORE:
        row = tl.load(rows + token).to(tl.int64)
        stored = result.to(cache.dtype.element_ty)
        tl.store(cache + row * heads * dim + place_out, stored, mask=inside & (row >= 0))


def launch_norm_rope(
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    inverse: bool,
    norm: bool,
    cache: Tensor | None,
    rows: Tensor | None,
) -> Tensor:
    """rope() and norm_rope_store() are this with parts switched off."""
    tokens, heads, dim = x.shape
    if x.stride(-1) != 1:
        x = x.contiguous()
    out = torch.empty(tokens, heads, dim, dtype=x.dtype, device=x.device)
    if tokens == 0:
        return out
    if cache is not None and not cache.is_contiguous():
        raise ValueError(f"cache with strides {cache.stride()} must be contiguous to be stored to")
    block = triton.next_power_of_2(dim)
    per_program = min(triton.next_power_of_2(heads), max(1, VALUES // block))
    _norm_rope_kernel[(tokens, triton.cdiv(heads, per_program))](
        x,
        weight,
        cos.contiguous(),
        sin.contiguous(),
        out,
        cache,
        rows,
        heads,
        dim,
        cos.shape[1],
        x.stride(0),
        x.stride(1),
        eps,
        NORM=norm,
        WEIGHTED=weight is not None,
        INTERLEAVED=interleaved,
        INVERSE=inverse,
        STORE=cache is not None,
        HEADS=per_program,
        BLOCK=block,
        num_warps=4,
    )
    return out


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
    """See runtime.reference.norm_rope_store."""
    return launch_norm_rope(x, weight, eps, cos, sin, interleaved, False, True, cache, rows)

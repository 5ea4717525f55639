"""KV compression: one program pools, normalises and rotates one entry."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _compress_kernel(
    new,
    state,
    bias,
    cu_seqlens,
    past,
    slots,
    entry_seq,
    entry_index,
    norm_weight,
    cos,
    sin,
    out,
    tokens,
    dim,
    width,
    ring,
    pairs,
    eps,
    RATIO: tl.constexpr,
    WINDOWS: tl.constexpr,
    BR: tl.constexpr,
    BD: tl.constexpr,
):
    entry = tl.program_id(0).to(tl.int64)
    seq = tl.load(entry_seq + entry)
    index = tl.load(entry_index + entry)
    before = tl.load(past + seq)
    first = tl.load(cu_seqlens + seq)
    ring_rows = state + tl.load(slots + seq).to(tl.int64) * ring * 2 * width
    column = tl.arange(0, BD)
    wide = (column < dim)[None, :]
    peak = tl.full((BD,), float("-inf"), tl.float32)
    total = tl.zeros((BD,), tl.float32)
    acc = tl.zeros((BD,), tl.float32)
    for start in range(0, WINDOWS * RATIO, BR):
        offset = start + tl.arange(0, BR)
        token = (index + 1 - WINDOWS) * RATIO + offset
        inside = ((offset < WINDOWS * RATIO) & (token >= 0))[:, None] & wide
        since = token - before
        fresh = tl.minimum(tl.maximum(first + since, 0), tokens - 1).to(tl.int64)
        # Overlapping windows: the earlier one pools the first half of the channels, the later one the second.
        half = (offset // RATIO * dim)[:, None] + column[None, :]
        in_step = inside & (since >= 0)[:, None]
        in_ring = inside & (since < 0)[:, None]
        from_step = new + fresh[:, None] * 2 * width + half
        from_ring = ring_rows + (token % ring)[:, None] * 2 * width + half
        value = tl.load(from_step, mask=in_step, other=0.0).to(tl.float32)
        value += tl.load(from_ring, mask=in_ring, other=0.0)
        gate = tl.load(from_step + width, mask=in_step, other=0.0).to(tl.float32)
        gate += tl.load(from_ring + width, mask=in_ring, other=0.0)
        gate += tl.load(bias + (offset % RATIO)[:, None] * width + half, mask=inside, other=0.0).to(tl.float32)
        gate = tl.where(inside, gate, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(gate, 0))
        safe = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        weight = tl.exp(gate - safe[None, :])
        shrink = tl.exp(peak - safe)
        total = total * shrink + tl.sum(weight, 0)
        acc = acc * shrink + tl.sum(weight * value, 0)
        peak = new_peak
    dtype = out.dtype.element_ty
    pooled = (acc / tl.where(total == 0.0, 1.0, total)).to(dtype).to(tl.float32)
    rstd = tl.rsqrt(tl.sum(pooled * pooled, 0) / dim + eps)
    weight = tl.load(norm_weight + column, mask=column < dim, other=0.0).to(tl.float32)
    normed = (pooled * rstd * weight).to(dtype)

    # Rotary embedding of the trailing pairs: neighbours (2 i, 2 i + 1).
    even, odd = tl.split(tl.reshape(normed.to(tl.float32), (BD // 2, 2)))
    pair = tl.arange(0, BD // 2)
    angle = pair - (dim // 2 - pairs)
    turning = (angle >= 0) & (pair < dim // 2)
    c = tl.load(cos + entry * pairs + angle, mask=turning, other=1.0)
    s = tl.load(sin + entry * pairs + angle, mask=turning, other=0.0)
    result = tl.reshape(tl.join(even * c - odd * s, odd * c + even * s), (BD,))
    tl.store(out + entry * dim + column, result.to(dtype), mask=column < dim)


def compress(
    new: Tensor,
    state: Tensor,
    bias: Tensor,
    cu_seqlens: Tensor,
    past: Tensor,
    slots: Tensor,
    entry_seq: Tensor,
    entry_index: Tensor,
    norm_weight: Tensor,
    eps: float,
    cos: Tensor,
    sin: Tensor,
    ratio: int,
) -> Tensor:
    """See runtime.reference.compressor."""
    new, state = new.contiguous(), state.contiguous()
    entries, dim = entry_seq.shape[0], norm_weight.shape[0]
    width = new.shape[1] // 2
    windows = width // dim
    out = torch.empty(entries, dim, dtype=new.dtype, device=new.device)
    if entries:
        _compress_kernel[(entries,)](
            new,
            state,
            bias.contiguous(),
            cu_seqlens,
            past,
            slots,
            entry_seq,
            entry_index,
            norm_weight,
            cos.contiguous(),
            sin.contiguous(),
            out,
            new.shape[0],
            dim,
            width,
            state.shape[1],
            cos.shape[1],
            eps,
            RATIO=ratio,
            WINDOWS=windows,
            BR=min(triton.next_power_of_2(windows * ratio), 16),
            BD=triton.next_power_of_2(dim),
            num_warps=4,
        )
    return out

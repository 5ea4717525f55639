"""Attention of decode steps: the keys of a sequence are split over programs, then the splits are merged.

The number of splits follows from shapes the host knows, so a step can be captured in a CUDA graph; the share of each
split follows from the sequence's own length on the device.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.kernels.attention_prefill import key_blocks, shares_storage
from runtime.kernels.attention_step import (
    LOG2_E,
    attend,
    combine_splits_kernel,
    dot_precision,
    key_layout,
    load_cached,
    load_keys,
    store_split,
)
from runtime.kernels.configs import LEAST_ROWS, WIDE_VALUES, attention_tile, compute_units
from runtime.reference.packed_rows import Packing

MIN_KEYS_PER_SPLIT = 128  # below, merging costs more than a split saves (assumed)
MAX_SPLITS = 64  # so that merging reads little (assumed)


def num_splits(device: torch.device, programs: int, max_keys: int) -> int:
    """Splits that fill the device twice over, none with fewer than MIN_KEYS_PER_SPLIT keys."""
    wanted = triton.cdiv(2 * compute_units(device), programs)
    return max(1, min(wanted, triton.cdiv(max_keys, MIN_KEYS_PER_SPLIT), MAX_SPLITS))


@triton.jit
def _window_decode_kernel(
    q,
    window,
    slots,
    context_lens,
    entries,
    block_table,
    visible,
    selected,
    partial,
    lse,
    scale,
    heads: tl.constexpr,
    dim: tl.constexpr,
    size: tl.constexpr,
    per_block: tl.constexpr,
    table_width,
    k,
    CODED: tl.constexpr,
    ROPE: tl.constexpr,
    BYTES: tl.constexpr,
    GROUP: tl.constexpr,
    ENTRIES: tl.constexpr,
    SELECTED: tl.constexpr,
    PRECISION: tl.constexpr,
    BH: tl.constexpr,
    BD: tl.constexpr,
    BT: tl.constexpr,
):
    """Keys are numbered: the ring first, then the entries."""
    batch, split = tl.program_id(0).to(tl.int64), tl.program_id(2)
    head = tl.program_id(1) * BH + tl.arange(0, BH)
    column, offset = tl.arange(0, BD), tl.arange(0, BT)
    wide = (column < dim)[None, :]
    inside = (head < heads)[:, None] & wide
    query = tl.load(q + (batch * heads + head)[:, None] * dim + column[None, :], mask=inside, other=0.0)
    near = tl.minimum(tl.load(context_lens + batch), size)
    far = 0
    if ENTRIES:
        far = tl.load(visible + batch)
        if SELECTED:
            far = tl.minimum(far, k)
    share = tl.cdiv(tl.cdiv(near + far, tl.num_programs(2)), BT) * BT
    first = split * share
    last = tl.minimum(first + share, near + far)

    peak = tl.full((BH,), float("-inf"), tl.float32)
    total = tl.zeros((BH,), tl.float32)
    acc = tl.zeros((BH, BD), tl.float32)
    ring = tl.load(slots + batch).to(tl.int64) * size
    ring_end = tl.minimum(last, near)
    for start in range(first, ring_end, BT):
        place = start + offset
        seen = place < ring_end
        keys = load_keys(window, ring + place, seen, column, dim, query.dtype, CODED, ROPE, BYTES, GROUP)
        scores = tl.dot(query, keys.T, input_precision=PRECISION) * scale
        peak, total, acc = attend(scores, keys, seen[None, :], peak, total, acc, PRECISION)
    if ENTRIES:
        far_end = last - near
        for start in range(tl.maximum(first - near, 0), far_end, BT):
            entry = start + offset
            seen = entry < far_end
            if SELECTED:
                entry = tl.load(selected + batch * k + entry, mask=seen, other=-1)
                seen = entry >= 0
            block = tl.load(block_table + batch * table_width + entry // per_block, mask=seen, other=0).to(tl.int64)
            keys = load_keys(
                entries,
                block * per_block + entry % per_block,
                seen,
                column,
                dim,
                query.dtype,
                CODED,
                ROPE,
                BYTES,
                GROUP,
            )
            scores = tl.dot(query, keys.T, input_precision=PRECISION) * scale
            peak, total, acc = attend(scores, keys, seen[None, :], peak, total, acc, PRECISION)
    row = (batch * tl.num_programs(2) + split) * heads
    store_split(partial, lse, row, head, head < heads, dim, peak, total, acc, BD)


def window_attention_decode(
    q: Tensor,
    window: Tensor,
    slots: Tensor,
    context_lens: Tensor,
    sinks: Tensor,
    scale: float,
    entries: Tensor | None = None,
    block_table: Tensor | None = None,
    visible: Tensor | None = None,
    selected: Tensor | None = None,
    packing: Packing | None = None,
) -> Tensor:
    """See runtime.reference.attention_decode."""
    q, window = q.contiguous(), window.contiguous()
    batch, heads, dim = q.shape
    size = window.shape[1]
    out = torch.empty_like(q)
    if batch == 0:
        return out
    tile = attention_tile(q.device, heads)
    max_keys = size
    if entries is not None and block_table is not None:
        most = block_table.shape[1] * entries.shape[1]
        max_keys += most if selected is None else min(selected.shape[1], most)
    head_blocks = triton.cdiv(heads, tile.m)
    splits = num_splits(q.device, batch * head_blocks, max_keys)
    partial = torch.empty(batch, splits, heads, dim, dtype=torch.float32, device=q.device)
    lse = torch.empty(batch, splits, heads, dtype=torch.float32, device=q.device)
    block = triton.next_power_of_2(dim)
    _window_decode_kernel[(batch, head_blocks, splits)](
        q,
        window,
        slots,
        context_lens,
        entries.contiguous() if entries is not None else None,
        block_table.contiguous() if block_table is not None else None,
        visible,
        selected.contiguous() if selected is not None else None,
        partial,
        lse,
        scale * LOG2_E,
        heads,
        dim,
        size,
        entries.shape[1] if entries is not None else 1,
        block_table.shape[1] if block_table is not None else 0,
        selected.shape[1] if selected is not None else 0,
        **key_layout(packing),
        ENTRIES=entries is not None and block_table is not None and visible is not None,
        SELECTED=selected is not None,
        PRECISION=dot_precision(q.dtype),
        BH=tile.m,
        BD=block,
        BT=tile.n,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    combine_splits_kernel[(batch, heads)](
        partial, lse, sinks, out, heads, dim, splits, SINK=True, BLOCK=block, num_warps=4
    )
    return out


@triton.jit
def _paged_decode_kernel(
    q,
    k_cache,
    v_cache,
    block_table,
    context_lens,
    partial,
    lse,
    scale,
    heads: tl.constexpr,
    group: tl.constexpr,
    k_dim: tl.constexpr,
    v_dim: tl.constexpr,
    block_size: tl.constexpr,
    table_width,
    k_block_stride,
    k_token_stride,
    k_head_stride,
    v_block_stride,
    v_token_stride,
    v_head_stride,
    head_blocks,
    PRECISION: tl.constexpr,
    BH: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    BR: tl.constexpr,
    BV: tl.constexpr,
    CODED: tl.constexpr,
    ROPE: tl.constexpr,
    BYTES: tl.constexpr,
    GROUP: tl.constexpr,
    SHARED: tl.constexpr,
):
    batch, split = tl.program_id(0).to(tl.int64), tl.program_id(2)
    kv_head = tl.program_id(1) // head_blocks
    member = tl.program_id(1) % head_blocks * BH + tl.arange(0, BH)
    valid = member < group
    head = kv_head * group + member
    offset, column, value_column = tl.arange(0, BT), tl.arange(0, BK), tl.arange(0, BV)
    base = q + (batch * heads + head)[:, None] * k_dim
    query = tl.load(base + column[None, :], mask=valid[:, None] & (column < k_dim)[None, :], other=0.0)
    if BR > 0:
        rest = BK + tl.arange(0, BR)
        query_rest = tl.load(base + rest[None, :], mask=valid[:, None] & (rest < k_dim)[None, :], other=0.0)
    count = tl.load(context_lens + batch)
    share = tl.cdiv(tl.cdiv(count, tl.num_programs(2)), BT) * BT
    last = tl.minimum((split + 1) * share, count)
    peak = tl.full((BH,), float("-inf"), tl.float32)
    total = tl.zeros((BH,), tl.float32)
    acc = tl.zeros((BH, BV), tl.float32)
    for start in range(split * share, last, BT):
        token = start + offset
        seen = token < last
        block = tl.load(block_table + batch * table_width + token // block_size, mask=seen, other=0).to(tl.int64)
        within = token % block_size
        key_row = block * k_block_stride + within * k_token_stride + kv_head * k_head_stride
        keys = load_cached(k_cache, key_row, seen, column, k_dim, query.dtype, CODED, ROPE, BYTES, GROUP)
        scores = tl.dot(query, keys.T, input_precision=PRECISION)
        if BR > 0:
            more = load_cached(k_cache, key_row, seen, rest, k_dim, query.dtype, CODED, ROPE, BYTES, GROUP)
            scores = tl.dot(query_rest, more.T, scores, input_precision=PRECISION)
        if SHARED:
            values = keys
        else:
            value_row = block * v_block_stride + within * v_token_stride + kv_head * v_head_stride
            values = load_cached(v_cache, value_row, seen, value_column, v_dim, query.dtype, CODED, ROPE, BYTES, GROUP)
        peak, total, acc = attend(scores * scale, values, seen[None, :], peak, total, acc, PRECISION)
    row = (batch * tl.num_programs(2) + split) * heads
    store_split(partial, lse, row, head, valid, v_dim, peak, total, acc, BV)


def paged_attention_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    scale: float,
    packing: Packing | None = None,
    v_dim: int = 0,
) -> Tensor:
    """See runtime.reference.attention_decode."""
    q = q.contiguous()
    (batch, heads, k_dim), (block_size, kv_heads) = q.shape, k_cache.shape[1:3]
    v_dim, group = v_dim if packing else v_cache.shape[3], heads // kv_heads
    out = torch.empty(batch, heads, v_dim, dtype=q.dtype, device=q.device)
    if batch == 0:
        return out
    tile = attention_tile(q.device, group, wide=v_dim > WIDE_VALUES)
    head_blocks = triton.cdiv(group, tile.m)
    splits = num_splits(q.device, batch * kv_heads * head_blocks, block_table.shape[1] * block_size)
    partial = torch.empty(batch, splits, heads, v_dim, dtype=torch.float32, device=q.device)
    lse = torch.empty(batch, splits, heads, dtype=torch.float32, device=q.device)
    main, rest = key_blocks(k_dim)
    block = max(LEAST_ROWS, triton.next_power_of_2(v_dim))
    _paged_decode_kernel[(batch, kv_heads * head_blocks, splits)](
        q,
        k_cache,
        v_cache,
        block_table.contiguous(),
        context_lens,
        partial,
        lse,
        scale * LOG2_E,
        heads,
        group,
        k_dim,
        v_dim,
        block_size,
        block_table.shape[1],
        *k_cache.stride()[:3],
        *v_cache.stride()[:3],
        head_blocks,
        PRECISION=dot_precision(q.dtype),
        BH=tile.m,
        BT=tile.n,
        BK=main,
        BR=rest,
        BV=block,
        **key_layout(packing),
        SHARED=shares_storage(k_cache, v_cache) and v_dim == main,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    combine_splits_kernel[(batch, heads)](
        partial, lse, None, out, heads, v_dim, splits, SINK=False, BLOCK=block, num_warps=4
    )
    return out

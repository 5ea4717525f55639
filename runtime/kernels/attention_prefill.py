"""Attention of prefill chunks.

Window attention runs one token a program: all its heads share one key-value head and the same selected entries, so
the heads are the rows of the matrix product. Paged attention runs a tile of tokens of one head a program.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.kernels.attention_step import (
    LOG2_E,
    LOG2_E_IN_KERNELS,
    attend,
    dot_precision,
    key_layout,
    load_cached,
    load_keys,
)
from runtime.kernels.configs import LEAST_ROWS, WIDE_VALUES, attention_tile
from runtime.reference.packed_rows import Packing


@triton.jit
def _window_prefill_kernel(
    q,
    kv,
    window,
    sinks,
    token_seq,
    positions,
    past,
    slots,
    entries,
    block_table,
    visible,
    selected,
    out,
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
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BH + tl.arange(0, BH)
    column, offset = tl.arange(0, BD), tl.arange(0, BT)
    wide = (column < dim)[None, :]
    inside = (head < heads)[:, None] & wide
    place = (row * heads + head)[:, None] * dim + column[None, :]
    query = tl.load(q + place, mask=inside, other=0.0)
    seq = tl.load(token_seq + row)
    position = tl.load(positions + row)
    before = tl.load(past + seq)
    ring = tl.load(slots + seq).to(tl.int64) * size

    # The sink is a logit that was seen first and has no value.
    peak = tl.load(sinks + head, mask=head < heads, other=0.0).to(tl.float32) * LOG2_E_IN_KERNELS
    total = tl.full((BH,), 1.0, tl.float32)
    acc = tl.zeros((BH, BD), tl.float32)
    oldest = tl.maximum(position - size + 1, 0)
    for start in range(oldest, before, BT):
        token = start + offset
        seen = token < before
        keys = load_keys(window, ring + token % size, seen, column, dim, query.dtype, CODED, ROPE, BYTES, GROUP)
        scores = tl.dot(query, keys.T, input_precision=PRECISION) * scale
        peak, total, acc = attend(scores, keys, seen[None, :], peak, total, acc, PRECISION)
    chunk = kv + (row - position) * dim  # row of token 0, were it in the chunk
    for start in range(tl.maximum(oldest, before), position + 1, BT):
        token = start + offset
        seen = token <= position
        keys = tl.load(chunk + token[:, None] * dim + column[None, :], mask=seen[:, None] & wide, other=0.0)
        scores = tl.dot(query, keys.T, input_precision=PRECISION) * scale
        peak, total, acc = attend(scores, keys, seen[None, :], peak, total, acc, PRECISION)
    if ENTRIES:
        count = tl.load(visible + row)
        if SELECTED:
            count = tl.minimum(count, k)
        for start in range(0, count, BT):
            entry = start + offset
            seen = entry < count
            if SELECTED:
                entry = tl.load(selected + row * k + entry, mask=seen, other=-1)
                seen = entry >= 0
            block = tl.load(block_table + seq * table_width + entry // per_block, mask=seen, other=0).to(tl.int64)
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
    tl.store(out + place, (acc / total[:, None]).to(out.dtype.element_ty), mask=inside)


def window_attention_prefill(
    q: Tensor,
    kv: Tensor,
    window: Tensor,
    sinks: Tensor,
    scale: float,
    token_seq: Tensor,
    positions: Tensor,
    past: Tensor,
    slots: Tensor,
    entries: Tensor | None = None,
    block_table: Tensor | None = None,
    visible: Tensor | None = None,
    selected: Tensor | None = None,
    packing: Packing | None = None,
) -> Tensor:
    """See runtime.reference.attention_prefill."""
    q, kv, window = q.contiguous(), kv.contiguous(), window.contiguous()
    tokens, heads, dim = q.shape
    out = torch.empty_like(q)
    if tokens == 0:
        return out
    tile = attention_tile(q.device, heads)
    has_entries = entries is not None and block_table is not None and visible is not None
    _window_prefill_kernel[(tokens, triton.cdiv(heads, tile.m))](
        q,
        kv,
        window,
        sinks,
        token_seq,
        positions,
        past,
        slots,
        entries.contiguous() if entries is not None else None,
        block_table.contiguous() if block_table is not None else None,
        visible,
        selected.contiguous() if selected is not None else None,
        out,
        scale * LOG2_E,
        heads,
        dim,
        window.shape[1],
        entries.shape[1] if entries is not None else 1,
        block_table.shape[1] if block_table is not None else 0,
        selected.shape[1] if selected is not None else 0,
        **key_layout(packing),
        ENTRIES=has_entries,
        SELECTED=selected is not None,
        PRECISION=dot_precision(q.dtype),
        BH=tile.m,
        BD=triton.next_power_of_2(dim),
        BT=tile.n,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out


@triton.jit
def _paged_prefill_kernel(
    q,
    k_cache,
    v_cache,
    block_table,
    cu_seqlens,
    past,
    out,
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
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
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
    """Keys of BK columns (a power of two) and a rest of BR more, so that 576 needs no padding to 1024."""
    seq, head = tl.program_id(2), tl.program_id(1)
    first = tl.load(cu_seqlens + seq)
    count = tl.load(cu_seqlens + seq + 1) - first
    start_row = tl.program_id(0) * BM
    if start_row >= count:
        return
    before = tl.load(past + seq)
    local = start_row + tl.arange(0, BM)
    valid = local < count
    offset, column, value_column = tl.arange(0, BT), tl.arange(0, BK), tl.arange(0, BV)
    base = q + ((first + local).to(tl.int64)[:, None] * heads + head) * k_dim
    query = tl.load(base + column[None, :], mask=valid[:, None] & (column < k_dim)[None, :], other=0.0)
    if BR > 0:
        rest = BK + tl.arange(0, BR)
        query_rest = tl.load(base + rest[None, :], mask=valid[:, None] & (rest < k_dim)[None, :], other=0.0)
    peak = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, BV), tl.float32)
    end = before + tl.minimum(start_row + BM, count)
    for start in range(0, end, BT):
        token = start + offset
        known = token < end
        block = tl.load(block_table + seq * table_width + token // block_size, mask=known, other=0).to(tl.int64)
        within = token % block_size
        key_row = block * k_block_stride + within * k_token_stride + head // group * k_head_stride
        keys = load_cached(k_cache, key_row, known, column, k_dim, query.dtype, CODED, ROPE, BYTES, GROUP)
        scores = tl.dot(query, keys.T, input_precision=PRECISION)
        if BR > 0:
            more = load_cached(k_cache, key_row, known, rest, k_dim, query.dtype, CODED, ROPE, BYTES, GROUP)
            scores = tl.dot(query_rest, more.T, scores, input_precision=PRECISION)
        if SHARED:
            values = keys
        else:
            value_row = block * v_block_stride + within * v_token_stride + head // group * v_head_stride
            values = load_cached(v_cache, value_row, known, value_column, v_dim, query.dtype, CODED, ROPE, BYTES, GROUP)
        seen = token[None, :] <= (before + local)[:, None]
        peak, total, acc = attend(scores * scale, values, seen & known[None, :], peak, total, acc, PRECISION)
    place = ((first + local).to(tl.int64)[:, None] * heads + head) * v_dim + value_column[None, :]
    result = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(out + place, result.to(out.dtype.element_ty), mask=valid[:, None] & (value_column < v_dim)[None, :])


def key_blocks(dim: int) -> tuple[int, int]:
    """(largest power of two <= dim but at least LEAST_ROWS, padded rest)."""
    main = max(LEAST_ROWS, 1 << (dim.bit_length() - 1))
    return main, 0 if dim <= main else max(LEAST_ROWS, triton.next_power_of_2(dim - main))


def shares_storage(k_cache: Tensor, v_cache: Tensor) -> bool:
    """Whether values are the leading columns of the keys (MLA): then one tile in shared memory serves both."""
    same = k_cache.untyped_storage()._cdata == v_cache.untyped_storage()._cdata
    return same and (k_cache.storage_offset(), k_cache.stride()) == (v_cache.storage_offset(), v_cache.stride())


def paged_attention_prefill(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    cu_seqlens: Tensor,
    past: Tensor,
    max_new: int,
    scale: float,
    packing: Packing | None = None,
    v_dim: int = 0,
) -> Tensor:
    """See runtime.reference.attention_prefill."""
    q = q.contiguous()
    (tokens, heads, k_dim), (block_size, kv_heads) = q.shape, k_cache.shape[1:3]
    v_dim, batch = v_dim if packing else v_cache.shape[3], past.shape[0]
    out = torch.empty(tokens, heads, v_dim, dtype=q.dtype, device=q.device)
    if tokens == 0:
        return out
    tile = attention_tile(q.device, max_new, wide=v_dim > WIDE_VALUES)
    main, rest = key_blocks(k_dim)
    _paged_prefill_kernel[(triton.cdiv(max_new, tile.m), heads, batch)](
        q,
        k_cache,
        v_cache,
        block_table.contiguous(),
        cu_seqlens,
        past,
        out,
        scale * LOG2_E,
        heads,
        heads // kv_heads,
        k_dim,
        v_dim,
        block_size,
        block_table.shape[1],
        *k_cache.stride()[:3],
        *v_cache.stride()[:3],
        PRECISION=dot_precision(q.dtype),
        BM=tile.m,
        BT=tile.n,
        BK=main,
        BR=rest,
        BV=max(LEAST_ROWS, triton.next_power_of_2(v_dim)),
        **key_layout(packing),
        SHARED=shares_storage(k_cache, v_cache) and v_dim == main,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out

"""Attention of prefill chunks: many new tokens a sequence."""

from itertools import pairwise

import torch
from torch import Tensor

from runtime.reference.packed_rows import Packing, read_rows

TILE = 128  # queries handled at once; bounds the score matrix


def softmax_with_sink(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Softmax over [..., H, S] with one extra logit a head that takes weight and gives no value."""
    if sinks is None:
        return torch.softmax(scores, -1)
    sink = sinks.float().view(-1, 1).expand(*scores.shape[:-1], 1)
    return torch.softmax(torch.cat([scores, sink], -1), -1)[..., :-1]


def gather_blocks(cache: Tensor, blocks: Tensor, length: int) -> Tensor:
    """First rows of one sequence: cache [num_blocks, rows, ...], blocks [max_blocks] -> [length, ...]."""
    return cache[blocks[: -(-length // cache.shape[1])].long()].flatten(0, 1)[:length]


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
    """DeepSeek V4 attention: the last W tokens and compressed entries; one KV head is both key and value.

    q: [T, H, D]; kv: [T, D], keys of the same tokens. A query at position p sees tokens p - W + 1 ... p:
    those from past[seq] on lie in kv (token j at row t - (p - j)), earlier ones in window: [slots, W, D], a
    ring (token j at row j % W of the sequence's slot) that the step has not yet overwritten. token_seq
    (ascending), positions: [T]; past, slots: [B]; sinks: [H] float32. entries: [num_blocks,
    entries_per_block, D] through block_table [B, max_blocks]; a token sees entries selected[t] ([T, k],
    ascending, padded with -1), or the first visible[t] when selected is None. packing: of window and entries, [...,
    bytes] uint8 then; kv must hold what they will give (round_rows). Integers are int32. Returns [T, H, D] in
    q's dtype.
    """
    out = torch.empty_like(q)
    size = window.shape[1]
    sequences, counts = torch.unique_consecutive(token_seq, return_counts=True)
    start = 0
    for seq, count in zip(sequences.tolist(), counts.tolist(), strict=True):
        before = int(past[seq])
        kept = torch.arange(max(0, before - size + 1), before, device=q.device)
        keys = torch.cat([read_rows(window[int(slots[seq]), kept % size], packing), kv[start : start + count].float()])
        first_key = before - kept.numel()
        for tile in range(start, start + count, TILE):
            rows = slice(tile, min(tile + TILE, start + count))
            position = positions[rows].long()
            low = max(int(position[0]) - size + 1, first_key)
            near = keys[low - first_key : int(position[-1]) + 1 - first_key]
            token = low + torch.arange(near.shape[0], device=q.device)
            age = position[:, None] - token
            query = q[rows].float() * scale
            scores = (query @ near.T).masked_fill(((age < 0) | (age >= size))[:, None], float("-inf"))
            far, far_scores = None, None
            if entries is not None and block_table is not None and visible is not None:
                count_seen = int(visible[rows].max())
                pool = read_rows(gather_blocks(entries, block_table[seq], count_seen), packing)
                if selected is None:
                    hidden = torch.arange(count_seen, device=q.device) >= visible[rows, None]
                    far, far_scores = pool, query @ pool.T
                elif count_seen:
                    hidden = selected[rows] < 0
                    far = pool[selected[rows].clamp_min(0).long()]  # [t, k, D]
                    far_scores = query @ far.transpose(1, 2)
                if far_scores is not None:
                    scores = torch.cat([scores, far_scores.masked_fill(hidden[:, None], float("-inf"))], -1)
            weights = softmax_with_sink(scores, sinks)
            result = weights[..., : near.shape[0]] @ near
            if far is not None:
                result = result + weights[..., near.shape[0] :] @ far
            out[rows] = result.to(q.dtype)
        start += count
    return out


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
    """Causal attention over paged keys and values, grouped heads; the new tokens are already in the cache.

    q: [T, H, Dk]; k_cache: [num_blocks, block_size, Hkv, Dk]; v_cache: [num_blocks, block_size, Hkv, Dv] (for
    MLA both are views of one latent cache); block_table: [B, max_blocks]; cu_seqlens: [B + 1]; past: [B], all
    int32; max_new: the longest chunk, for launch grids. Head h reads KV head h // (H / Hkv). packing: of k_cache,
    [..., bytes] uint8 then, whose first v_dim values are the values too. Returns [T, H, Dv].
    """
    num_heads, kv_heads = q.shape[1], k_cache.shape[2]
    out = q.new_empty(q.shape[0], num_heads, v_dim if packing else v_cache.shape[3])
    bounds = cu_seqlens.tolist()
    for seq, (start, end) in enumerate(pairwise(bounds)):
        before = int(past[seq])
        total = before + end - start
        held = read_rows(gather_blocks(k_cache, block_table[seq], total), packing)
        keys = held.permute(1, 2, 0)  # [Hkv, Dk, S]
        given = held[..., :v_dim] if packing else gather_blocks(v_cache, block_table[seq], total).float()
        values = given.transpose(0, 1)  # [Hkv, S, Dv]
        for tile in range(start, end, TILE):
            rows = slice(tile, min(tile + TILE, end))
            position = before + torch.arange(rows.start - start, rows.stop - start, device=q.device)
            query = q[rows].float().unflatten(1, (kv_heads, -1)).permute(1, 2, 0, 3)  # [Hkv, G, t, Dk]
            scores = query @ keys[:, None] * scale
            future = torch.arange(total, device=q.device) > position[:, None]
            weights = torch.softmax(scores.masked_fill(future, float("-inf")), -1)
            out[rows] = (weights @ values[:, None]).permute(2, 0, 1, 3).flatten(1, 2).to(q.dtype)
    return out

"""Attention of decode steps: one new token a sequence."""

import torch
from torch import Tensor

from runtime.reference.attention_prefill import softmax_with_sink
from runtime.reference.packed_rows import Packing, read_rows


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
    """As `window_attention_prefill` for one token a sequence, which the ring already holds.

    q: [B, H, D]; window: [slots, W, D]; slots, context_lens (new token included): [B]; sinks: [H] float32.
    entries: [num_blocks, entries_per_block, D] through block_table [B, max_blocks]: those in selected ([B,
    k], padded with -1), or the first visible[b] when selected is None. packing: of window and entries, [..., bytes]
    uint8 then. Integers are int32. Returns [B, H, D].
    """
    size = window.shape[1]
    near = read_rows(window[slots.long()], packing)  # [B, W, D]; order within the ring does not matter to attention
    query = q.float() * scale
    empty = torch.arange(size, device=q.device) >= context_lens[:, None]
    scores = (query @ near.transpose(1, 2)).masked_fill(empty[:, None], float("-inf"))
    near = near.masked_fill(empty[..., None], 0.0)
    if entries is not None and block_table is not None and visible is not None:
        per_block = entries.shape[1]
        if selected is None:
            index = torch.arange(int(visible.max()), device=q.device).expand(q.shape[0], -1)
            hidden = index >= visible[:, None]
        else:
            index, hidden = selected.clamp_min(0).long(), selected < 0
        index = index.masked_fill(hidden, 0)
        block = block_table.long().gather(1, index // per_block)
        far = read_rows(entries[block, index % per_block], packing)  # [B, k, D]
        scores = torch.cat([scores, (query @ far.transpose(1, 2)).masked_fill(hidden[:, None], float("-inf"))], -1)
        near = torch.cat([near, far.masked_fill(hidden[..., None], 0.0)], 1)
    return (softmax_with_sink(scores, sinks) @ near).to(q.dtype)


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
    """As `paged_attention_prefill` for one token a sequence, which the cache already holds.

    q: [B, H, Dk]; k_cache: [num_blocks, block_size, Hkv, Dk]; v_cache: [num_blocks, block_size, Hkv, Dv];
    block_table: [B, max_blocks] int32; context_lens: [B] int32, new token included; packing, v_dim: see there. Returns
    [B, H, Dv].
    """
    kv_heads, block_size = k_cache.shape[2], k_cache.shape[1]
    blocks = block_table[:, : -(-int(context_lens.max()) // block_size)].long()
    held = read_rows(k_cache[blocks].flatten(1, 2), packing)
    keys = held.permute(0, 2, 3, 1)  # [B, Hkv, Dk, S]
    given = held[..., :v_dim] if packing else v_cache[blocks].flatten(1, 2).float()
    values = given.transpose(1, 2)  # [B, Hkv, S, Dv]
    beyond = torch.arange(keys.shape[-1], device=q.device) >= context_lens[:, None]
    query = q.float().unflatten(1, (kv_heads, -1))  # [B, Hkv, G, Dk]
    scores = (query @ keys * scale).masked_fill(beyond[:, None, None], float("-inf"))
    values = values.masked_fill(beyond[:, None, :, None], 0.0)
    return (torch.softmax(scores, -1) @ values).flatten(1, 2).to(q.dtype)

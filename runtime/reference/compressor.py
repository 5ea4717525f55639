"""KV compression: every `ratio` tokens become one entry, pooled by a learned softmax per channel.

DeepSeek V4 has two kinds. HCA (ratio 128) pools each closed window of `ratio` tokens. CSA (ratio 4) overlaps:
a token gives two series, Ca and Cb; entry e pools Ca of window e - 1 with Cb of window e, 2 * ratio rows in
all.
"""

import torch
from torch import Tensor

from runtime.reference.rms_norm import rms_norm
from runtime.reference.rope import rope


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
    """Pool, normalise and rotate the entries that this step closes. Reads the state, never writes it.

    new: [T, 2 C] of the step's tokens, values then gate scores; C = D, or 2 D (Ca | Cb) when windows overlap.
    state: [slots, R, 2 C] float32, earlier tokens' rows as a ring: token j of a sequence lies at row j % R,
    with R = ratio, or 2 ratio when overlapping. bias: [ratio, C], added to the gate by position within the
    window. cu_seqlens: [B + 1]; past, slots: [B]; entry_seq, entry_index: [E] (sequence in the batch, entry
    number within it: its window is tokens index * ratio ... + ratio - 1); cos, sin: [E, P] at position index
    * ratio. Integers are int32. Returns [E, D] in new's dtype; an entry whose window is not complete gives
    garbage (callers that need a fixed E drop such rows when storing).
    """
    dim, width = norm_weight.shape[0], new.shape[1] // 2
    windows = width // dim  # 2 when overlapping
    seq = entry_seq.long()
    offset = torch.arange(windows * ratio, device=new.device)
    token = (entry_index.long()[:, None] + 1 - windows) * ratio + offset  # [E, rows]
    since = token - past.long()[seq, None]
    fresh = (cu_seqlens.long()[seq, None] + since).clamp(0, new.shape[0] - 1)
    ring = state[slots.long()[seq, None], token.clamp_min(0) % state.shape[1]]
    source = torch.where((since >= 0)[..., None], new[fresh].float(), ring)
    values, gates = source[..., :width], source[..., width:] + bias.float()[offset % ratio]
    gates = gates.masked_fill((token < 0)[..., None], float("-inf"))
    if windows == 2:  # Ca of the earlier window, Cb of the later one
        first, later = slice(None, ratio), slice(ratio, None)
        values = torch.cat([values[:, first, :dim], values[:, later, dim:]], 1)
        gates = torch.cat([gates[:, first, :dim], gates[:, later, dim:]], 1)
    pooled = (values * torch.softmax(gates, 1)).sum(1).to(new.dtype)
    return rope(rms_norm(pooled, norm_weight, eps)[:, None], cos, sin)[:, 0]

"""Lightning indexer of compressed sparse attention: which entries a query should read."""

import torch
from torch import Tensor

from runtime.reference.packed_rows import Packing, read_rows


def indexer_scores(
    q: Tensor,
    weights: Tensor,
    keys: Tensor,
    block_table: Tensor,
    token_seq: Tensor,
    visible: Tensor,
    num_entries: int,
    packing: Packing | None = None,
) -> Tensor:
    """score[t, s] = sum_h weights[t, h] * relu(q[t, h] . key[s]) for the entries of the token's own sequence.

    q: [T, H, D]; weights: [T, H] float32, all scales folded in; keys: [num_blocks, entries_per_block, D], or bytes of
    `packing`; block_table: [B, max_blocks] int32; token_seq: [T] int32 ascending; visible: [T] int32, entries that
    token may see. Returns [T, num_entries] float32; columns from visible[t] on are unspecified. Reference:
    DeepSeek-V3.2 report, equation 1; compressed keys as in DeepSeek V4.
    """
    scores = torch.zeros(q.shape[0], num_entries, device=q.device)
    if num_entries == 0:
        return scores
    per_block = keys.shape[1]
    sequences, counts = torch.unique_consecutive(token_seq, return_counts=True)
    start = 0
    for seq, count in zip(sequences.tolist(), counts.tolist(), strict=True):
        rows = slice(start, start + count)
        start += count
        entries = int(visible[rows].max())
        blocks = block_table[seq, : -(-entries // per_block)].long()
        key = read_rows(keys[blocks].flatten(0, 1)[:entries], packing)
        hit = torch.relu(q[rows].float() @ key.T)  # [t, H, entries]
        scores[rows, :entries] = (weights[rows].float()[:, None] @ hit)[:, 0]
    return scores

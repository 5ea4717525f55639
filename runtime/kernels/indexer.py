"""Lightning-indexer scores: a tile of keys against the heads of one token after another.

Keys are the left operand, held over the tokens of a program; heads are the columns, weighed and summed at once, so the
per-head scores never leave the registers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.kernels.attention_step import dot_precision
from runtime.kernels.configs import LEAST_ROWS, architecture_of
from runtime.kernels.packed_rows import load_packed_fp4
from runtime.reference.packed_rows import Packing

# Tokens and keys of one program (assumed). The interpreter pays for each operation; in a decode step, of up to
# DECODE_TOKENS, every token has keys of its own.
TOKENS, KEYS = 32, 128
INTERPRETED_TOKENS, INTERPRETED_KEYS = 4, 32
DECODE_TOKENS = 128


@triton.jit
def _indexer_kernel(
    q,
    weights,
    keys,
    block_table,
    token_seq,
    visible,
    out,
    tokens,
    heads,
    dim: tl.constexpr,
    per_block,
    table_width,
    num_entries,
    BYTES: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
    TOKENS: tl.constexpr,
    BS: tl.constexpr,
    BH: tl.constexpr,
    BD: tl.constexpr,
):
    first_entry = tl.program_id(0) * BS
    entry = first_entry + tl.arange(0, BS)
    head, column = tl.arange(0, BH), tl.arange(0, BD)
    known = (entry < num_entries) & (entry // per_block < table_width)
    first = tl.program_id(1) * TOKENS
    out_rows = out + first.to(tl.int64) * num_entries + entry
    loaded = -1
    key = tl.zeros((BS, BD), q.dtype.element_ty)
    for token in range(first, tl.minimum(first + TOKENS, tokens)):
        if tl.load(visible + token) > first_entry:
            seq = tl.load(token_seq + token)
            if seq != loaded:
                block = tl.load(block_table + seq * table_width + entry // per_block, mask=known, other=0)
                row = tl.maximum(block, 0).to(tl.int64) * per_block + entry % per_block
                if BYTES > 0:
                    key = load_packed_fp4(keys, row, known, dim, BYTES, GROUP, BD).to(key.dtype)
                else:
                    inside = known[:, None] & (column < dim)[None, :]
                    key = tl.load(keys + row[:, None] * dim + column[None, :], mask=inside, other=0.0).to(key.dtype)
                loaded = seq
            inside = (head < heads)[:, None] & (column < dim)[None, :]
            place = (token * heads + head).to(tl.int64)
            query = tl.load(q + place[:, None] * dim + column[None, :], mask=inside, other=0.0)
            weight = tl.load(weights + place, mask=head < heads, other=0.0).to(tl.float32)
            hit = tl.maximum(tl.dot(key, query.T, input_precision=PRECISION), 0.0)
            score = tl.sum(hit * weight[None, :], 1)
            tl.store(out_rows + (token - first) * num_entries, score, mask=entry < num_entries)


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
    """See runtime.reference.indexer."""
    q, weights, keys = q.contiguous(), weights.contiguous(), keys.contiguous()
    tokens, heads, dim = q.shape
    out = torch.empty(tokens, num_entries, dtype=torch.float32, device=q.device)
    if tokens == 0 or num_entries == 0:
        return out
    interpreting = architecture_of(q.device) == "interpreter"
    each = INTERPRETED_TOKENS if interpreting else 1 if tokens <= DECODE_TOKENS else TOKENS
    block = INTERPRETED_KEYS if interpreting else KEYS
    _indexer_kernel[(triton.cdiv(num_entries, block), triton.cdiv(tokens, each))](
        q,
        weights,
        keys,
        block_table.contiguous(),
        token_seq,
        visible,
        out,
        tokens,
        heads,
        dim,
        keys.shape[1],
        block_table.shape[1],
        num_entries,
        BYTES=packing.num_bytes if packing else 0,
        GROUP=packing.group if packing else 1,
        PRECISION=dot_precision(q.dtype),
        TOKENS=each,
        BS=block,
        BH=max(LEAST_ROWS, triton.next_power_of_2(heads)),
        BD=max(LEAST_ROWS, triton.next_power_of_2(dim)),
        num_warps=4,
        num_stages=2,
    )
    return out

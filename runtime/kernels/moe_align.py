"""Sort token-expert pairs by expert: count, lay out, scatter. Atomics decide the order within an expert."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.reference.moe_align import Alignment, max_tiles

PAIRS, TILES = 256, 32  # of one program (assumed)


@triton.jit
def _count_kernel(ids, counts, rank, num_pairs, num_experts, BLOCK: tl.constexpr):
    """rank[p]: how many pairs of the same expert were counted before pair p."""
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    expert = tl.load(ids + pair, mask=pair < num_pairs, other=-1).to(tl.int32)
    valid = (expert >= 0) & (expert < num_experts)
    one = tl.full((BLOCK,), 1, tl.int32)
    before = tl.atomic_add(counts + tl.where(valid, expert, 0), one, mask=valid, sem="relaxed")
    tl.store(rank + pair, before, mask=valid)


@triton.jit
def _layout_kernel(
    counts,
    starts,
    tile_expert,
    num_rows,
    num_experts,
    tiles,
    BLOCK_M: tl.constexpr,
    EXPERTS: tl.constexpr,
    TILES: tl.constexpr,
):
    """Every program sums the counts anew; each names the experts of TILES tiles, the first stores the
    starts.
    """
    expert = tl.arange(0, EXPERTS)
    inside = expert < num_experts
    count = tl.load(counts + expert, mask=inside, other=0)
    padded = (count + BLOCK_M - 1) // BLOCK_M * BLOCK_M
    ends = tl.cumsum(padded, 0)
    if tl.program_id(0) == 0:
        tl.store(starts + expert, ends - padded, mask=inside)
        tl.store(num_rows, tl.sum(padded, 0))
    tile = tl.program_id(0) * TILES + tl.arange(0, TILES)
    passed = (ends[None, :] <= tile[:, None] * BLOCK_M) & inside[None, :]
    owner = tl.minimum(tl.sum(passed.to(tl.int32), 1), num_experts - 1)
    tl.store(tile_expert + tile, owner, mask=tile < tiles)


@triton.jit
def _scatter_kernel(ids, rank, starts, pairs, num_pairs, num_experts, BLOCK: tl.constexpr):
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    expert = tl.load(ids + pair, mask=pair < num_pairs, other=-1).to(tl.int32)
    valid = (expert >= 0) & (expert < num_experts)
    start = tl.load(starts + expert, mask=valid, other=0)
    row = start + tl.load(rank + pair, mask=valid, other=0)
    tl.store(pairs + row, pair, mask=valid)


def moe_align(expert_ids: Tensor, num_experts: int, block_m: int) -> Alignment:
    """See runtime.reference.moe_align. Within one expert the order of pairs is not determined."""
    flat = expert_ids.reshape(-1)
    num_pairs, device = flat.numel(), flat.device
    tiles = max_tiles(num_pairs, num_experts, block_m)
    counts = torch.zeros(num_experts, dtype=torch.int32, device=device)
    rank = torch.empty(num_pairs, dtype=torch.int32, device=device)
    starts = torch.empty(num_experts, dtype=torch.int32, device=device)
    pairs = torch.full((tiles * block_m,), num_pairs, dtype=torch.int32, device=device)
    tile_expert = torch.empty(tiles, dtype=torch.int32, device=device)
    num_rows = torch.zeros(1, dtype=torch.int32, device=device)
    if num_pairs:
        grid = (triton.cdiv(num_pairs, PAIRS),)
        _count_kernel[grid](flat, counts, rank, num_pairs, num_experts, BLOCK=PAIRS)
        _layout_kernel[(triton.cdiv(tiles, TILES),)](
            counts,
            starts,
            tile_expert,
            num_rows,
            num_experts,
            tiles,
            BLOCK_M=block_m,
            EXPERTS=triton.next_power_of_2(num_experts),
            TILES=TILES,
        )
        _scatter_kernel[grid](flat, rank, starts, pairs, num_pairs, num_experts, BLOCK=PAIRS)
    return Alignment(pairs, tile_expert, num_rows, block_m)

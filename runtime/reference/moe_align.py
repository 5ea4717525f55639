"""Sort token-expert pairs by expert so that a grouped GEMM reads whole tiles of one expert."""

from typing import NamedTuple

import torch
from torch import Tensor


class Alignment(NamedTuple):
    """Pairs grouped by expert, every expert's run padded to whole tiles of block_m rows.

    A pair is token * top_k + choice. Sizes depend on shapes alone, so a CUDA graph can hold them.
    """

    pairs: Tensor  # [max_tiles * block_m] int32: a pair, or num_pairs where a row is padding
    tile_expert: Tensor  # [max_tiles] int32: expert of a tile; meaningless past the last used tile
    num_rows: Tensor  # [1] int32: rows in use, padding included; a multiple of block_m
    block_m: int


def max_tiles(num_pairs: int, num_experts: int, block_m: int) -> int:
    """Upper bound on tiles: each expert touched wastes at most block_m - 1 rows."""
    touched = min(num_pairs, num_experts)
    return (num_pairs + touched * (block_m - 1)) // block_m


def moe_align(expert_ids: Tensor, num_experts: int, block_m: int) -> Alignment:
    """expert_ids: [T, top_k] integers; a pair whose expert is outside 0..num_experts-1 (held elsewhere) is
    dropped.

    Within one expert pairs come in ascending order here; a kernel may order them otherwise.
    """
    flat = expert_ids.reshape(-1).long()
    device = flat.device
    flat = torch.where((flat >= 0) & (flat < num_experts), flat, num_experts)
    order = torch.argsort(flat, stable=True)
    counts = torch.bincount(flat, minlength=num_experts + 1)
    padded = (counts[:-1] + block_m - 1) // block_m * block_m
    ends = torch.cumsum(padded, 0)
    shift = torch.cat([ends - padded - (torch.cumsum(counts[:-1], 0) - counts[:-1]), ends.new_zeros(1)])
    sorted_expert = flat[order]
    kept = sorted_expert < num_experts
    row = torch.arange(flat.numel(), device=device) + shift[sorted_expert]
    tiles = max_tiles(flat.numel(), num_experts, block_m)
    pairs = torch.full((tiles * block_m,), flat.numel(), dtype=torch.int32, device=device)
    pairs[row[kept]] = order[kept].int()
    first_row = torch.arange(tiles, device=device) * block_m
    tile_expert = torch.searchsorted(ends, first_row, right=True).clamp_max(num_experts - 1).int()
    return Alignment(pairs, tile_expert, ends[-1:].int(), block_m)

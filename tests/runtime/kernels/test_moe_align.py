import pytest
import torch

from runtime.kernels import moe_align as kernels
from runtime.reference import moe_align as reference


@pytest.mark.parametrize(("tokens", "top_k", "experts", "block_m"), [(37, 3, 11, 16), (1, 6, 300, 16), (5, 1, 2, 4)])
def test_alignment_holds_every_local_pair_once(
    tokens: int, top_k: int, experts: int, block_m: int, device: torch.device
) -> None:
    ids = torch.randint(-1, experts + 1, (tokens, top_k), dtype=torch.int32, device=device)
    got = kernels.moe_align(ids, experts, block_m)
    expected = reference.moe_align(ids, experts, block_m)
    used = int(expected.num_rows)
    assert torch.equal(got.num_rows, expected.num_rows)
    tiles = used // block_m
    assert torch.equal(got.tile_expert[:tiles], expected.tile_expert[:tiles])
    # Atomics may order pairs within an expert in any way: compare each expert's set.
    owner = expected.tile_expert[:tiles].repeat_interleave(block_m)
    for expert in owner.unique().tolist():
        mine = owner == expert
        assert torch.equal(got.pairs[:used][mine].sort().values, expected.pairs[:used][mine].sort().values)
    assert (got.pairs[used:] == ids.numel()).all()
    local = ((ids >= 0) & (ids < experts)).flatten().nonzero()[:, 0].int()
    assert torch.equal(expected.pairs[expected.pairs < ids.numel()].sort().values, local)

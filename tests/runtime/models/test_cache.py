"""Blocks and slots can be moved, copied and restored without a trace in the logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from runtime.cache import KVCache
from runtime.config.spec import ConfigError

PREFILL, DECODE = 150, 20


@pytest.fixture
def uninterrupted(pair: Any, tokens_of: Callable, feed: Any) -> tuple[list[int], torch.Tensor]:
    """Tokens and the logits of the decode steps after a prefill."""
    tokens = tokens_of(PREFILL + DECODE, 21)
    runner, sequence = pair.runner(), feed(tokens, tuple(range(12)), 0)
    runner.step([sequence.take(PREFILL)])
    return tokens, torch.cat([runner.step([sequence.take(1)]) for _ in range(DECODE)])


def test_a_sequence_moves_to_another_cache(pair: Any, feed: Any, uninterrupted: Any) -> None:
    """Prefill in one cache, hand blocks and state over, decode in another with other blocks and slot."""
    tokens, expected = uninterrupted
    source, target = pair.runner(), pair.runner()
    used = -(-PREFILL // pair.block_size)
    sequence = feed(tokens, tuple(range(7, 7 + 12)), 2)
    source.step([sequence.take(PREFILL)])
    # What a former owner left in the target must not matter.
    other = feed([3] * 200, tuple(range(24)), 1)
    target.step([other.take(200)])
    blocks = tuple(range(23, 11, -1))
    parcel = source.cache.export_blocks(sequence.block_ids[:used], sequence.slot)
    assert all(tensor.is_contiguous() for tensor in parcel)
    target.cache.import_blocks(blocks[:used], 1, [tensor.clone() for tensor in parcel])
    moved = feed(tokens, blocks, 1, PREFILL)
    logits = torch.cat([target.step([moved.take(1)]) for _ in range(DECODE)])
    assert torch.equal(logits, expected)


def test_parcel_size_is_what_the_cache_says(pair: Any) -> None:
    cache = pair.runner().cache
    parcel = cache.export_blocks((4, 2, 9), 1)
    assert sum(t.nbytes for t in parcel) == 3 * cache.bytes_per_block + cache.bytes_per_slot
    assert cache.has_state == (cache.bytes_per_slot > 0)


def test_bytes_of_v4_follow_the_layout(pair_of: Callable) -> None:
    """By hand: 2 CSA, 2 HCA layers, block of 128, window 128, float32; see the class for the parts."""
    cache = pair_of("deepseek_v4").runner().cache
    dim, index_dim = 32, 16
    assert cache.bytes_per_block == 4 * (2 * 32 * (dim + index_dim) + 2 * 1 * dim)
    window, csa, hca = 5 * 128 * dim, 2 * 8 * 4 * (dim + index_dim), 2 * 128 * 2 * dim
    assert cache.bytes_per_slot == 4 * (window + csa + hca)


@pytest.mark.parametrize("split", [1, 5, 12])
def test_restored_snapshot_equals_uninterrupted_run(pair: Any, feed: Any, uninterrupted: Any, split: int) -> None:
    """Snapshot the slot, let another sequence use it, restore it, go on."""
    tokens, expected = uninterrupted
    runner = pair.runner()
    sequence = feed(tokens, tuple(range(12)), 0)
    runner.step([sequence.take(PREFILL)])
    before = [runner.step([sequence.take(1)]) for _ in range(split)]
    runner.cache.copy_slot(0, 3)
    intruder = feed(list(reversed(tokens)), tuple(range(12, 24)), 0)
    runner.cache.reset_slot(0)
    runner.step([intruder.take(140)])
    runner.cache.copy_slot(3, 0)
    after = [runner.step([sequence.take(1)]) for _ in range(DECODE - split)]
    assert torch.equal(torch.cat(before + after), expected)


def test_prefix_resumes_from_a_snapshot_at_a_block_boundary(pair: Any, feed: Any, tokens_of: Callable) -> None:
    """A second sequence with the same first block shares it and prefills only the rest."""
    size = max(pair.block_size, 128)
    first, second = tokens_of(size + 30, 31), tokens_of(70, 32)
    shared = tuple(range(size // pair.block_size))
    runner = pair.runner()
    sequence = feed(first, (*shared, 20, 21, 22), 0)
    runner.step([sequence.take(size)])
    runner.cache.copy_slot(0, 2)
    runner.step([sequence.take(30)])
    follower = feed(first[:size] + second, (*shared, 10, 11, 12, 13, 14), 2, size)
    resumed = runner.step([follower.take(70)])
    fresh = pair.runner()
    again = feed(first[:size] + second, tuple(range(24)), 0)
    fresh.step([again.take(size)])
    assert torch.equal(resumed, fresh.step([again.take(70)]))


def test_dummy_step_writes_nothing(pair: Any) -> None:
    """An idle rank runs an empty step."""
    runner = pair.runner()
    assert runner.step([]).shape == (0, 256)
    assert all(not tensor.any() for tensor in runner.cache.export_blocks(range(24), 0))


def test_block_size_must_hold_whole_entries(pair_of: Callable) -> None:
    with pytest.raises(ConfigError, match="block_size=64 must be a multiple of 128"):
        KVCache(pair_of("deepseek_v4").config, 4, 1, 64, "cpu", torch.float32)


def test_parcel_of_another_model_is_refused(pair_of: Callable) -> None:
    parcel = pair_of("qwen3_moe").runner().cache.export_blocks((0,), 0)
    with pytest.raises(ValueError, match="does not fit"):
        pair_of("deepseek_v4").runner().cache.import_blocks((0,), 0, parcel)

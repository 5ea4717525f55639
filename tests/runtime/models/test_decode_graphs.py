"""Decode in fixed shapes: what a CUDA graph runs, checked here without a graph, and with one where CUDA exists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from runtime import models
from runtime.batch import FixedShape, build_batch
from runtime.cache import KVCache, SequenceInput
from runtime.decode_graphs import fixed_shape, refill
from runtime.model_runner import ModelRunner


def sequence_input(blocks: int) -> SequenceInput:
    return SequenceInput((1,), 0, tuple(range(blocks)), 0)


def test_shapes_are_rounded_up() -> None:
    counts = {n: fixed_shape([sequence_input(1)] * n).num_sequences for n in (1, 2, 3, 5, 16, 17, 33)}
    assert counts == {1: 1, 2: 2, 3: 4, 5: 8, 16: 16, 17: 32, 33: 48}
    assert [fixed_shape([sequence_input(n)]).max_blocks for n in (1, 2, 3, 9)] == [1, 2, 4, 16]


def test_padded_decode_equals_plain_decode(pair: Any, tokens_of: Callable, feed: Any) -> None:
    """Three sequences in a batch of eight, through tensors that are reused from step to step."""
    lengths = (141, 60, 126)
    each = -(-(max(lengths) + 10) // pair.block_size)  # blocks a sequence
    spare = 3 * each
    plain, padded = (pair.runner(num_blocks=spare + 1) for _ in range(2))
    fed = []
    for runner in (plain, padded):
        fed.append(
            [feed(tokens_of(n + 10, n), tuple(range(i * each, i * each + each)), i) for i, n in enumerate(lengths)]
        )
        runner.step([one.take(n) for one, n in zip(fed[-1], lengths, strict=True)])
    config, device, shape = pair.config, torch.device("cpu"), FixedShape(8, 2 * each)
    static = build_batch([], config, pair.block_size, device, shape)
    for _ in range(10):
        expected = plain.step([one.take(1) for one in fed[0]])
        refill(static, build_batch([one.take(1) for one in fed[1]], config, pair.block_size, device, shape))
        with torch.inference_mode():
            logits = pair.ours.logits(pair.ours(static, padded.cache))
        assert (logits[:3] - expected).abs().max() < 1e-5 * expected.abs().max()
    untouched = padded.cache.export_blocks((spare,), 3)
    assert all(not tensor.any() for tensor in untouched)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_graphs_equal_plain_launches(pair_of: Callable, tokens_of: Callable, feed: Any) -> None:
    config = pair_of("deepseek_v4").config
    model = models.build(config, seed=1, device="cuda", dtype=torch.bfloat16)
    outputs = []
    for graphs in (False, True):
        cache = KVCache(config, 8, 2, 128, "cuda", torch.bfloat16)
        runner = ModelRunner(model, cache, cuda_graphs=graphs)
        fed = [feed(tokens_of(180, 1), (0, 1), 0), feed(tokens_of(160, 2), (2, 3), 1)]
        runner.step([one.take(120) for one in fed])
        outputs.append(torch.stack([runner.step([one.take(1) for one in fed]) for _ in range(20)]))
    assert torch.allclose(*outputs, rtol=1e-2, atol=1e-2)

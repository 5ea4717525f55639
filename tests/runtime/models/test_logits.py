"""Logits equal those of `transformers` with the same weights, however the tokens are fed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

TOLERANCE = 1e-4  # relative to the largest logit of the row


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    error = (ours - theirs).abs().amax(-1) / theirs.abs().amax(-1)
    assert error.max() < TOLERANCE, f"relative errors {error.tolist()}"


def scattered(pair: Any, tokens: int, seed: int = 0) -> tuple[int, ...]:
    """Blocks for that many tokens, in no order."""
    count = -(-tokens // pair.block_size)
    return tuple(torch.randperm(24, generator=torch.Generator().manual_seed(seed))[:count].tolist())


@pytest.mark.parametrize("length", [1, 3, 4, 5, 16, 127, 128, 129, 131, 255, 256, 300])
def test_prefill_in_one_piece(pair: Any, tokens_of: Callable, feed: Any, length: int) -> None:
    tokens = tokens_of(length, 1)
    ours = pair.runner().step([feed(tokens, scattered(pair, length), 2).take(length)])
    assert_same(ours, pair.logits(tokens)[-1:])


@pytest.mark.parametrize(
    "chunks", [(127, 2, 1, 130, 40), (5, 123, 128, 44), (1, 1, 2, 3, 61, 150, 37, 45), (299, 1)], ids=str
)
def test_prefill_in_chunks(pair: Any, tokens_of: Callable, feed: Any, chunks: tuple[int, ...]) -> None:
    total = sum(chunks)
    tokens = tokens_of(total, 2)
    runner, sequence = pair.runner(), feed(tokens, scattered(pair, total), 1)
    theirs = pair.logits(tokens)
    for size in chunks:
        ours = runner.step([sequence.take(size)])
        assert_same(ours, theirs[sequence.past - 1 : sequence.past])


def test_decode_token_by_token(pair: Any, tokens_of: Callable, feed: Any) -> None:
    tokens = tokens_of(290, 3)
    runner, sequence = pair.runner(), feed(tokens, scattered(pair, 290), 3)
    ours = torch.cat([runner.step([sequence.take(1)]) for _ in tokens])
    assert_same(ours, pair.logits(tokens))


def test_sequences_of_different_lengths_in_one_step(pair: Any, tokens_of: Callable, feed: Any) -> None:
    """Prefill chunks and decode tokens of four sequences, mixed and in changing order."""
    lengths = (140, 9, 70, 133)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(5)).tolist()
    sequences, theirs = [], []
    for slot, length in enumerate(lengths):
        blocks = -(-length // pair.block_size)
        sequences.append(feed(tokens_of(length, 10 + slot), tuple(order[:blocks]), slot))
        theirs.append(pair.logits(sequences[-1].tokens))
        order = order[blocks:]
    runner = pair.runner()
    steps = [
        [(0, 126), (1, 1)],
        [(1, 1), (2, 30), (0, 1)],
        [(3, 131), (0, 1), (2, 1), (1, 1)],
        [(0, 1), (1, 4), (2, 37), (3, 1)],
        [(3, 1), (2, 1), (1, 1), (0, 1)],
        [(1, 1), (0, 10), (2, 1)],
    ]
    for step in steps:
        ours = runner.step([sequences[index].take(count) for index, count in step])
        assert_same(ours, torch.stack([theirs[i][sequences[i].past - 1] for i, _ in step]))
    assert [s.past for s in sequences] == [140, 9, 70, 133]


@pytest.mark.parametrize("prompt", [37, 100])
def test_greedy_tokens_are_identical(pair: Any, tokens_of: Callable, feed: Any, prompt: int) -> None:
    """64 tokens that cross the window, compression windows and blocks."""
    tokens = tokens_of(prompt, 4)
    prompt_ids = torch.tensor([tokens])
    # The mask is given: guessed from the padding token, it would hide equal tokens of the prompt.
    theirs = pair.theirs.generate(
        prompt_ids,
        attention_mask=torch.ones_like(prompt_ids),
        max_new_tokens=64,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )[0].tolist()
    runner, sequence = pair.runner(), feed(list(tokens), scattered(pair, prompt + 64), 0)
    logits = runner.step([sequence.take(prompt)])
    for _ in range(64):
        sequence.tokens.append(int(logits.argmax()))
        logits = runner.step([sequence.take(1)])
    assert sequence.tokens == theirs


@pytest.mark.parametrize(
    "variant",
    [
        "v4 with a small window and short ratios",
        "v4 of windows alone",
        "v3 with full queries, biases, half-split rope",
        "qwen3 with tied embeddings and biases",
    ],
)
def test_other_choices_of_the_configuration(pair_of: Callable, tokens_of: Callable, feed: Any, variant: str) -> None:
    pair = pair_of(variant)
    tokens = tokens_of(150, 12)
    runner, sequence = pair.runner(), feed(tokens, scattered(pair, 150), 1)
    theirs = pair.logits(tokens)
    for size in (33, 70, 1, 1, 1, 1, 1, 1, 1, 40):
        assert_same(runner.step([sequence.take(size)]), theirs[sequence.past - 1 : sequence.past])

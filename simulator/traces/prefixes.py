"""Tokens of the blocks that a trace's hash ids stand for, and what an unbounded prefix cache would find of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from simulator.scenario import Trace
from simulator.traces.columns import BLOCK_TOKENS, TraceError
from simulator.traces.layouts import Layout

SIZES = (16, 32, 64, 128, 256, 512, 1024, 2048, 8, 4, 2, 1)  # [tokens]; in the order in which ties are broken
FIT = 0.5  # share of the prompts that a size has to fit: files may cut their longest lists [assumed]


def block_tokens(
    counts: NDArray[np.int64],
    prompts: NDArray[np.int64],
    layout: Layout,
    keys: Trace,
    where: Callable[[int], str],
) -> tuple[int, str]:
    """The size that fits most prompts, with a sentence where it is not the format's own. [tokens]

    counts: hash ids of each prompt, 0 where it has none. where: names the file and line of a prompt.
    A prompt of n tokens has ceil(n / size) ids, or floor(n / size) where ids stand for full blocks only.
    Raises TraceError where no size fits, or the key contradicts the file.
    """
    named = np.flatnonzero(counts)
    own = layout.block_tokens or BLOCK_TOKENS
    if not len(named):
        return keys.block_tokens or own, ""
    ids, tokens = counts[named], prompts[named]
    sizes = [own, *(size for size in SIZES if size != own)]
    shares = {size: _share(size, ids, tokens) for size in sizes}
    best = max(sizes, key=lambda size: shares[size])  # the first of equals: the format's own
    if keys.block_tokens is not None:
        asked = keys.block_tokens
        if _share(asked, ids, tokens) < FIT:
            worst = named[np.argmax(np.abs(ids - np.ceil(tokens / asked)))]
            told = f"; leave it out, or give {best}" if shares[best] >= FIT else "; leave hash_ids out of the file"
            raise TraceError(
                f"workload.block_tokens={asked} contradicts {where(int(worst))}: a prompt of {prompts[worst]:,} tokens "
                f"has {counts[worst]:,} hash ids{told}"
            )
        return asked, ""
    if shares[best] < FIT:
        first = int(named[0])
        raise TraceError(
            f"{where(first)}, column {layout.hash_ids}: a prompt of {prompts[first]:,} tokens has {counts[first]:,} "
            "hash ids, and no block size fits most prompts; give workload.block_tokens (--block-tokens) if the lists "
            "are cut, or leave hash ids out"
        )
    if best == own and layout.block_tokens is not None:
        return best, ""
    return best, f"hash ids are of blocks of {best} tokens, as {shares[best]:.0%} of the prompts have it"


def _share(size: int, ids: NDArray[np.int64], tokens: NDArray[np.int64]) -> float:
    """Of prompts that have as many ids as they have blocks; full blocks alone count if all prompts say so."""
    up = float(np.mean(ids == -(-tokens // size)))
    down = float(np.mean(ids == tokens // size))
    return max(up, down)


def ideal_hit_tokens(blocks: Sequence[Sequence[int]], prompts: Sequence[int], size: int) -> int:
    """Prompt tokens that a cache without bound finds, where every prompt is computed before the next one comes.

    >>> ideal_hit_tokens([(1, 2), (1, 2, 3), (1, 4)], [32, 40, 32], 16)
    48
    """
    seen: set[int] = set()
    found = 0
    for chain, tokens in zip(blocks, prompts, strict=True):
        hits = next((i for i, block in enumerate(chain) if block not in seen), len(chain))
        found += min(hits * size, tokens)
        seen.update(chain)
    return found

"""KV of past prompts that an instance keeps for prompts with the same beginning.

A prompt is a chain of blocks of BLOCK_TOKENS tokens; the id of a block names it and all before it, so a prompt can
reuse its leading blocks up to the first that is not kept. Each tier forgets the least recently used block first and
passes it to the next tier; a hit moves blocks back to the first. Within a prompt the last block is forgotten first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

BLOCK_TOKENS = 512  # as in the Mooncake traces


class Loss(IntEnum):
    """What an instance loses its caches by; each takes all that those before it take."""

    INSTANCE = 0  # its accelerators and processes
    NODE = 1  # its hosts, with their memory
    RELEASE = 2  # given back: everything


@dataclass(frozen=True)
class Tier:
    """Room in blocks (None: without bound), and the time to bring one block to the accelerators. [s]

    lost_by: the least that the tier does not survive.
    """

    blocks: int | None
    load_s: float = 0.0
    lost_by: Loss = Loss.INSTANCE


@dataclass(frozen=True)
class StatePolicy:
    """Where a prompt may resume in a model that keeps windows or compressor state beside its entries.

    interval: state is kept after every `interval` tokens only, and a hit is cut to the last such point.
    tail_tokens: that many tokens before the end of a hit are computed again to rebuild windows and state.
    """

    interval: int = 1
    tail_tokens: int = 0

    def resume(self, hit_tokens: int, prompt_tokens: int) -> int:
        """Tokens that need no computing. At least the last prompt token is computed: it gives the first output.

        >>> StatePolicy(interval=1000).resume(2560, 9000), StatePolicy(tail_tokens=128).resume(2560, 9000)
        (2000, 2432)
        >>> StatePolicy().resume(2560, 2560), StatePolicy(tail_tokens=128).resume(100, 2560)
        (2559, 0)
        """
        usable = min(hit_tokens, prompt_tokens - 1)
        return max(0, usable // self.interval * self.interval - self.tail_tokens)


class Hit(NamedTuple):
    blocks: int  # leading blocks that were kept
    load_s: float  # to bring those of lower tiers


class PrefixCache:
    """The tiers of one instance, first the fastest."""

    def __init__(self, tiers: Sequence[Tier], policy: StatePolicy | None = None) -> None:
        self.tiers = tuple(tiers)
        self.policy = policy or StatePolicy()
        self._kept: list[OrderedDict[int, None]] = [OrderedDict() for _ in tiers]

    def peek(self, blocks: Sequence[int]) -> int:
        """Leading blocks that are kept; changes nothing."""
        for count, block in enumerate(blocks):
            if not any(block in kept for kept in self._kept):
                return count
        return len(blocks)

    def take(self, blocks: Sequence[int]) -> Hit:
        """Use the leading blocks that are kept; they become the most recently used of the first tier."""
        hits = self.peek(blocks)
        used = blocks[:hits]
        load_s = 0.0
        for block in used:
            for tier, kept in zip(self.tiers, self._kept, strict=True):
                if block in kept:
                    load_s += tier.load_s
                    break
        self.insert(used)
        return Hit(hits, load_s)

    def insert(self, blocks: Iterable[int]) -> None:
        """Keep a computed prompt's blocks."""
        incoming = list(blocks)[::-1]
        for tier, kept in zip(self.tiers, self._kept, strict=True):
            for block in incoming:
                kept[block] = None
                kept.move_to_end(block)
            if kept is self._kept[0]:
                for lower in self._kept[1:]:
                    for block in incoming:
                        lower.pop(block, None)
            if tier.blocks is None:
                return
            incoming = [kept.popitem(last=False)[0] for _ in range(len(kept) - tier.blocks)]
            if not incoming:
                return

    def lose(self, loss: Loss) -> None:
        """Forget the tiers that do not survive it."""
        for tier, kept in zip(self.tiers, self._kept, strict=True):
            if loss >= tier.lost_by:
                kept.clear()

    def __len__(self) -> int:
        return sum(len(kept) for kept in self._kept)


def ideal_hit_rate(prompts: Iterable[Sequence[int]]) -> float:
    """Share of blocks that one cache without bound would serve, prompts coming one after the other."""
    cache = PrefixCache([Tier(None)])
    hits = total = 0
    for blocks in prompts:
        hits += cache.take(blocks).blocks
        cache.insert(blocks)
        total += len(blocks)
    return hits / total if total else 0.0

"""KV of past prompts that an instance keeps for prompts with the same beginning.

A prompt is a chain of blocks of as many tokens each; the id of a block names it and all before it, so a prompt can
reuse its leading blocks up to the first that is not kept. Blocks in use belong to the requests that use them, as the
reference counts of vLLM's block pool and SGLang's radix tree have it. Of the others each tier forgets the least
recently used first and passes it to the next tier; a hit brings blocks back. A prompt's last block is forgotten first.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple


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
    blocks: int  # leading blocks that were found
    load_s: float  # to bring those of lower tiers


class PrefixCache:
    """The tiers of one instance, first the fastest.

    A block that requests under way use is part of their KV: it is found, takes no room here and is not forgotten. With
    the last of them it becomes the most recently used of the first tier, which has what requests leave of the KV room.

    block_bytes: of a block on the accelerators, charged to that room; 0 where only `Tier.blocks` bounds the first tier.
    """

    def __init__(self, tiers: Sequence[Tier], policy: StatePolicy | None = None, block_bytes: float = 0.0) -> None:
        self.tiers = tuple(tiers)
        self.policy = policy or StatePolicy()
        self.block_bytes = block_bytes
        self._room = tiers[0].blocks
        self._kept: list[OrderedDict[int, None]] = [OrderedDict() for _ in tiers]
        self._used: dict[int, int] = {}  # by block, the requests under way that use it
        self._using: dict[int, Sequence[int]] = {}  # by request, the blocks

    def peek(self, blocks: Sequence[int]) -> int:
        """Leading blocks that are found; changes nothing."""
        used = self._used
        for count, block in enumerate(blocks):
            if block not in used and not any(block in kept for kept in self._kept):
                return count
        return len(blocks)

    def take(self, request: int, blocks: Sequence[int]) -> Hit:
        """A request begins to use the leading blocks that are found."""
        hits = self.peek(blocks)
        load_s = 0.0
        for block in blocks[:hits]:
            if block not in self._used:
                load_s += next(t.load_s for t, kept in zip(self.tiers, self._kept, strict=True) if block in kept)
        self._use(request, blocks[:hits], 0)
        return Hit(hits, load_s)

    def keep(self, request: int, blocks: Sequence[int]) -> None:
        """A request has computed all blocks of its prompt."""
        self._use(request, blocks, len(self._using.get(request, ())))

    def _use(self, request: int, blocks: Sequence[int], first: int) -> None:
        """A request uses `blocks`, those before `first` already."""
        for block in blocks[first:]:
            count = self._used.get(block, 0)
            self._used[block] = count + 1
            if not count:
                for kept in self._kept:
                    kept.pop(block, None)
        self._using[request] = blocks

    def release(self, request: int) -> None:
        """A request's KV is freed: what nobody uses any more is kept while there is room."""
        blocks = self._using.pop(request, ())
        for block in blocks:
            self._used[block] -= 1
            if not self._used[block]:
                del self._used[block]
        self.insert(blocks)

    def insert(self, blocks: Iterable[int]) -> None:
        """Keep blocks that nobody uses."""
        for block in reversed([block for block in blocks if block not in self._used]):
            for kept in self._kept:
                kept.pop(block, None)
            self._kept[0][block] = None
        self._shrink()

    def fit(self, free_bytes: float) -> None:
        """From now on the KV of requests leaves `free_bytes` of the room on the accelerators."""
        if self.block_bytes and free_bytes < math.inf:
            most = self.tiers[0].blocks
            blocks = max(0, int(free_bytes // self.block_bytes))
            self._room = blocks if most is None else min(most, blocks)
            self._shrink()

    def _shrink(self) -> None:
        """Pass down what a tier has no room for, the least recently used first."""
        room = self._room
        for i, kept in enumerate(self._kept):
            if i:
                room = self.tiers[i].blocks
            if room is None or len(kept) <= room:
                return
            lower = self._kept[i + 1] if i + 1 < len(self._kept) else None
            for _ in range(len(kept) - room):
                block = kept.popitem(last=False)[0]
                if lower is not None:
                    lower[block] = None

    def lose(self, loss: Loss) -> None:
        """Forget the tiers that do not survive it, and what requests use: their KV is lost with the first."""
        self._used.clear()
        self._using.clear()
        for tier, kept in zip(self.tiers, self._kept, strict=True):
            if loss >= tier.lost_by:
                kept.clear()

    @property
    def kept_bytes(self) -> float:
        """Of blocks on the accelerators that no request uses."""
        return len(self._kept[0]) * self.block_bytes

    def __len__(self) -> int:
        return sum(len(kept) for kept in self._kept)


def replayed_hit_rate(prompts: Iterable[Sequence[int]], room: int | None = None) -> float:
    """Share of blocks that one cache of `room` blocks would serve, prompts coming one after the other.

    Without bound it is the ideal of the trace.
    """
    cache = PrefixCache([Tier(room)])
    hits = total = 0
    for request, blocks in enumerate(prompts):
        hits += cache.take(request, blocks).blocks
        cache.keep(request, blocks)
        cache.release(request)
        total += len(blocks)
    return hits / total if total else 0.0

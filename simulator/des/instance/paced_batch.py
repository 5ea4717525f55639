"""Running sequences that gain different numbers of tokens in a step: one batch for each pace, summed by rank.

A step costs O(ranks x paces), however many sequences run.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence as Sequences

from simulator.des.instance.kv_room import KvOccupancy, KvRoom
from simulator.des.instance.rank import Rank
from simulator.des.instance.running_batch import RunningBatch, Sequence


class PacedBatch(RunningBatch):
    """As a RunningBatch whose tick stays 0, so that its ranks' sums are plain sums over sequences.

    rates: mean tokens that a step emits to the sequences of each pace.
    pace_of: by request, the index of its pace.
    """

    def __init__(
        self,
        kv: KvRoom,
        occupancy: KvOccupancy,
        ranks: int,
        caps: tuple[int, ...],
        rates: Sequences[float],
        pace_of: Sequences[int],
    ) -> None:
        super().__init__(kv, occupancy, ranks, caps)
        self._pace_of = pace_of
        serial = itertools.count()
        self._lanes = [RunningBatch(kv, occupancy, ranks, caps, rate, serial) for rate in rates]

    @property
    def is_even(self) -> bool:
        return False

    def join(self, request: int, rank: Rank, context: int, remaining: int) -> None:
        lane = self._lanes[self._pace_of[request]]
        part = lane.ranks[rank.index]
        rank.start_decoding(context)
        part.held_sequences += 1
        part.held_tokens += context
        lane.join(request, part, context, remaining)
        self._sum(rank)
        self.size += 1

    def emit(self) -> list[Sequence]:
        self._emissions += 1
        ended = [sequence for lane in self._lanes if lane.size for sequence in lane.emit()]
        for rank in self.ranks:
            self._sum(rank)
        self.size -= len(ended)
        return ended

    def preempt(self, rank: Rank, priority: list[int] | None = None) -> tuple[int, int]:
        found = self.newest(rank, priority)
        assert found is not None
        lane = self._lanes[self._pace_of[found[2].request]]
        dropped = lane.preempt(lane.ranks[rank.index], priority)
        self._sum(rank)
        self.size -= 1
        return dropped

    def newest(self, rank: Rank, priority: list[int] | None = None) -> tuple[int, int, Sequence] | None:
        found = (lane.newest(lane.ranks[rank.index], priority) for lane in self._lanes if lane.size)
        return max((last for last in found if last is not None), default=None)

    def drop(self) -> list[tuple[int, int]]:
        dropped = [each for lane in self._lanes for each in lane.drop()]
        for rank in self.ranks:
            self._sum(rank)
        super().drop()
        return dropped

    def _sum(self, rank: Rank) -> None:
        """Bring the sums of a rank up to date with its lanes."""
        size = offsets = 0
        capped = [0] * len(self.caps)
        for lane in self._lanes:
            part = lane.ranks[rank.index]
            if part.size:
                tick = lane.tick
                size += part.size
                offsets += part.offsets + part.size * tick
                for i in range(len(capped)):
                    capped[i] += part.capped_fixed[i] + part.growing[i] * tick
        rank.size = size
        rank.offsets = offsets
        rank.capped_fixed = capped

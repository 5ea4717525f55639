"""Running sequences of one instance as sums that cost O(1) a step, however many run.

Every decode step lengthens all running sequences alike, so an instance keeps one `tick` (tokens emitted to each
sequence so far) and a sequence keeps `offset` = context - tick, which never changes while it runs. Sums of
contexts are then (sum of offsets) + size * tick. What happens to a sequence at a known tick (it ends, or its
context grows past a cap) waits in a heap.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from heapq import heappop, heappush

from simulator.des.instance.kv_room import KvOccupancy, KvRoom
from simulator.des.instance.rank import Rank
from simulator.model.latency import DecodeLoad

NEVER = sys.maxsize  # a tick
new = object.__new__


class Sequence:
    """A running sequence. Ends when the instance's tick reaches `last_tick`.

    below: caps that its context has not reached, a suffix of the instance's caps.
    """

    __slots__ = ("alive", "below", "last_tick", "offset", "rank", "request")

    request: int
    rank: Rank
    offset: int
    last_tick: int
    below: int
    alive: bool


class RunningBatch:
    """The sequences that an instance decodes together, over its attention ranks.

    rate: mean tokens that a step emits to each sequence. All emit the same number in a step: the fraction is
        accumulated from step to step, so the mean is exact.
    """

    def __init__(
        self,
        kv: KvRoom,
        occupancy: KvOccupancy,
        ranks: int,
        caps: tuple[int, ...],
        rate: float = 1.0,
        serial: Iterator[int] | None = None,
    ) -> None:
        self.caps = tuple(sorted(caps))
        # The latency model names its caps in its own order; `load` answers in that order.
        self._order = [self.caps.index(cap) for cap in caps]
        self._kv = kv
        self._occupancy = occupancy
        self._renew(ranks)
        self.size = 0
        self.tick = 0
        self._rate = rate
        self._fraction = 0.0
        self._emissions = 0  # steps, counted where ticks do not tell
        self._serial = serial or itertools.count()  # breaks ties in the heaps by order of joining
        self._ends: list[tuple[int, int, Sequence]] = []
        self._crossings: list[tuple[int, int, Sequence]] = []
        self.due = NEVER  # no sequence ends or crosses a cap before this tick

    @property
    def is_even(self) -> bool:
        """Whether each step emits one token to each sequence."""
        return self._rate == 1.0

    @property
    def steps(self) -> int:
        """Decode steps so far."""
        return self.tick if self.is_even else self._emissions

    def _renew(self, count: int) -> None:
        """Begin with `count` empty ranks; `only` is the one, where there is no other."""
        nothing = [0] * len(self.caps)
        self.ranks = [Rank(i, self._kv, self._occupancy, [*nothing], [*nothing]) for i in range(count)]
        self.only = self.ranks[0] if count == 1 else None

    def join(self, request: int, rank: Rank, context: int, remaining: int) -> None:
        """Start decoding a sequence whose `context` tokens the rank holds and that has `remaining` tokens to emit."""
        tick = self.tick
        offset = context - tick
        last_tick = tick + remaining
        below = 0
        if self.caps:
            for i, cap in enumerate(self.caps):
                if context < cap:
                    rank.growing[i] += 1
                    rank.capped_fixed[i] += offset
                    below += 1
                else:
                    rank.capped_fixed[i] += cap
        sequence = new(Sequence)  # Sequence(...) in two thirds of the time
        sequence.request = request
        sequence.rank = rank
        sequence.offset = offset
        sequence.last_tick = last_tick
        sequence.below = below
        sequence.alive = True
        rank.start_decoding(context)
        rank.size += 1
        rank.offsets += offset
        self.size += 1
        heappush(self._ends, (last_tick, next(self._serial), sequence))
        if last_tick < self.due:
            self.due = last_tick
        if below:
            self._expect_crossing(sequence)

    def _expect_crossing(self, sequence: Sequence) -> None:
        """Note the tick at which the sequence reaches its next cap, if it lives that long."""
        tick = self.caps[-sequence.below] - sequence.offset
        if tick < sequence.last_tick:
            heappush(self._crossings, (tick, next(self._serial), sequence))
            if tick < self.due:
                self.due = tick

    def _drop(self, sequence: Sequence) -> None:
        """Take a sequence out of every sum."""
        rank = sequence.rank
        offset = sequence.offset
        rank.size -= 1
        rank.offsets -= offset
        self.size -= 1
        self._occupancy.go(offset + self.tick)
        sequence.alive = False
        if not self.caps:
            return
        reached = len(self.caps) - sequence.below
        for i, cap in enumerate(self.caps):
            if i < reached:
                rank.capped_fixed[i] -= cap
            else:
                rank.growing[i] -= 1
                rank.capped_fixed[i] -= offset

    def emit(self) -> list[Sequence]:
        """One decode step; returns the sequences that are complete, already dropped."""
        if self._rate != 1.0:
            self._emissions += 1
            self._fraction += self._rate
            tokens = int(self._fraction)
            self._fraction -= tokens
            return self.advance(tokens)
        return self.advance(1)

    def advance(self, tokens: int) -> list[Sequence]:
        """Every running sequence emits `tokens`; returns those that are complete, already dropped.

        A sequence with fewer tokens left than `tokens` emits only those.
        """
        self.lengthen(tokens)
        return self.reach(self.tick) if self.tick >= self.due else []

    def lengthen(self, tokens: int) -> None:
        """Every running sequence emits `tokens`; what is due by then has yet to happen."""
        self._occupancy.grow(self.size * tokens)
        self.tick += tokens

    def reach(self, tick: int) -> list[Sequence]:
        """Let happen what is due by a tick; returns the sequences that end, dropped."""
        crossings = self._crossings
        while crossings and crossings[0][0] <= tick:
            sequence = heappop(crossings)[2]
            if sequence.alive:
                i = len(self.caps) - sequence.below
                rank = sequence.rank
                rank.growing[i] -= 1
                rank.capped_fixed[i] += self.caps[i] - sequence.offset
                sequence.below -= 1
                if sequence.below:
                    self._expect_crossing(sequence)
        ends = self._ends
        ended = []
        due = NEVER
        while ends:
            due = ends[0][0]
            if due > tick:
                break
            due = NEVER
            sequence = heappop(ends)[2]
            if sequence.alive:
                self._drop(sequence)
                ended.append(sequence)
        if crossings and crossings[0][0] < due:
            due = crossings[0][0]
        self.due = due
        return ended

    def preempt(self, rank: Rank, priority: list[int] | None = None) -> tuple[int, int]:
        """Drop the newest sequence of `rank`. Returns its request and the tokens it still had to emit."""
        found = self.newest(rank, priority)
        assert found is not None
        sequence = found[2]
        self._drop(sequence)
        return sequence.request, sequence.last_tick - self.tick

    def newest(self, rank: Rank, priority: list[int] | None = None) -> tuple[int, int, Sequence] | None:
        """The sequence of `rank` that joined last, of the lowest priority where requests have any.

        Its priority negated comes first, its serial number second. Scans the batch: preemption is rare beside steps.
        """
        return max(
            (
                (-priority[sequence.request] if priority else 0, serial, sequence)
                for _, serial, sequence in self._ends
                if sequence.alive and sequence.rank is rank
            ),
            default=None,
        )

    def drop(self) -> list[tuple[int, int]]:
        """Drop every sequence and start with new ranks. Returns requests and the tokens that they still had to emit."""
        dropped = [(s.request, s.last_tick - self.tick) for _, _, s in sorted(self._ends) if s.alive]
        self._occupancy.clear(self.used_bytes)
        self._renew(len(self.ranks))
        self.size = 0
        self._ends.clear()
        self._crossings.clear()
        self.due = NEVER
        return dropped

    @property
    def used_bytes(self) -> float:
        """KV held or reserved, over all ranks. [B of one accelerator]"""
        tick = self.tick
        return sum([rank.used_bytes(tick) for rank in self.ranks])

    def load(self) -> DecodeLoad:
        """The load of the busiest rank, which is the one with the largest summed context."""
        tick = self.tick
        rank = self.only
        if rank is None:
            rank = max(self.ranks, key=lambda rank: rank.offsets + rank.size * tick)
        size = rank.size
        capped: tuple[int, ...] = ()
        if self._order:
            fixed, growing = rank.capped_fixed, rank.growing
            capped = tuple([fixed[i] + growing[i] * tick for i in self._order])
        # DecodeLoad(...) in half the time
        return tuple.__new__(DecodeLoad, (size, rank.offsets + size * tick, capped, self.size))

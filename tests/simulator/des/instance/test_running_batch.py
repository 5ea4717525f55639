"""The O(1) sums against the plain way: a list of sequences, summed anew."""

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.des.instance.kv_room import KvOccupancy, KvRoom
from simulator.des.instance.paced_batch import PacedBatch
from simulator.des.instance.running_batch import Rank, RunningBatch
from simulator.des.primitives.clock import Environment

KV = KvRoom(1e9, 1.0, 10.0)
CAPS = (40, 8, 128)  # in the order of a latency model that does not sort them


class PlainBatch:
    """[request, rank, context, tokens left] of each running sequence, newest last."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self.rows: list[list[int]] = []

    def of(self, rank: int) -> list[list[int]]:
        return [row for row in self.rows if row[1] == rank]

    def advance(self, tokens: int) -> list[int]:
        for row in self.rows:
            row[2] += tokens
            row[3] -= tokens
        ended = sorted(row[0] for row in self.rows if row[3] <= 0)
        self.rows = [row for row in self.rows if row[3] > 0]
        return ended

    def load(self) -> tuple[int, int, tuple[int, ...], int]:
        contexts = [[row[2] for row in self.of(rank)] for rank in range(self.ranks)]
        busiest = max(range(self.ranks), key=lambda rank: sum(contexts[rank]))
        its = contexts[busiest]
        return len(its), sum(its), tuple(sum(min(c, cap) for c in its) for cap in CAPS), len(self.rows)


action = st.one_of(
    st.tuples(st.just("join"), st.integers(0, 2), st.integers(1, 150), st.integers(1, 60)),
    st.tuples(st.just("advance"), st.integers(1, 3)),
    st.tuples(st.just("advance"), st.integers(1, 3)),
    st.tuples(st.just("preempt"), st.integers(0, 2)),
)


@settings(max_examples=300)
@given(st.lists(action, max_size=60))
def test_running_sums_equal_sums_over_a_list(actions: list[Any]) -> None:
    batch = RunningBatch(KV, KvOccupancy(Environment(), KV), 3, CAPS)
    plain = PlainBatch(3)
    for number, (name, *values) in enumerate(actions):
        if name == "join":
            rank, context, remaining = values
            batch.ranks[rank].hold(context)
            batch.join(number, batch.ranks[rank], context, remaining)
            plain.rows.append([number, rank, context, remaining])
        elif name == "advance":
            ended = batch.advance(values[0])
            assert sorted(sequence.request for sequence in ended) == plain.advance(values[0])
        elif plain.of(values[0]):
            newest = plain.of(values[0])[-1]
            plain.rows.remove(newest)
            assert batch.preempt(batch.ranks[values[0]]) == (newest[0], newest[3])
        assert tuple(batch.load()) == plain.load()
        for rank in batch.ranks:
            rows = plain.of(rank.index)
            assert rank.size == len(rows)
            assert rank.used_bytes(batch.tick) == 10.0 * len(rows) + sum(row[2] for row in rows)
    plain.rows.clear()
    batch.advance(1000)
    assert all(rank.offsets == 0 and not any(rank.capped_fixed + rank.growing) for rank in batch.ranks)


@settings(max_examples=150)
@given(st.lists(action, max_size=60), st.lists(st.integers(0, 2), min_size=60, max_size=60))
def test_sums_over_paces_equal_sums_over_a_list(actions: list[Any], pace_of: list[int]) -> None:
    rates = (1.0, 2.0, 5.0)
    batch = PacedBatch(KV, KvOccupancy(Environment(), KV), 3, CAPS, rates, pace_of)
    plain = PlainBatch(3)
    for number, (name, *values) in enumerate(actions):
        if name == "join":
            rank, context, remaining = values
            batch.ranks[rank].hold(context)
            batch.join(number, batch.ranks[rank], context, remaining)
            plain.rows.append([number, rank, context, remaining])
        elif name == "advance":
            gone = []
            for pace, rate in enumerate(rates):
                own = PlainBatch(3)
                own.rows = [row for row in plain.rows if pace_of[row[0]] == pace]
                gone += own.advance(int(rate))
            plain.rows = [row for row in plain.rows if row[0] not in gone]
            assert sorted(sequence.request for sequence in batch.emit()) == sorted(gone)
        elif plain.of(values[0]):
            newest = plain.of(values[0])[-1]
            plain.rows.remove(newest)
            assert batch.preempt(batch.ranks[values[0]]) == (newest[0], newest[3])
        assert tuple(batch.load()) == plain.load()
        for rank in batch.ranks:
            rows = plain.of(rank.index)
            assert rank.size == len(rows)
            assert rank.used_bytes(batch.tick) == 10.0 * len(rows) + sum(row[2] for row in rows)
    assert sorted(batch.drop()) == sorted((row[0], row[3]) for row in plain.rows)
    assert batch.load() == (0, 0, (0, 0, 0), 0)


@dataclass
class Watch:
    now: float = 0.0


@settings(max_examples=100)
@given(st.lists(action, max_size=60), st.booleans())
def test_kv_is_counted_for_as_long_as_it_is_there(actions: list[Any], paced: bool) -> None:
    """Against the plain integral: what is there times how long, from one moment to the next."""
    watch = Watch()
    occupancy = KvOccupancy(watch, KV)
    batch = (
        PacedBatch(KV, occupancy, 3, CAPS, (1.0, 2.0), [0, 1] * 30)
        if paced
        else RunningBatch(KV, occupancy, 3, CAPS, 1.5)
    )
    integral = 0.0
    for number, (name, *values) in enumerate([*actions, ("drop",)]):
        integral += batch.used_bytes * 0.25
        watch.now += 0.25
        if name == "join":
            rank, context, remaining = values
            batch.ranks[rank].hold(context)
            batch.ranks[rank].hold(7)  # of another that is in transfer
            batch.join(number, batch.ranks[rank], context, remaining)
        elif name == "advance":
            batch.emit()
        elif name == "drop":
            batch.drop()
            assert batch.used_bytes == 0.0
        elif batch.newest(batch.ranks[values[0]]) is not None:
            batch.preempt(batch.ranks[values[0]])
            batch.ranks[values[0]].release(7)
        assert occupancy.until_now(batch.used_bytes) == pytest.approx(integral)


def test_an_empty_rank_takes_what_fits_and_a_used_one_keeps_room_to_grow() -> None:
    kv = KvRoom(capacity_bytes=1000.0, bytes_per_token=1.0)
    rank = Rank(0, kv, KvOccupancy(Environment(), kv), [], [])
    assert rank.admits(1000, 0, kv.room())
    assert not rank.admits(1001, 0, kv.room())
    rank.hold(500)
    assert rank.admits(490, 0, kv.room())
    assert not rank.admits(491, 0, kv.room())
    assert rank.admits(400, 0, kv.room(headroom=0.1))
    assert not rank.admits(401, 0, kv.room(headroom=0.1))
    assert kv.fits(2, 1000)

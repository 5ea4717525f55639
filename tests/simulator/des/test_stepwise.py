"""Shortcuts equal stepwise simulation: a plain simulator that touches every sequence in every step is the oracle.

The cluster keeps sums over running sequences, heaps of ends and one tick for all; here each sequence is a row with its
own counters, sums are taken anew in each step, and events are looked for by asking everyone. Slow and obvious.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.clusters import FormulaTimes, colocated, disaggregated, make_instance, play

from simulator.scenario import FirstToken, Transfer


@dataclass
class Row:
    """One request, wherever it is."""

    prompt: int
    output: int
    arrival_s: float
    emitted: int = 0
    computed: int = 0  # tokens of the prompt under way
    target: int = 0  # its length: the prompt and what had been emitted before a preemption
    rank: int = 0
    start_s: float = inf
    prompt_end_s: float = inf
    first_s: float = inf
    delivered_s: float = inf
    finish_s: float = inf
    preemptions: int = 0

    @property
    def context(self) -> int:
        return self.prompt + self.emitted


@dataclass
class Plain:
    """One instance; `spec` gives limits and prices only. Lists are in order of joining."""

    spec: Any
    hands_over: bool = False
    sends_first: bool = False  # the token that clients see first
    waiting: list[Row] = field(default_factory=list)
    preempted: list[Row] = field(default_factory=list)
    prefilling: list[Row] = field(default_factory=list)
    running: list[Row] = field(default_factory=list)
    held: list[tuple[int, Row]] = field(default_factory=list)  # by rank: KV that leaves from, or is to come to here
    arrived: list[Row] = field(default_factory=list)  # of those, whose KV has come since the step began
    chunks: list[tuple[Row, int]] = field(default_factory=list)
    decodes: bool = False
    step_end_s: float = inf
    fraction: float = 0.0

    def kv_of(self, rank: int) -> list[int]:
        """Tokens of each sequence that holds KV on a rank."""
        tokens = [row.target + 1 for row in self.prefilling if row.rank == rank]
        tokens += [row.context for row in self.running if row.rank == rank]
        return tokens + [row.context for there, row in self.held if there == rank]

    def used_bytes(self, tokens: list[int]) -> float:
        kv = self.spec.kv
        return sum(kv.bytes_per_sequence + kv.bytes_per_token * t for t in tokens)

    def admits(self, rank: int, tokens: int) -> bool:
        there = [*self.kv_of(rank), tokens]
        share = 1.0 if len(there) == 1 else 0.99
        return self.used_bytes(there) <= self.spec.kv.capacity_bytes * share

    @property
    def count(self) -> int:
        return len(self.prefilling) + len(self.running) + (0 if self.hands_over else len(self.held))

    @property
    def share(self) -> float:
        return self.spec.long_prefill_token_threshold or inf

    def takes_long(self, rank: int) -> bool:
        """Whether fewer prompts than allowed are under way on a rank with more left than their share of a step."""
        long = [row for row in self.prefilling if row.rank == rank and row.target - row.computed > self.share]
        return len(long) < (self.spec.max_long_partial_prefills or inf)

    def place(self, row: Row) -> bool:
        """Promise room to a prefilled sequence, on the rank with fewest sequences, then least KV."""
        ranks = [r for r in range(self.spec.ranks) if self.admits(r, row.context)]
        if self.preempted or not ranks or self.count >= self.spec.max_sequences:
            return False
        rank = min(ranks, key=lambda r: (len(self.kv_of(r)), self.used_bytes(self.kv_of(r))))
        self.held.append((rank, row))
        return True

    def let_go(self, row: Row) -> int:
        """Free what was held for a sequence; returns its rank."""
        (entry,) = [entry for entry in self.held if entry[1] is row]
        self.held.remove(entry)
        return entry[0]

    def start(self, now: float) -> None:
        """Plan a step and set its end; stays idle where there is nothing to do."""
        spec = self.spec
        for row in self.arrived:
            row.rank = self.let_go(row)
            self.running.append(row)
        self.arrived = []
        left = [spec.max_tokens_per_step for _ in range(spec.ranks)]
        if spec.batching != "prefill_first":
            for row in self.running:
                left[row.rank] -= 1 + spec.draft_tokens
        self.chunks = []
        for row in sorted(self.prefilling, key=lambda row: row.rank):
            new = min(left[row.rank], row.target - row.computed, self.share)
            if new > 0:
                self.chunks.append((row, new))
                left[row.rank] -= new
        for queue in (self.preempted, self.waiting):
            if not self.admit_from(queue, left, now):
                break
        self.decodes = bool(self.running) and not (self.chunks and spec.batching == "prefill_first")
        if self.chunks or self.running:
            self.step_end_s = now + self.duration()

    def admit_from(self, queue: list[Row], left: list[int], now: float) -> bool:
        """Admit in order until one finds no place; whether all did."""
        spec = self.spec
        while queue:
            open_ranks = [r for r in range(spec.ranks) if self.takes_long(r)]
            passing = [row for row in queue if open_ranks or row.context <= self.share]
            if not passing:
                return False
            row = passing[0]
            ranks = [r for r in range(spec.ranks) if left[r] > 0 and self.admits(r, row.context + 1)]
            if row.context > self.share:
                ranks = [r for r in ranks if r in open_ranks]
            if self.count >= spec.max_sequences or not ranks:
                return False
            rank = max(ranks, key=lambda r: (left[r], -len(self.kv_of(r))))
            if spec.batching == "inflight":
                if left[rank] < row.context and any(other.rank == rank for other in self.prefilling):
                    return False
                left[rank] = max(left[rank], row.context)
            queue.remove(row)
            row.rank, row.computed, row.target = rank, 0, row.context
            if not row.preemptions:
                row.start_s = now
            self.prefilling.append(row)
            new = min(left[rank], row.target, self.share)
            self.chunks.append((row, new))
            left[rank] -= new
        return True

    def duration(self) -> float:
        """FormulaTimes written out: the rank with most new tokens, and the rank with the longest contexts."""
        times = self.spec.times
        seconds = 0.0
        if self.chunks:
            seconds += times.per_prompt_token_s * max(
                sum(new for row, new in self.chunks if row.rank == rank) for rank in range(self.spec.ranks)
            )
        if self.decodes:
            contexts = [[row.context for row in self.running if row.rank == rank] for rank in range(self.spec.ranks)]
            longest = max(contexts, key=sum)
            capped = sum(min(context, cap) for context in longest for cap in times.caps)
            seconds += times.decode_base_s + times.per_sequence_s * len(self.running)
            seconds += times.per_context_s * (sum(longest) + capped)
        return seconds

    def finish(self, now: float) -> list[Row]:
        """End the step; returns the prefilled sequences that leave for another instance."""
        self.step_end_s = inf
        if self.decodes:
            self.fraction += self.spec.acceptance_length
            tokens = int(self.fraction)
            self.fraction -= tokens
            for row in list(self.running):
                if row.first_s == row.prompt_end_s and self.sends_first:
                    row.first_s = now
                row.emitted = min(row.output, row.emitted + tokens)
                if row.emitted == row.output:
                    row.finish_s = now
                    self.running.remove(row)
        leaving = []
        for row, new in self.chunks:
            row.computed += new
            if row.computed < row.target:
                continue
            self.prefilling.remove(row)
            if not row.emitted:
                row.prompt_end_s = row.first_s = now
            row.emitted += 1
            if row.emitted == row.output:
                row.finish_s = now
            elif self.hands_over:
                self.held.append((row.rank, row))
                leaving.append(row)
            else:
                self.running.append(row)
        for rank in range(self.spec.ranks):
            while self.used_bytes(self.kv_of(rank)) > self.spec.kv.capacity_bytes:
                group = self.prefilling if any(row.rank == rank for row in self.prefilling) else self.running
                victim = [row for row in group if row.rank == rank][-1]
                group.remove(victim)
                victim.preemptions += 1
                self.preempted.insert(0, victim)
        return leaving


def step_through(entry: Any, decode: Any, handshake_s: float, rows: list[Row], sender: str = "prefill") -> None:
    """Play all rows on one entry instance and, where given, one decode instance; transfers take the handshake.

    sender: the instance whose token clients see first."""
    first = Plain(entry, hands_over=decode is not None)
    plains = [first] if decode is None else [first, Plain(decode, sends_first=sender == "decode")]
    coming = list(rows)
    offered: list[Row] = []
    on_wire: list[tuple[float, Row]] = []
    now = 0.0
    while True:
        times = [coming[0].arrival_s if coming else inf, on_wire[0][0] if on_wire else inf]
        times += [plain.step_end_s for plain in plains]
        if min(times) > now:  # all that happens now has happened
            idle = [plain for plain in plains if plain.step_end_s == inf]
            for plain in idle:
                plain.start(now)
            times[2:] = [plain.step_end_s for plain in plains]
            now = min(times)
            if now == inf:
                return
        event = times.index(now)
        if event == 0:
            first.waiting.append(coming.pop(0))
        elif event == 1:
            _, row = on_wire.pop(0)
            row.delivered_s = now
            first.let_go(row)
            plains[1].arrived.append(row)
        else:
            leaving = plains[event - 2].finish(now)
            offered += leaving
            # room is looked for at the ends of decode steps and as prompts come over
            while (leaving or event == 3) and offered and plains[1].place(offered[0]):
                row = offered.pop(0)
                on_wire.append((now + handshake_s, row))


@st.composite
def limits(draw: st.DrawFn) -> dict[str, Any]:
    drafts = draw(st.integers(0, 3))
    batching = draw(st.sampled_from(["chunked", "prefill_first", "inflight"]))
    share = draw(st.sampled_from([None, 5, 40])) if batching == "chunked" else None
    return {
        "ranks": draw(st.integers(1, 3)),
        "max_tokens_per_step": draw(st.sampled_from([16, 64, 512])),
        "max_sequences": draw(st.sampled_from([1, 3, 8, 50])),
        "draft_tokens": drafts,
        "acceptance_length": 1 + drafts * draw(st.floats(0, 1)),
        "batching": batching,
        "long_prefill_token_threshold": share,
        "max_long_partial_prefills": draw(st.sampled_from([None, 1, 2])) if share else None,
    }


@given(
    first=limits(),
    second=limits() | st.none(),
    tightness=st.tuples(st.floats(1, 6), st.floats(1, 6)),
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 40),
    gap_s=st.sampled_from([0.01, 0.1, 0.5]),
    handshake_s=st.sampled_from([0.00137, 0.0731]),
    sender=st.sampled_from(["prefill", "decode"]),
)
def test_the_cluster_equals_stepping_every_sequence(
    first: dict[str, Any],
    second: dict[str, Any] | None,
    tightness: tuple[float, float],
    seed: int,
    count: int,
    gap_s: float,
    handshake_s: float,
    sender: FirstToken,
) -> None:
    """Any policy, ranks, drafts, and KV room from just enough for the longest sequence to six times that."""
    rng = np.random.default_rng(seed)
    rows = [
        Row(int(prompt), int(output), float(arrival))
        for prompt, output, arrival in zip(
            rng.integers(1, 150, count),
            rng.integers(1, 60, count),
            np.cumsum(rng.exponential(gap_s, count)),
            strict=True,
        )
    ]
    longest = max(row.prompt + row.output for row in rows)
    cost = FormulaTimes(1e-3, 0.011, 1.7e-4, 1.3e-6, caps=(64, 16))

    def sized(keys: dict[str, Any], room: float) -> Any:
        return make_instance(cost, capacity=room * longest, **keys)

    entry = sized(first, tightness[0])
    decode = None if second is None else sized(second, tightness[1])
    link = Transfer(efficiency=1.0, handshake_s=handshake_s)
    spec = colocated(entry) if decode is None else disaggregated(entry, decode, transfer=link, first_token=sender)
    result = play(spec, *zip(*((row.prompt, row.output, row.arrival_s) for row in rows), strict=True))
    step_through(entry, decode, handshake_s, rows, sender)
    table = result.requests
    for column, expected in [
        ("prompt_end_s", [row.prompt_end_s for row in rows]),
        ("first_token_s", [row.first_s for row in rows]),
        ("finish_s", [row.finish_s for row in rows]),
        ("queue_s", [row.start_s - row.arrival_s for row in rows]),
    ]:
        np.testing.assert_allclose(table[column], expected, rtol=1e-9, atol=1e-9)
    assert table["preemptions"].tolist() == [row.preemptions for row in rows]
    handed = [row.delivered_s - row.prompt_end_s if row.delivered_s < inf else np.nan for row in rows]
    np.testing.assert_allclose(table["transfer_s"], handed, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_a_busy_instance_equals_stepping_every_sequence(seed: int) -> None:
    """Hundreds of requests through one instance, with preemption."""
    rng = np.random.default_rng(seed)
    count = 250
    rows = [
        Row(int(prompt), int(output), float(arrival))
        for prompt, output, arrival in zip(
            rng.integers(1, 700, count),
            rng.integers(1, 90, count),
            np.cumsum(rng.exponential(0.05, count)),
            strict=True,
        )
    ]
    cost = FormulaTimes(1e-4, 0.005, 1e-4, 1e-7, caps=(128, 400))
    entry = make_instance(cost, capacity=3000.0, max_tokens_per_step=256, max_sequences=20)
    result = play(colocated(entry), *zip(*((row.prompt, row.output, row.arrival_s) for row in rows), strict=True))
    step_through(entry, None, 0.0, rows)
    assert sum(row.preemptions for row in rows) > 0
    np.testing.assert_allclose(result.requests["first_token_s"], [row.first_s for row in rows], rtol=1e-9)
    np.testing.assert_allclose(result.finish_s, [row.finish_s for row in rows], rtol=1e-9)
    assert result.requests["preemptions"].tolist() == [row.preemptions for row in rows]

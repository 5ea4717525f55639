"""One serving instance: continuous batching under a token budget, as a SimPy process with one timeout a step.

What a step holds is the batching policy, first come first served in each:
  chunked: decodes every running sequence and fills what is left of each rank's token budget with prompt chunks
    (vLLM V1).
  prefill_first: while there are prompts, steps hold prompt chunks alone and running sequences wait (SGLang).
  inflight: as chunked, but prompts are computed whole; one longer than the budget is the only prompt of its rank's
    step (TensorRT-LLM without chunked context).
Where KV grows beyond a rank's room, the newest sequence is preempted: its KV
is dropped and recomputed, on the same instance, before newcomers are admitted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import simpy

from simulator.des.batching import Prefilling, Rank, RunningBatch
from simulator.des.journal import Journal, Usage
from simulator.des.prefix_cache import BLOCK_TOKENS, PrefixCache
from simulator.des.spec import InstanceSpec
from simulator.model.latency import Chunk


class Handover(NamedTuple):
    """A prefilled sequence whose KV waits on `rank` of `source` for a decode instance to take it."""

    request: int
    source: Instance
    rank: Rank
    tokens: int


class Instance:
    """Takes requests by `enqueue` (prompts to compute) or `offer` (KV to fetch) and reports their end.

    ended: called with each request that has emitted its last token.
    hand_over: called with each prefilled sequence that still has tokens to emit; None where it decodes here.
    fetch: starts a KV transfer to a rank of this instance; `deliver` is called when it is done.
    observe: called at each step's end with the instance, the step's start, its prompt tokens and decoded sequences.
    """

    def __init__(
        self,
        env: simpy.Environment,
        index: int,
        spec: InstanceSpec,
        journal: Journal,
        waiting: deque[int],
        ended: Callable[[int], None],
        hand_over: Callable[[Handover], None] | None = None,
        fetch: Callable[[Handover, Instance, Rank], None] | None = None,
        observe: Callable[[Instance, float, int, int], None] | None = None,
    ) -> None:
        self.env = env
        self.index = index
        self.spec = spec
        self.journal = journal
        self.batch = RunningBatch(spec.kv, spec.ranks, spec.times.caps)
        self.waiting = waiting  # prompts to compute; may be shared with the other instances of the pool
        self.load = 0  # prompt tokens to compute (prefill), or requests under way (elsewhere): what routers look at
        self.cache = PrefixCache(spec.cache_tiers, spec.cache_policy) if spec.cache_tiers else None
        self._cache_load_s = 0.0  # of prompts admitted to the step under way
        self._recompute: deque[int] = deque()  # preempted sequences; they go before `waiting`
        self._incoming: deque[Handover] = deque()
        self._delivered: list[tuple[Handover, Rank]] = []
        self._ended = ended
        self._hand_over = hand_over
        self._fetch = fetch
        self._observe = observe
        self._sequences = 0
        self._prefilling = 0
        self._fraction = 0.0
        self._wake: simpy.Event | None = None
        self._step_start_s = 0.0
        self._in_step = False
        self._mixes = spec.batching != "prefill_first"
        self._whole = spec.batching == "inflight"
        self._decodes = False  # the step under way decodes
        self._busy_s = self._prefill_busy_s = self._sequence_s = self._kv_byte_s = 0.0
        self._link_s = 0.0
        self._wires: dict[int, tuple[float, float]] = {}  # transfers under way: when the wire is taken, how long
        self._steps = 0
        self._kv_bytes = 0.0
        self._kv_mark_s = 0.0
        self.process = env.process(self._run())

    # Requests come in

    def enqueue(self, request: int) -> None:
        """Put a request at the end of the queue of prompts."""
        self.load += self._weight(request)
        self.waiting.append(request)
        self.kick()

    @property
    def has_place(self) -> bool:
        """Whether a request that comes now need not queue behind others."""
        return not (self.waiting or self._recompute) and self._sequences < self.spec.max_sequences

    def _weight(self, request: int) -> int:
        return 1 if self._hand_over is None else self.journal.prompt_tokens[request]

    def hit_share(self, request: int) -> float:
        """Part of the request's prompt that is in the prefix cache now."""
        journal = self.journal
        if self.cache is None or journal.blocks is None:
            return 0.0
        tokens = journal.prompt_tokens[request]
        return min(1.0, self.cache.peek(journal.blocks[request]) * BLOCK_TOKENS / tokens)

    def offer(self, handover: Handover) -> None:
        """Queue a prefilled sequence; its KV is fetched once there is room."""
        self.load += 1
        self._incoming.append(handover)
        self._accept()

    def deliver(self, handover: Handover, rank: Rank) -> None:
        """The KV has arrived; decoding starts with the next step."""
        self._delivered.append((handover, rank))
        self.kick()

    def take_wire(self, request: int, start_s: float, wire_s: float) -> None:
        """A transfer holds the NICs of one of the ranks for `wire_s` from `start_s` on."""
        self._wires[request] = start_s, wire_s

    def free_wire(self, request: int) -> None:
        self._link_s += self._wires.pop(request)[1]

    def kick(self) -> None:
        """Wake the process if it idles."""
        wake = self._wake
        if wake is not None and not wake.triggered:
            wake.succeed()

    def _accept(self) -> None:
        """Reserve room for prefilled sequences and fetch their KV, in order of arrival."""
        incoming = self._incoming
        while incoming and not self._recompute and self._sequences < self.spec.max_sequences:
            handover = incoming[0]
            tick = self.batch.tick
            ranks = self.batch.ranks
            rank = ranks[0]
            if len(ranks) == 1:
                if not rank.admits(handover.tokens, tick):
                    return
            else:
                open_ranks = [rank for rank in ranks if rank.admits(handover.tokens, tick)]
                if not open_ranks:
                    return
                rank = min(open_ranks, key=lambda r: (r.size + r.held_sequences, r.used_bytes(tick)))
            incoming.popleft()
            rank.hold(handover.tokens)
            self._sequences += 1
            assert self._fetch is not None
            self._fetch(handover, self, rank)

    # The step

    def _run(self) -> Generator[simpy.Event, Any, None]:
        env = self.env
        batch = self.batch
        times = self.spec.times
        while True:
            if self._delivered:
                self._join_delivered()
            chunks = self._schedule() if self.waiting or self._recompute or self._prefilling else []
            size = batch.size
            if chunks:
                self._decodes = decodes = size > 0 and self._mixes
                duration, prefill_share_s = self._price(chunks)
            elif size:
                self._decodes = decodes = True
                duration, prefill_share_s = times.decode_s(batch.load()), 0.0
            else:
                self._wake = env.event()
                yield self._wake
                self._wake = None
                continue
            self._in_step = True
            self._step_start_s = env.now
            yield env.timeout(duration)
            self._in_step = False
            self._steps += 1
            self._busy_s += duration
            self._prefill_busy_s += prefill_share_s
            self._sequence_s += size * duration
            if decodes:
                self._emit()
            for rank, prompt, new in chunks:
                self._progress(rank, prompt, new)
            self._settle_kv()
            if self._incoming:
                self._accept()
            if self._observe is not None:
                self._observe(self, self._step_start_s, sum(new for _, _, new in chunks), size if decodes else 0)

    @property
    def waiting_count(self) -> int:
        """Prompts not begun, and prefilled sequences that wait for room."""
        return len(self.waiting) + len(self._recompute) + len(self._incoming)

    @property
    def kv_bytes(self) -> float:
        """KV held, over all ranks, as it stood at the last step's end. [B of one accelerator]"""
        return self._kv_bytes

    def _join_delivered(self) -> None:
        journal = self.journal
        for handover, rank in self._delivered:
            request = handover.request
            rank.release(handover.tokens)
            self.batch.join(request, rank, handover.tokens, journal.output_tokens[request] - journal.emitted[request])
        self._delivered.clear()

    def _schedule(self) -> list[tuple[Rank, Prefilling, int]]:
        """The prompt chunks of this step: prompts under way first, then newcomers while budget and room last."""
        spec = self.spec
        per_sequence = 1 + spec.draft_tokens
        chunks: list[tuple[Rank, Prefilling, int]] = []
        budgets = []
        for rank in self.batch.ranks:
            left = spec.max_tokens_per_step
            if self._mixes:
                left -= rank.size * per_sequence
            for prompt in rank.prefilling:
                if left <= 0:
                    break
                new = min(left, prompt.tokens - prompt.done)
                chunks.append((rank, prompt, new))
                left -= new
            budgets.append(left)
        for queue in (self._recompute, self.waiting):
            while queue:
                if self._sequences >= spec.max_sequences:
                    return chunks
                request = queue[0]
                tokens = self.journal.prompt_tokens[request] + self.journal.emitted[request]
                rank_or_none = self._rank_for(tokens + 1, budgets)
                if rank_or_none is None:
                    return chunks
                rank = rank_or_none
                if self._whole:
                    if budgets[rank.index] < tokens and rank.prefilling:
                        return chunks
                    budgets[rank.index] = max(budgets[rank.index], tokens)
                queue.popleft()
                prompt = self._admit(request, rank, tokens)
                new = min(budgets[rank.index], tokens - prompt.done)
                budgets[rank.index] -= new
                chunks.append((rank, prompt, new))
        return chunks

    def _rank_for(self, tokens: int, budgets: list[int]) -> Rank | None:
        """The rank with most of its budget left, then fewest sequences, among those with room for `tokens`."""
        tick = self.batch.tick
        found: Rank | None = None
        best = (0, 0)
        for rank in self.batch.ranks:
            left = budgets[rank.index]
            key = (left, -rank.size - rank.held_sequences)
            if left > 0 and (found is None or key > best) and rank.admits(tokens, tick):
                found, best = rank, key
        return found

    def _admit(self, request: int, rank: Rank, tokens: int) -> Prefilling:
        prompt = Prefilling(request, tokens)
        rank.prefilling.append(prompt)
        rank.hold(tokens + 1)
        self._sequences += 1
        self._prefilling += 1
        journal = self.journal
        if not journal.preemptions[request]:
            journal.prefill_start_s[request] = self.env.now
            journal.prefill_instance[request] = self.index
        if self.cache is not None and journal.blocks is not None:
            hit = self.cache.take(journal.blocks[request])
            prompt.done = self.cache.policy.resume(hit.blocks * BLOCK_TOKENS, journal.prompt_tokens[request])
            self._cache_load_s += hit.load_s
            journal.cached_tokens[request] += prompt.done
            if self._hand_over is not None:
                self.load -= prompt.done
        return prompt

    def _price(self, chunks: list[tuple[Rank, Prefilling, int]]) -> tuple[float, float]:
        """Seconds of a step with prompt chunks, and the part of them that prefill is charged with.

        The step takes as long as its busiest rank: most new tokens, then most query-key pairs. In a mixed step
        decode is charged with what it would take alone, prefill with the rest.
        """
        if len(chunks) == 1:
            _, prompt, total = chunks[0]
            busiest = [Chunk(total, prompt.done)]
        else:
            by_rank: dict[int, list[Chunk]] = {}
            total = 0
            for rank, prompt, new in chunks:
                by_rank.setdefault(rank.index, []).append(Chunk(new, prompt.done))
                total += new
            busiest = next(iter(by_rank.values())) if len(by_rank) == 1 else max(by_rank.values(), key=_work)
        times = self.spec.times
        loading_s, self._cache_load_s = self._cache_load_s, 0.0
        if not self._decodes:
            duration = times.prefill_s(busiest, total) + loading_s
            return duration, duration
        load = self.batch.load()
        duration = times.mixed_s(busiest, load, total) + loading_s
        return duration, max(0.0, duration - times.decode_s(load))

    def _emit(self) -> None:
        """Give every running sequence the tokens of this step and let the complete ones go."""
        acceptance = self.spec.acceptance_length
        tokens = 1
        if acceptance != 1.0:
            self._fraction += acceptance
            tokens = int(self._fraction)
            self._fraction -= tokens
        for sequence in self.batch.advance(tokens):
            self._end(sequence.request)

    def _end(self, request: int) -> None:
        self._sequences -= 1
        self.journal.emitted[request] = self.journal.output_tokens[request]
        if self._hand_over is None:
            self.load -= 1
            self.journal.decode_instance[request] = self.index
        self._ended(request)

    def _progress(self, rank: Rank, prompt: Prefilling, new: int) -> None:
        """Book a computed chunk; the end of a prompt emits a token."""
        prompt.done += new
        if self._hand_over is not None:
            self.load -= new
        if prompt.done < prompt.tokens:
            return
        finished = rank.prefilling.popleft()
        assert finished is prompt
        self._prefilling -= 1
        journal = self.journal
        request = prompt.request
        context = prompt.tokens + 1
        if self.cache is not None and journal.blocks is not None:
            self.cache.insert(journal.blocks[request])
        if not journal.emitted[request]:
            journal.first_token_s[request] = self.env.now
        journal.emitted[request] += 1
        remaining = journal.output_tokens[request] - journal.emitted[request]
        if not remaining:
            rank.release(context)
            self._end(request)
        elif self._hand_over is not None:
            self._sequences -= 1
            self._hand_over(Handover(request, self, rank, context))
        else:
            rank.release(context)
            self.batch.join(request, rank, context, remaining)

    def _settle_kv(self) -> None:
        """Preempt where KV has outgrown a rank, and integrate occupancy over time."""
        now = self.env.now
        self._kv_byte_s += self._kv_bytes * (now - self._kv_mark_s)
        self._kv_mark_s = now
        held = 0.0
        tick = self.batch.tick
        kv = self.spec.kv
        for rank in self.batch.ranks:
            size = rank.size
            # as Rank.used_bytes, without its calls: this runs once a step
            used = (size + rank.held_sequences) * kv.bytes_per_sequence + (
                rank.offsets + size * tick + rank.held_tokens
            ) * kv.bytes_per_token
            while used > kv.capacity_bytes:
                self._preempt(rank)
                used = rank.used_bytes(tick)
            held += used
        self._kv_bytes = held

    def _preempt(self, rank: Rank) -> None:
        """Drop the newest sequence of a rank, prompts under way first; it is recomputed from its start."""
        journal = self.journal
        if rank.prefilling:
            prompt = rank.prefilling.pop()
            rank.release(prompt.tokens + 1)
            self._prefilling -= 1
            request = prompt.request
        else:
            request, remaining = self.batch.preempt(rank)
            journal.emitted[request] = journal.output_tokens[request] - remaining
        self._sequences -= 1
        journal.preemptions[request] += 1
        self._recompute.appendleft(request)

    # What the books say

    def usage(self) -> Usage:
        """Integrals up to now; the step and the transfers under way count for the time that they have run."""
        now = self.env.now
        running = now - self._step_start_s if self._in_step else 0.0
        on_wire = sum(min(max(0.0, now - start), wire) for start, wire in self._wires.values())
        return Usage(
            self._busy_s + running,
            self._prefill_busy_s + (running if self._in_step and not self._decodes else 0.0),
            self._steps,
            self._sequence_s + running * self.batch.size,
            self._kv_byte_s + self._kv_bytes * (now - self._kv_mark_s),
            (self._link_s + on_wire) / self.spec.ranks,
        )

    @property
    def is_empty(self) -> bool:
        """No request and no KV left."""
        return (
            not (self.waiting or self._recompute or self._incoming or self._delivered)
            and self._sequences == self._prefilling == self.batch.size == 0
            and all(rank.held_sequences == rank.held_tokens == rank.offsets == 0 for rank in self.batch.ranks)
        )


def _work(chunks: list[Chunk]) -> tuple[int, int]:
    """New tokens, and twice the query-key pairs, of a rank's chunks."""
    return sum(c.new for c in chunks), sum(c.new * (2 * c.past + c.new) for c in chunks)

"""Which prompts and sequences one instance works on: admission, the chunks of a step, preemption.

What a step holds is the batching policy, in the order of the waiting queue in each:
  chunked: decodes every running sequence and fills what is left of each rank's token budget with prompt chunks
    (vLLM V1).
  prefill_first: while there are prompts, steps hold prompt chunks alone and running sequences wait (SGLang).
  inflight: as chunked, but prompts are computed whole; one longer than the budget is the only prompt of its rank's
    step (TensorRT-LLM without chunked context).
Under chunked, prompts may be kept from filling steps: none gets more than long_prefill_token_threshold tokens of one,
and on a rank no more than max_long_partial_prefills are under way that have more than that left; while so many are,
shorter ones pass the long ones in the queue (vLLM's options of these names).
Where KV grows beyond a rank's room, the newest sequence of the lowest priority is preempted: its KV
is dropped and recomputed, on the same instance, before newcomers are admitted.
Offline prompts come after all others in a step. They are admitted while no other prompt waits, and leave the headroom
of their workload free of each of: the step's tokens, the instance's sequences, the rank's KV room.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from simulator.des.instance.kv_room import KvOccupancy
from simulator.des.instance.paced_batch import PacedBatch
from simulator.des.instance.rank import Prompt, PromptChunk, Rank
from simulator.des.instance.running_batch import RunningBatch
from simulator.des.instance.spec import InstanceSpec
from simulator.des.primitives.clock import Clock
from simulator.des.primitives.queues import Queue
from simulator.des.records.request_log import RequestLog


@dataclass(frozen=True)
class PromptQueues:
    """Where an instance takes its prompts from.

    waiting: prompts to compute. is_shared: with the other instances of the pool.
    backlog: offline prompts, shared with all of the pool; None where no work is offline.
    fits: whether a request of a shared queue fits here until its end; None where every one does. One at its head that
        does not fit waits for an instance that can hold it, and those behind it with it.
    """

    waiting: Queue[int]
    is_shared: bool = False
    backlog: deque[int] | None = None
    fits: Callable[[int], bool] | None = None


class Scheduler:
    """Prompts and sequences of one instance.

    begin: called with each prompt as it is admitted, before its first chunk is cut, and whether it was routed here.
    preempted: called with each request whose KV was dropped to make room.
    """

    def __init__(
        self,
        clock: Clock,
        spec: InstanceSpec,
        log: RequestLog,
        queues: PromptQueues,
        begin: Callable[[Prompt, bool], None],
        preempted: Callable[[int], None],
    ) -> None:
        self.spec = spec
        self.log = log
        rates = spec.rates
        self.occupancy = occupancy = KvOccupancy(clock, spec.kv)
        self.batch = (
            RunningBatch(spec.kv, occupancy, spec.ranks, spec.times.caps, rates[0])
            if len(rates) == 1
            else PacedBatch(spec.kv, occupancy, spec.ranks, spec.times.caps, rates, log.pace)
        )
        self.capacity = spec.kv.capacity_bytes
        self._room, self._offline_room = spec.kv.room(), spec.kv.room(log.headroom)
        self.waiting = queues.waiting
        self.backlog = queues.backlog
        self.recompute: deque[int] = deque()  # preempted sequences; they go before `waiting`
        self.set_aside: deque[int] = deque()  # preempted offline sequences; they go before `backlog`
        self.admits = True  # whether newcomers are taken from `waiting`
        self.sequences = 0  # in prefill, in transfer to the instance or running
        self.prefilling = 0  # prompts under way
        self.mixes = spec.batching != "prefill_first"
        self._budget = spec.max_tokens_per_step  # of one rank in a step
        self._rows = 1 + spec.draft_tokens  # of it, for each running sequence
        self._most = spec.max_sequences
        self._whole = spec.batching == "inflight"
        self._most_offline = max(1, round(spec.max_sequences * (1 - log.headroom)))
        self._most_new = spec.long_prefill_token_threshold or sys.maxsize  # of one prompt in a step
        self._most_long = spec.max_long_partial_prefills
        self._begin = begin
        self._preempted = preempted
        self._fits = queues.fits

    @property
    def has_prompts(self) -> bool:
        """Whether there is any prompt to compute, begun or not."""
        if self.waiting or self.prefilling or self.recompute:
            return True
        return self.backlog is not None and bool(self.backlog or self.set_aside)

    def admit_newcomers(self, admits: bool) -> None:
        """Take prompts from the queues from now on, or none that has not begun."""
        self.admits = admits

    def chunks(self) -> list[PromptChunk]:
        """The prompt chunks of the next step: prompts under way first, then newcomers while budget and room last."""
        chunks: list[PromptChunk] = []
        for rank in self.batch.ranks:
            left = self._budget
            if self.mixes:
                left -= rank.size * self._rows
            for prompt in rank.prefilling:
                if left <= 0:
                    break
                if prompt.offline:
                    continue
                new = min(left, prompt.tokens - prompt.done, self._most_new)
                chunks.append((rank, prompt, new))
                left -= new
            rank.left = left
        all_in = not self.recompute or self._take(self.recompute, chunks)
        if all_in and self.waiting and self.admits:
            all_in = self._take(self.waiting, chunks)
        if self.backlog is not None:
            self._fill(chunks, all_in)
        return chunks

    def _take(self, queue: Queue[int], chunks: list[PromptChunk], offline: bool = False) -> bool:
        """Admit prompts and cut their first chunks while budget and room last; whether the queue is empty then."""
        most, room = (self._most_offline, self._offline_room) if offline else (self._most, self._room)
        log = self.log
        while queue:
            if self.sequences >= most:
                return False
            place = 0
            if self._most_long is not None:
                found = self._next(queue)
                if found is None:
                    return False
                place = found
            request = queue[place]
            if self._fits is not None and not self._fits(request):
                return False
            tokens = log.prompt_tokens[request] + log.emitted[request]
            rank = self._rank_for(tokens + 1, room)
            if rank is None:
                return False
            left = rank.left
            if self._whole and left < tokens:
                if rank.prefilling:
                    return False
                left = tokens
            if place:
                del queue[place]
            else:
                queue.popleft()
            prompt = Prompt(request, tokens, 0, self.backlog is not None and request in log.offline)
            rank.prefilling.append(prompt)
            rank.hold(tokens + 1)
            self.sequences += 1
            self.prefilling += 1
            self._begin(prompt, queue is not self.backlog)
            new = tokens - prompt.done
            if new > left:
                new = left
            if new > self._most_new:
                new = self._most_new
            rank.left = left - new
            chunks.append((rank, prompt, new))
        return True

    def _fill(self, chunks: list[PromptChunk], admits: bool) -> None:
        """Offline prompts in what the others have left of the step; newcomers only if it `admits` them."""
        assert self.backlog is not None
        kept = int(self.log.headroom * self.spec.max_tokens_per_step)
        for rank in self.batch.ranks:
            left = rank.left - kept
            for prompt in rank.prefilling:
                if prompt.offline and left > 0:
                    new = prompt.tokens - prompt.done
                    if not self._whole:
                        new = min(left, new, self._most_new)
                    chunks.append((rank, prompt, new))
                    left -= new
            rank.left = left
        if admits and self._take(self.set_aside, chunks, True) and self.admits:
            self._take(self.backlog, chunks, True)

    def _tokens(self, request: int) -> int:
        """What a prompt has to compute, with what it had emitted before it was preempted or lost."""
        return self.log.prompt_tokens[request] + self.log.emitted[request]

    def _next(self, queue: Queue[int]) -> int | None:
        """Place of the first prompt that is not too long to begin now; None where all are."""
        if any(self._takes_long(rank) for rank in self.batch.ranks):
            return 0
        return next((place for place, request in enumerate(queue) if self._tokens(request) <= self._most_new), None)

    def _takes_long(self, rank: Rank) -> bool:
        """Whether another long prompt may begin on a rank."""
        most = self._most_long
        return most is None or sum(p.tokens - p.done > self._most_new for p in rank.prefilling) < most

    def _rank_for(self, tokens: int, room: float) -> Rank | None:
        """The rank with most of its budget left, then fewest sequences, among those with room for `tokens`."""
        tick = self.batch.tick
        if self._most_long is None and (rank := self.batch.only) is not None:
            return rank if rank.left > 0 and rank.admits(tokens, tick, room) else None
        found: Rank | None = None
        best = (0, 0)
        long = self._most_long is not None and tokens - 1 > self._most_new
        for rank in self.batch.ranks:
            left = rank.left
            key = (left, -rank.size - rank.held_sequences)
            if long and not self._takes_long(rank):
                continue
            if left > 0 and (found is None or key > best) and rank.admits(tokens, tick, room):
                found, best = rank, key
        return found

    def reserve(self, request: int, tokens: int) -> Rank | None:
        """Hold room for a prefilled sequence on the rank with fewest of them; None where there is no room."""
        offline = self.backlog is not None and request in self.log.offline
        if self.recompute or self.sequences >= (self._most_offline if offline else self._most):
            return None
        room = self._offline_room if offline else self._room
        tick = self.batch.tick
        rank = self.batch.only
        if rank is not None:
            if not rank.admits(tokens, tick, room):
                return None
        else:
            open_ranks = [rank for rank in self.batch.ranks if rank.admits(tokens, tick, room)]
            if not open_ranks:
                return None
            rank = min(open_ranks, key=lambda r: (r.size + r.held_sequences, r.used_bytes(tick)))
        rank.hold(tokens)
        self.sequences += 1
        return rank

    def give_back(self, rank: Rank, tokens: int) -> None:
        """Free room that was held for a sequence that does not come."""
        rank.release(tokens)
        self.sequences -= 1

    def computed(self, rank: Rank, prompt: Prompt) -> None:
        """A prompt is computed; its sequence still counts."""
        rank.prefilling.remove(prompt)  # the first, unless offline prompts or shares of a step are there too
        self.prefilling -= 1

    def leave(self) -> None:
        """A sequence has ended, or leaves for another instance."""
        self.sequences -= 1

    def fit(self) -> None:
        """Preempt where a decode step has let KV outgrow a rank."""
        tick = self.batch.tick
        for rank in self.batch.ranks:
            while rank.used_bytes(tick) > self.capacity:
                self._preempt(rank)

    def _preempt(self, rank: Rank) -> None:
        """Drop the newest sequence of the lowest priority, prompts under way first; it is recomputed from its start."""
        log = self.log
        priority = log.priority
        prompt = rank.prefilling[-1] if rank.prefilling else None
        if prompt is not None and priority is not None:
            prompt = min(reversed(rank.prefilling), key=lambda p: priority[p.request])
            running = self.batch.newest(rank, priority)
            if running is not None and -running[0] < priority[prompt.request]:
                prompt = None
        if prompt is not None:
            rank.prefilling.remove(prompt)
            rank.release(prompt.tokens + 1)
            self.prefilling -= 1
            request = prompt.request
        else:
            request, remaining = self.batch.preempt(rank, priority)
            log.emitted[request] = log.output_tokens[request] - remaining
        self.sequences -= 1
        log.preemptions[request] += 1
        self._preempted(request)
        (self.set_aside if request in log.offline else self.recompute).appendleft(request)

    def drop(self) -> list[int]:
        """Forget all but the waiting queue; returns the requests that were under way, by number.

        What a sequence has emitted is booked. All ranks are new: what still points to an old one finds nothing.
        """
        log = self.log
        lost = [prompt.request for rank in self.batch.ranks for prompt in rank.prefilling]
        for request, remaining in self.batch.drop():
            log.emitted[request] = log.output_tokens[request] - remaining
            lost.append(request)
        lost += [*self.recompute, *self.set_aside]
        self.recompute.clear()
        self.set_aside.clear()
        self.sequences = self.prefilling = 0
        return sorted(lost)

    @property
    def is_idle(self) -> bool:
        """No request under way and no KV left."""
        return (
            not (self.recompute or self.set_aside)
            and self.sequences == self.prefilling == self.batch.size == 0
            and all(rank.held_sequences == rank.held_tokens == rank.offsets == 0 for rank in self.batch.ranks)
        )

"""One serving instance: continuous batching as a generator that an alarm resumes once a step.

The scheduler decides what a step holds, `price` what it costs, the meter keeps the books.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from heapq import heappush
from typing import NamedTuple

import simpy
from simpy.events import NORMAL

from simulator.des.cluster.spec import InstanceSpec
from simulator.des.instance.decode_loop import can_decode_alone, decode_alone
from simulator.des.instance.kv_receiver import Handover, Intake, Losses, Streams
from simulator.des.instance.prefix_cache import BLOCK_TOKENS, Loss, PrefixCache
from simulator.des.instance.running_batch import Prefilling, Rank
from simulator.des.instance.scheduler import Scheduler
from simulator.des.instance.step_cost import Part, price
from simulator.des.primitives.clock import Alarm
from simulator.des.primitives.queues import Queue
from simulator.des.records.request_log import Journal, Usage
from simulator.des.records.usage import INFINITE, Meter

NO_PARTS: list[Part] = []


class Standing(NamedTuple):
    """Requests of an instance. transferring: with KV that waits here for room elsewhere or is on its way from here, or
    that has come here for the next step."""

    waiting: int
    prefilling: int
    transferring: int
    running: int


class Instance:
    """Takes requests by `enqueue` (prompts to compute) or `offer` (KV to fetch) and reports their end.

    ended: called with each request that has emitted its last token.
    hand_over: called with each prefilled sequence that still has tokens to emit; None where it decodes here.
    fetch: starts a KV transfer to a rank of this instance; `deliver` is called when it is done.
    streams: is told of hand-overs before their KV is whole; None where it leaves when it is.
    stages: KV is fetched at once into host memory, and finds room as a step begins.
    holds: whether a request of a queue that instances share fits here until its end; None where every one does.
    observe: called at each step's end with the instance, the step's start, prefill's part of its time, its prompt
        tokens and decoded sequences.
    """

    __slots__ = (
        "_announced",
        "_cache_load_s",
        "_decodes",
        "_ended",
        "_hand_over",
        "_idles",
        "_kv_room",
        "_leaving",
        "_loads",
        "_place",
        "_story",
        "_streams",
        "_takes_in",
        "_wake",
        "batch",
        "cache",
        "cut",
        "emptied",
        "env",
        "index",
        "intake",
        "journal",
        "meter",
        "observe",
        "scheduler",
        "shares_queue",
        "slowdown",
        "spec",
        "speed",
        "step_ends",
        "times",
        "waiting",
    )  # so many attributes would be slow in a dictionary

    def __init__(
        self,
        env: simpy.Environment,
        index: int,
        spec: InstanceSpec,
        journal: Journal,
        waiting: Queue[int],
        ended: Callable[[int], None],
        hand_over: Callable[[Handover], None] | None = None,
        fetch: Callable[[Instance, Handover, Rank], None] | None = None,
        streams: Streams | None = None,
        stages: bool = False,
        observe: Callable[[Instance, float, float, int, int], None] | None = None,
        backlog: deque[int] | None = None,
        holds: Callable[[int], bool] | None = None,
    ) -> None:
        self.env = env
        self.index = index
        self.spec = spec
        self.speed = spec.speed
        self.journal = journal
        self.scheduler = Scheduler(env, spec, journal, waiting, self._begin, self._free_cached, backlog, holds)
        self.batch = self.scheduler.batch
        self.waiting = waiting
        self.shares_queue = False
        self.meter = Meter()
        self.times = spec.times_of_one(journal.rng)
        self._loads, self._place = [0], 0  # where `load` is noted
        self.slowdown = 1.0  # steps last this many times as long
        self.emptied: Callable[[], None] | None = None  # called when nothing is held any more, while it drains
        self.cache = (
            PrefixCache(spec.cache_tiers, spec.cache_policy, spec.cache_block_bytes) if spec.cache_tiers else None
        )
        self._cache_load_s = 0.0  # of prompts admitted to the step under way
        self._kv_room = spec.kv.capacity_bytes * spec.ranks
        self.intake = Intake(self, journal, fetch, stages)
        self._announced: dict[int, Handover] = {}  # by request; in its last chunk
        self._leaving: dict[int, Handover] = {}  # by request; KV that waits here or is under way from here
        self._ended = ended
        self._hand_over = hand_over
        self._takes_in = fetch is not None
        self._streams = streams
        self.observe = observe
        self._decodes = False  # the step under way decodes
        self._idles = False
        self._story = self._run()
        next(self._story)
        self.step_ends, self._wake, self.cut = (Alarm(env, self._story.send) for _ in range(3))
        self._wake.set_first()

    # Requests come in

    def enqueue(self, request: int) -> None:
        """Put a request at the end of the queue of prompts."""
        journal = self.journal
        self._loads[self._place] += (  # as weight
            1 if self._hand_over is None else journal.prompt_tokens[request] + journal.emitted[request]
        )
        self.waiting.append(request)
        if self._idles:
            self.kick()

    @property
    def has_place(self) -> bool:
        """Whether a request that comes now need not queue behind others."""
        scheduler = self.scheduler
        free = scheduler.sequences < self.spec.max_sequences
        return free and scheduler.admits and not (self.waiting or scheduler.recompute)

    @property
    def load(self) -> int:
        """What routers look at: prompt tokens to compute (prefill), or requests under way (elsewhere)."""
        return self._loads[self._place]

    def post_load(self, loads: list[int], place: int) -> None:
        """Note the load at a place of a list from now on, where it can be compared without asking."""
        loads[place] = self.load
        self._loads, self._place = loads, place

    def weight(self, request: int) -> int:
        """What a request adds to the load."""
        if self._hand_over is None:
            return 1
        return self.journal.prompt_tokens[request] + self.journal.emitted[request]

    def hit_share(self, request: int) -> float:
        """Part of the request's prompt that is in the prefix cache now."""
        journal = self.journal
        if self.cache is None or journal.blocks is None:
            return 0.0
        tokens = journal.prompt_tokens[request]
        return min(1.0, self.cache.peek(journal.blocks[request]) * BLOCK_TOKENS / tokens)

    def offer(self, handover: Handover) -> None:
        """Take a prefilled sequence: its KV is fetched once there is room, or at once where host memory stages it."""
        self._loads[self._place] += 1
        self.intake.offer(handover)

    def deliver(self, handover: Handover) -> None:
        """The KV has arrived on its rank and is freed at its source; decoding starts with the next step."""
        if handover.into not in self.batch.ranks:
            return  # this instance failed meanwhile; the source keeps the KV for another transfer
        lost = handover.rank not in handover.source.batch.ranks  # as is_lost, without its call
        self.intake.arrive(handover, lost)
        if lost:
            self._loads[self._place] -= 1
        else:
            self.journal.delivered_s[handover.request] = self.env.now
            handover.source.let_go(handover)
        if self._idles:
            self.kick()

    def let_go(self, handover: Handover) -> None:
        """Free the KV of a sequence that has left for another instance."""
        del self._leaving[handover.request]
        handover.rank.release(handover.tokens)
        if self.cache is not None:
            self._free_cached(handover.request)
        if self.waiting or self.scheduler.backlog or self.emptied is not None:
            self.kick()

    def kick(self) -> None:
        """Wake the instance if it idles."""
        wake = self._wake
        if self._idles and wake.callbacks is None:
            wake.set()

    # The step

    def _run(self) -> Generator[None, Alarm, None]:
        env = self.env
        batch = self.batch
        scheduler = self.scheduler
        meter = self.meter
        times = self.times
        decode_s = times.decode_s
        queue, number = env._queue, env._eid
        waiting, recompute, backlog = scheduler.waiting, scheduler.recompute, scheduler.backlog
        intake = self.intake
        incoming, arrived, stages = intake.waiting, intake.arrived, intake.stages
        hand_over, streams, observe, cache = self._hand_over, self._streams, self.observe, self.cache
        decodes_alone = can_decode_alone(self)
        yield  # until the clock runs
        while True:
            if stages and incoming:
                intake.accept()
            if arrived:
                intake.join()
            parts = NO_PARTS
            prompts = waiting or scheduler.prefilling or recompute
            if prompts or (backlog is not None and (backlog or scheduler.set_aside)):
                parts = scheduler.parts()
            elif decodes_alone and batch.size:
                self._decodes = True
                yield from decode_alone(self)
                meter.begun_s = INFINITE
                continue
            size = batch.size
            if parts:
                self._decodes = decodes = size > 0 and scheduler.mixes
                duration, prefill_s = price(times, parts, batch.load() if decodes else None)
                if cache is not None:
                    duration += self._cache_load_s
                    prefill_s += self._cache_load_s
                    self._cache_load_s = 0.0
            elif size:
                self._decodes = decodes = True
                duration = decode_s(batch.load())
                prefill_s = 0.0
            else:
                if self.emptied is not None and self.holds_nothing:
                    self.emptied()
                self._idles = True
                yield
                self._idles = False
                continue
            if self.slowdown != 1.0:
                duration *= self.slowdown
                prefill_s *= self.slowdown
            meter.begun_s = start_s = env.now
            if streams is not None and parts:
                self._announce(parts, start_s + duration)
            alarm = self.step_ends
            alarm.callbacks = alarm.rings  # as Alarm.set
            heappush(queue, (start_s + duration, NORMAL, next(number), alarm))
            if (yield) is self.cut:
                if observe is not None:
                    observe(self, start_s, 0.0 if decodes else env.now - start_s, 0, 0)
                continue
            meter.begun_s = INFINITE
            meter.busy_s += duration
            if size:
                meter.sequence_s += size * duration
            if prefill_s:
                meter.prefill_s += prefill_s
            if decodes:
                for sequence in batch.emit():
                    self.end(sequence.request)
            else:
                meter.prefill_steps += 1
            if parts:
                for rank, prompt, new in parts:
                    if hand_over is not None:
                        self._loads[self._place] -= new
                    prompt.done += new
                    if prompt.done == prompt.tokens:
                        self._prefilled(rank, prompt)
            if decodes:
                scheduler.fit()
            if cache is not None:
                self._fit_cache()
            if incoming:
                intake.accept()
            if observe is not None:
                observe(self, start_s, prefill_s, sum(new for _, _, new in parts), size if decodes else 0)

    def _begin(self, prompt: Prefilling, routed: bool) -> None:
        """A prompt is admitted: note when and where, and spare what the prefix cache holds of it."""
        journal = self.journal
        request = prompt.request
        if journal.prefill_instance[request] < 0:
            journal.prefill_start_s[request] = self.env.now
        if not self._takes_in:  # else it is preempted and computed again where it decodes
            journal.prefill_instance[request] = self.index
        if not routed:
            self._loads[self._place] += self.weight(request)
        if self.cache is not None and journal.blocks is not None:
            hit = self.cache.take(request, journal.blocks[request])
            self._fit_cache()
            prompt.done = self.cache.policy.resume(hit.blocks * BLOCK_TOKENS, journal.prompt_tokens[request])
            self._cache_load_s += hit.load_s
            journal.cached_tokens[request] += prompt.done
            if self._hand_over is not None:
                self._loads[self._place] -= prompt.done

    def _announce(self, parts: list[Part], ready_s: float) -> None:
        """Offer what this step completes by `ready_s`, so that KV can leave while it is computed."""
        assert self._streams is not None
        assert self._hand_over is not None
        journal = self.journal
        for rank, prompt, new in parts:
            request = prompt.request
            if prompt.done + new == prompt.tokens and journal.output_tokens[request] - journal.emitted[request] > 1:
                handover = self._announced[request] = Handover(request, self, rank, prompt.tokens + 1)
                self._streams.announce(handover, ready_s, new / prompt.tokens)
                self._hand_over(handover)

    def _prefilled(self, rank: Rank, prompt: Prefilling) -> None:
        """The end of a prompt emits a token; what is left to emit is decoded here or handed over."""
        journal = self.journal
        request = prompt.request
        context = prompt.tokens + 1
        rank.prefilling.remove(prompt)  # the first, unless offline prompts or shares of a step are there too
        self.scheduler.prefilling -= 1
        if self.cache is not None and journal.blocks is not None:
            self.cache.keep(request, journal.blocks[request])
        journal.emitted[request] = emitted = journal.emitted[request] + 1
        if emitted == 1:
            journal.first_token_s[request] = self.env.now
        remaining = journal.output_tokens[request] - emitted
        if not remaining:
            rank.release(context)
            self.end(request)
        elif self._hand_over is not None:
            self.scheduler.sequences -= 1
            if self._streams is None:
                handover = self._leaving[request] = Handover(request, self, rank, context)
                self._hand_over(handover)
            else:
                handover = self._leaving[request] = self._announced.pop(request)
                self._streams.computed(handover)
        else:
            self.batch.join(request, rank, context, remaining)

    def end(self, request: int) -> None:
        """A request has emitted its last token here."""
        journal = self.journal
        self.scheduler.sequences -= 1
        journal.emitted[request] = journal.output_tokens[request]
        if self.cache is not None:
            self._free_cached(request)
        if self._hand_over is None:
            self._loads[self._place] -= 1
            journal.decode_instance[request] = self.index
            if self.cache is not None and journal.kept_blocks is not None:
                self.cache.insert(journal.kept_blocks[request])
        self._ended(request)

    # The prefix cache

    def _fit_cache(self) -> None:
        """Leave past prompts what requests hold no KV in."""
        assert self.cache is not None
        self.cache.fit(self._kv_room - self.batch.used_bytes)

    def _free_cached(self, request: int) -> None:
        """A request's KV has been freed; its blocks stay while there is room."""
        if self.cache is not None:
            self._fit_cache()
            self.cache.release(request)

    def lose_cache(self, loss: Loss) -> None:
        """Lose KV of past prompts."""
        if self.cache is not None:
            self.cache.lose(loss)

    # Faults

    def fail(self) -> Losses:
        """Lose the step under way and all KV of requests, also of those that wait to leave.

        The waiting queue stays: `unqueue` hands it back. Transfers under way to here end without effect; the
        sources keep their KV, and the hand-overs may be offered elsewhere.
        """
        now = self.env.now
        if self.meter.in_step:
            self.meter.cancel(now, self.batch.size, not self._decodes)
            self.step_ends.silence()
            self.step_ends = Alarm(self.env, self._story.send)
            self.cut.set_first()
        coming = self.intake.drop()
        lost = [*self.scheduler.drop(), *coming.requests, *self._leaving]
        self._announced.clear()
        self._leaving.clear()
        self._cache_load_s = 0.0
        self._loads[self._place] = sum(map(self.weight, self.waiting))
        return Losses(sorted(lost), coming.handovers)

    def unqueue(self) -> list[int]:
        """Take back every request of the waiting queue."""
        requests = [self.waiting.popleft() for _ in range(len(self.waiting))]
        self._loads[self._place] -= sum(map(self.weight, requests))
        return requests

    def forget_lost(self) -> None:
        """Drop hand-overs that wait for room here and whose KV has gone with their source."""
        if not self.intake.stages:
            self._loads[self._place] -= self.intake.forget_lost()
            self.kick()

    # What others may ask

    @property
    def waiting_count(self) -> int:
        """Prompts not begun, and prefilled sequences that wait for room."""
        return len(self.waiting) + len(self.scheduler.set_aside) + self.stalled_count

    @property
    def stalled_count(self) -> int:
        """Preempted sequences to compute again, but for offline ones, and prefilled sequences that wait for room."""
        return len(self.scheduler.recompute) + len(self.intake.waiting)

    def standing(self) -> Standing:
        """Where the requests of this instance stand now; prompts of a queue that it shares are not its own."""
        scheduler, intake = self.scheduler, self.intake
        waiting = len(scheduler.recompute) + len(scheduler.set_aside)
        if not self.shares_queue:
            waiting += len(self.waiting)
        if intake.stages:  # else their KV is at its source
            waiting += len(intake.waiting)
        return Standing(waiting, scheduler.prefilling, len(self._leaving) + len(intake.arrived), self.batch.size)

    @property
    def kv_bytes(self) -> float:
        """KV held or reserved, over all ranks, without what the step under way adds. [B of one accelerator]"""
        return self.batch.used_bytes

    @property
    def cached_bytes(self) -> float:
        """KV of past prompts that no request uses, over all ranks. [B of one accelerator]"""
        return 0.0 if self.cache is None else self.cache.kept_bytes

    @property
    def kv_claimed(self) -> float:
        """Share of the KV room that is held now or waited for by sequences that are to come here."""
        intake = self.intake
        awaited = self.spec.kv.used_bytes(len(intake.waiting), intake.waiting_tokens)
        return (self.batch.used_bytes + awaited) / self._kv_room

    def usage(self) -> Usage:
        """Integrals up to now; the step and the transfers under way count for the time that they have run."""
        now = self.env.now
        kv_byte_s = self.scheduler.books.until(now, self.batch.used_bytes)
        return self.meter.usage(now, self.batch.size, not self._decodes, self.batch.steps, kv_byte_s)

    @property
    def is_empty(self) -> bool:
        """No request and no KV left."""
        return self.holds_nothing and not (self.waiting or self.scheduler.backlog)

    @property
    def holds_nothing(self) -> bool:
        """No KV, nor anything to bring or compute again; what waits has not begun."""
        return self.scheduler.is_idle and self.intake.is_empty and not (self._announced or self._leaving)

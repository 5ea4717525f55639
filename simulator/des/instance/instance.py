"""One serving instance: what it holds, what comes in and goes out, and what others may ask of it.

Its steps are told by `step_loop`. A colocated instance computes prompts and decodes them. One that prefills hands each
sequence over; one that decodes takes them in, and computes prompts again where it had to drop their KV.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence, Sized
from dataclasses import dataclass
from math import isnan
from typing import NamedTuple

from simulator.des.instance.handover import Handover, Losses, Streams
from simulator.des.instance.kv_receiver import KvReceiver
from simulator.des.instance.kv_sender import KvSender
from simulator.des.instance.prefix_cache import Loss, PrefixCache
from simulator.des.instance.rank import Prompt, PromptChunk, Rank
from simulator.des.instance.scheduler import PromptQueues, Scheduler
from simulator.des.instance.spec import InstanceSpec, StepTimes
from simulator.des.instance.step_cost import step_cost
from simulator.des.primitives.clock import Alarm, Environment
from simulator.des.primitives.links import Link
from simulator.des.records.request_log import RequestLog
from simulator.des.records.usage import Usage, UsageCounter

NO_DEBUTS: list[int] = []
Observe = Callable[["Instance", float, float, int, int], None]


class Standing(NamedTuple):
    """Requests of an instance. transferring: with KV that waits here for room elsewhere or is on its way from here, or
    that has come here for the next step."""

    waiting: int
    prefilling: int
    transferring: int
    running: int


@dataclass(frozen=True)
class InstanceSetup:
    """What every instance is made from, whatever its role.

    index: its number in the pool. times: its step times. queues: where its prompts come from. ended: called with each
    request that has emitted its last token. links: of each rank, over which KV is handed over; none where they are
    infinitely fast.
    observe: called at each step's end with the instance, the step's start, prefill's part of its time, its prompt
        tokens and decoded sequences.
    """

    env: Environment
    index: int
    spec: InstanceSpec
    times: StepTimes
    log: RequestLog
    queues: PromptQueues
    ended: Callable[[int], None]
    links: tuple[Link, ...] = ()
    observe: Observe | None = None


class Instance:
    """Takes requests by `enqueue` and reports their end; by itself, a colocated one."""

    __slots__ = (
        "_cache_load_s",
        "_ended",
        "_idles",
        "_kv_bytes",
        "_loads",
        "_place",
        "_queues",
        "_story",
        "_wake",
        "batch",
        "cache",
        "cut",
        "drained",
        "env",
        "index",
        "links",
        "log",
        "observe",
        "scheduler",
        "slowdown",
        "spec",
        "speed",
        "step_ends",
        "times",
        "usage_counter",
        "waiting",
    )  # so many attributes would be slow in a dictionary

    def __init__(self, setup: InstanceSetup) -> None:
        self.env = env = setup.env
        self.index = setup.index
        self.spec = spec = setup.spec
        self.speed = spec.speed
        self.times = setup.times
        self.log = setup.log
        self.links = setup.links
        self.observe = setup.observe
        self._queues = setup.queues
        self._ended = setup.ended
        self.scheduler = Scheduler(env, spec, setup.log, setup.queues, self._begin, self._free_cached)
        self.batch = self.scheduler.batch
        self.waiting = setup.queues.waiting
        self.usage_counter = UsageCounter(env)
        self.cache = (
            PrefixCache(spec.cache_tiers, spec.cache_policy, spec.cache_block_bytes) if spec.cache_tiers else None
        )
        self.slowdown = 1.0  # steps last this many times as long
        self.drained: Callable[[], None] | None = None  # called when nothing is held any more, while it drains
        self._loads, self._place = [0], 0  # where `load` is noted
        self._cache_load_s = 0.0  # of prompts admitted to the step under way
        self._kv_bytes = spec.kv.capacity_bytes * spec.ranks
        self._idles = False

    def start(self, story: Generator[None, Alarm, None]) -> None:
        """Live by a story, which is told up to its first wait and goes on once the clock runs."""
        self._story = story
        next(story)
        self.step_ends, self._wake, self.cut = (Alarm(self.env, story.send) for _ in range(3))
        self._wake.set_first()

    # Requests come in

    def enqueue(self, request: int) -> None:
        """Put a request at the end of the queue of prompts."""
        self._loads[self._place] += self.weight(request)
        self.waiting.append(request)
        if self._idles:
            self.kick()

    def kick(self) -> None:
        """Wake the instance if it idles."""
        if self._idles:
            self._idles = False
            self._wake.set()

    def weight(self, request: int) -> int:
        """What a request adds to the load."""
        return 1

    @property
    def load(self) -> int:
        """What routers look at: prompt tokens to compute (prefill), or requests under way (elsewhere)."""
        return self._loads[self._place]

    def post_load(self, loads: list[int], place: int) -> None:
        """Note the load at a place of a list from now on, where it can be compared without asking."""
        loads[place] = self.load
        self._loads, self._place = loads, place

    @property
    def has_place(self) -> bool:
        """Whether a request that comes now need not queue behind others."""
        scheduler = self.scheduler
        free = scheduler.sequences < self.spec.max_sequences
        return free and scheduler.admits and not (self.waiting or scheduler.recompute)

    def hit_share(self, request: int) -> float:
        """Part of the request's prompt that is in the prefix cache now."""
        log = self.log
        if self.cache is None or log.blocks is None:
            return 0.0
        tokens = log.prompt_tokens[request]
        return min(1.0, self.cache.peek(log.blocks[request]) * self.spec.cache_block_tokens / tokens)

    # What a step asks for

    @property
    def awaiting_room(self) -> Sized:
        """Prefilled sequences that wait for room here."""
        return ()

    @property
    def arrived(self) -> Sized:
        """Sequences whose KV has come here and that join the batch with the next step."""
        return ()

    @property
    def debuts(self) -> list[int]:
        """Requests whose clients see their first token with the end of the next step that decodes."""
        return NO_DEBUTS

    def take_in(self) -> None:
        """What has come in from elsewhere joins the batch."""

    def accept(self) -> None:
        """Room may have become free for what waits to come in."""

    def fall_asleep(self) -> None:
        """There is nothing to do."""
        if self.drained is not None and self.holds_nothing:
            self.drained()
        self._idles = True

    def cost(self, chunks: Sequence[PromptChunk], decodes: bool) -> tuple[float, float]:
        """Seconds of a step that computes `chunks` and decodes or not, and prefill's part of them."""
        if chunks:
            duration_s, prefill_s = step_cost(self.times, chunks, self.batch.load() if decodes else None)
            duration_s += self._cache_load_s
            prefill_s += self._cache_load_s
            self._cache_load_s = 0.0
        else:
            duration_s, prefill_s = self.times.decode_s(self.batch.load()), 0.0
        return duration_s * self.slowdown, prefill_s * self.slowdown

    @property
    def announces(self) -> bool:
        """Whether it tells of hand-overs before their KV is whole."""
        return False

    def announce(self, chunks: Sequence[PromptChunk], ready_s: float) -> None:
        """A step that will have computed `chunks` by `ready_s` begins."""

    def advance(self, chunks: Sequence[PromptChunk]) -> None:
        """A step has computed `chunks`."""
        for rank, prompt, new in chunks:
            prompt.done += new
            if prompt.done == prompt.tokens:
                self._computed(rank, prompt)

    def _computed(self, rank: Rank, prompt: Prompt) -> None:
        """The end of a prompt emits a token; what is left to emit is decoded here or handed over."""
        log = self.log
        request = prompt.request
        self.scheduler.computed(rank, prompt)
        if self.cache is not None and log.blocks is not None:
            self.cache.keep(request, log.blocks[request])
        log.emitted[request] = emitted = log.emitted[request] + 1
        if emitted == 1:
            log.prompt_end_s[request] = self.env.now
        remaining = log.output_tokens[request] - emitted
        if remaining:
            self._go_on(request, rank, prompt.tokens + 1, remaining)
        else:
            rank.release(prompt.tokens + 1)
            self.end(request)

    def _go_on(self, request: int, rank: Rank, context: int, remaining: int) -> None:
        """A sequence of `context` tokens has `remaining` to emit."""
        self.batch.join(request, rank, context, remaining)

    def end(self, request: int) -> None:
        """A request has emitted its last token here."""
        log = self.log
        self.scheduler.leave()
        log.emitted[request] = log.output_tokens[request]
        self._loads[self._place] -= 1
        log.decode_instance[request] = self.index
        if self.cache is not None:
            self._free_cached(request)
            if log.kept_blocks is not None:
                self.cache.insert(log.kept_blocks[request])
        self._ended(request)

    # Prompts begin

    def _begin(self, prompt: Prompt, routed: bool) -> None:
        """A prompt is admitted: note when and where, and spare what the prefix cache holds of it."""
        log = self.log
        request = prompt.request
        if log.prefill_instance[request] < 0:
            log.prefill_start_s[request] = self.env.now
        self._note_begin(request)
        if not routed:
            self._loads[self._place] += self.weight(request)
        if self.cache is not None and log.blocks is not None:
            hit = self.cache.take(request, log.blocks[request])
            self.fit_cache()
            found = hit.blocks * self.spec.cache_block_tokens
            prompt.done = self.cache.policy.resume(found, log.prompt_tokens[request])
            self._cache_load_s += hit.load_s
            log.cached_tokens[request] += prompt.done
            self._note_computed(prompt.done)

    def _note_begin(self, request: int) -> None:
        self.log.prefill_instance[request] = self.index

    def _note_computed(self, tokens: int) -> None:
        """Prompt tokens need not be computed any more."""

    # The prefix cache

    def fit_cache(self) -> None:
        """Leave past prompts what requests hold no KV in."""
        if self.cache is not None:
            self.cache.fit(self._kv_bytes - self.batch.used_bytes)

    def _free_cached(self, request: int) -> None:
        """A request's KV has been freed; its blocks stay while there is room."""
        if self.cache is not None:
            self.fit_cache()
            self.cache.release(request)

    def lose_cache(self, loss: Loss) -> None:
        """Lose KV of past prompts."""
        if self.cache is not None:
            self.cache.lose(loss)

    # Growth, shrinking and faults

    def admit_newcomers(self, admits: bool) -> None:
        """Begin prompts from now on, or none that has not begun."""
        self.scheduler.admit_newcomers(admits)

    def drain(self, drained: Callable[[], None] | None) -> None:
        """Tell when nothing is held any more; None: no longer."""
        self.drained = drained

    def slow_down(self, times: float) -> None:
        """Steps that begin from now on last so many times as long."""
        self.slowdown = times

    def fail(self) -> Losses:
        """Lose the step under way and all KV of requests, also of those that wait to leave.

        The waiting queue stays: `unqueue` hands it back. Transfers under way to here end without effect; the
        sources keep their KV, and the hand-overs may be offered elsewhere.
        """
        if self.usage_counter.in_step:
            self.usage_counter.cancel(self.batch.size)
            self.step_ends.silence()
            self.step_ends = Alarm(self.env, self._story.send)
            self.cut.set_first()
        lost = self._lose_all()
        self._cache_load_s = 0.0
        self._loads[self._place] = sum(map(self.weight, self.waiting))
        return lost

    def _lose_all(self) -> Losses:
        return Losses(self.scheduler.drop(), [])

    def unqueue(self) -> list[int]:
        """Take back every request of the waiting queue."""
        requests = [self.waiting.popleft() for _ in range(len(self.waiting))]
        self._loads[self._place] -= sum(map(self.weight, requests))
        return requests

    # What others may ask

    def holds(self, rank: Rank) -> bool:
        """Whether the rank is still one of this instance's."""
        return rank in self.batch.ranks

    @property
    def waiting_count(self) -> int:
        """Prompts not begun, and prefilled sequences that wait for room."""
        return len(self.waiting) + len(self.scheduler.set_aside) + self.stalled_count

    @property
    def stalled_count(self) -> int:
        """Preempted sequences to compute again, but for offline ones, and prefilled sequences that wait for room."""
        return len(self.scheduler.recompute) + len(self.awaiting_room)

    def standing(self) -> Standing:
        """Where the requests of this instance stand now; prompts of a queue that it shares are not its own."""
        scheduler = self.scheduler
        waiting = len(scheduler.recompute) + len(scheduler.set_aside)
        if not self._queues.is_shared:
            waiting += len(self.waiting)
        return Standing(waiting, scheduler.prefilling, 0, self.batch.size)

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
        return self.batch.used_bytes / self._kv_bytes

    def usage(self) -> Usage:
        """Integrals up to now; the step and the transfers under way count for the time that they have run."""
        now = self.env.now
        kv_byte_s = self.scheduler.occupancy.until_now(self.batch.used_bytes)
        link_s = sum(link.busy_s(now) for link in self.links) / len(self.links) if self.links else 0.0
        return self.usage_counter.until_now(self.batch.size, self.batch.steps, kv_byte_s, link_s)

    @property
    def is_empty(self) -> bool:
        """No request and no KV left."""
        return self.holds_nothing and not (self.waiting or self.scheduler.backlog)

    @property
    def holds_nothing(self) -> bool:
        """No KV, nor anything to bring or compute again; what waits has not begun."""
        return self.scheduler.is_idle


class PrefillInstance(Instance):
    """Computes prompts and hands their sequences over.

    hand_over: called with each prefilled sequence that still has tokens to emit. streams: is told of hand-overs before
    their KV is whole; None where it leaves when it is.
    """

    __slots__ = ("sender",)

    def __init__(
        self, setup: InstanceSetup, hand_over: Callable[[Handover], None], streams: Streams | None = None
    ) -> None:
        super().__init__(setup)
        self.sender = KvSender(self, setup.log, hand_over, streams)

    def weight(self, request: int) -> int:
        return self.log.prompt_tokens[request] + self.log.emitted[request]

    @property
    def announces(self) -> bool:
        return self.sender.streams is not None

    def announce(self, chunks: Sequence[PromptChunk], ready_s: float) -> None:
        self.sender.announce(chunks, ready_s)

    def advance(self, chunks: Sequence[PromptChunk]) -> None:
        for rank, prompt, new in chunks:
            self._loads[self._place] -= new
            prompt.done += new
            if prompt.done == prompt.tokens:
                self._computed(rank, prompt)

    def _go_on(self, request: int, rank: Rank, context: int, remaining: int) -> None:
        self.scheduler.leave()
        self.sender.computed(request, rank, context)

    def _note_computed(self, tokens: int) -> None:
        self._loads[self._place] -= tokens

    def end(self, request: int) -> None:
        """A request of one token ends here; who decodes it is not noted, as nobody does."""
        log = self.log
        self.scheduler.leave()
        log.emitted[request] = log.output_tokens[request]
        if isnan(log.first_token_s[request]):
            log.first_token_s[request] = self.env.now
        self._free_cached(request)
        self._ended(request)

    def let_go(self, handover: Handover) -> None:
        """Free the KV of a sequence that has left for another instance."""
        self.sender.let_go(handover)
        self._free_cached(handover.request)
        if self.waiting or self.scheduler.backlog or self.drained is not None:
            self.kick()

    def _lose_all(self) -> Losses:
        return Losses(sorted([*self.scheduler.drop(), *self.sender.drop()]), [])

    def standing(self) -> Standing:
        return super().standing()._replace(transferring=len(self.sender))

    @property
    def holds_nothing(self) -> bool:
        return self.scheduler.is_idle and self.sender.is_empty


class DecodeInstance(Instance):
    """Takes prefilled sequences by `offer` and decodes them.

    fetch: starts a KV transfer to a rank of this instance; `deliver` is called when it is done.
    stages: KV is fetched at once into host memory, and finds room as a step begins.
    """

    __slots__ = ("receiver",)

    def __init__(
        self, setup: InstanceSetup, fetch: Callable[[DecodeInstance, Handover, Rank], None], stages: bool = False
    ) -> None:
        super().__init__(setup)
        self.receiver = KvReceiver(
            self.scheduler, setup.log, lambda handover, rank: fetch(self, handover, rank), stages
        )

    def offer(self, handover: Handover) -> None:
        """Take a prefilled sequence: its KV is fetched once there is room, or at once where host memory stages it."""
        self._loads[self._place] += 1
        self.receiver.offer(handover)

    def deliver(self, handover: Handover) -> None:
        """The KV has arrived on its rank and is freed at its source; decoding starts with the next step."""
        if handover.into not in self.batch.ranks:
            return  # this instance failed meanwhile; the source keeps the KV for another transfer
        lost = not handover.source.holds(handover.rank)
        self.receiver.arrive(handover, lost)
        if lost:
            self._loads[self._place] -= 1
        else:
            self.log.delivered_s[handover.request] = self.env.now
            handover.source.let_go(handover)
        if self._idles:
            self.kick()

    def forget_lost(self) -> None:
        """Drop hand-overs that wait for room here and whose KV has gone with their source."""
        if not self.receiver.stages:
            self._loads[self._place] -= self.receiver.forget_lost()
            self.kick()

    @property
    def awaiting_room(self) -> Sized:
        return self.receiver.waiting

    @property
    def arrived(self) -> Sized:
        return self.receiver.arrived

    @property
    def debuts(self) -> list[int]:
        return self.receiver.debuts

    def take_in(self) -> None:
        receiver = self.receiver
        if receiver.stages and receiver.waiting:
            receiver.accept()
        if receiver.arrived:
            receiver.join()

    def accept(self) -> None:
        self.receiver.accept()

    def _note_begin(self, request: int) -> None:
        """It was preempted and is computed again where it decodes; who prefilled it is noted already."""

    def _lose_all(self) -> Losses:
        coming = self.receiver.drop()
        return Losses(sorted([*self.scheduler.drop(), *coming.requests]), coming.handovers)

    def standing(self) -> Standing:
        seen, receiver = super().standing(), self.receiver
        waiting = seen.waiting + (len(receiver.waiting) if receiver.stages else 0)  # else their KV is at its source
        return seen._replace(waiting=waiting, transferring=len(receiver.arrived))

    @property
    def kv_claimed(self) -> float:
        awaited = self.spec.kv.used_bytes(len(self.receiver.waiting), self.receiver.waiting_tokens)
        return (self.batch.used_bytes + awaited) / self._kv_bytes

    @property
    def holds_nothing(self) -> bool:
        return self.scheduler.is_idle and self.receiver.is_empty

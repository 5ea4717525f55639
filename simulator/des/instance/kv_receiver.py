"""Prefilled sequences on their way into a decode instance.

KV waits at its source until there is room, is fetched into that room and joins the batch with the next step. Where
host memory stages it, KV is fetched at once and waits there for room.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

from simulator.des.instance.running_batch import Rank
from simulator.des.primitives.links import Flow
from simulator.des.primitives.queues import Queue, queue_of
from simulator.des.records.request_log import Journal

if TYPE_CHECKING:
    from simulator.des.instance.instance import Instance


class Handover(Flow):
    """A prefilled sequence whose KV waits on `rank` of `source` for a decode instance to take it, and the flow of KV.

    destination, into: the instance that takes it and the rank with room. earliest_s: hands are shaken then.
    body: the part that leaves while the prompt is computed. under_way: where it is listed until it has arrived.
    """

    __slots__ = ("body", "destination", "earliest_s", "into", "rank", "request", "source", "tokens", "under_way")

    destination: Instance
    into: Rank
    earliest_s: float
    body: Flow | None
    under_way: dict[Handover, None]

    def __init__(self, request: int, source: Instance, rank: Rank, tokens: int) -> None:
        self.request = request
        self.source = source
        self.rank = rank
        self.tokens = tokens

    @property
    def is_lost(self) -> bool:
        """Whether the source has failed since, and the KV with it."""
        return self.rank not in self.source.batch.ranks

    def ended(self) -> None:
        """All of the KV is there."""
        del self.under_way[self]
        self.destination.deliver(self)


class Streams(Protocol):
    """Takes the KV of prompts while their last chunk is computed."""

    def announce(self, handover: Handover, ready_s: float, last_part: float) -> None:
        """The last chunk, which makes `last_part` of the prompt's KV, is computed from now to `ready_s`."""
        ...

    def computed(self, handover: Handover) -> None:
        """An announced prompt is computed."""
        ...


class Losses(NamedTuple):
    """What a failed instance held: requests whose KV is gone, and hand-overs to it whose KV is still at the source."""

    requests: list[int]
    handovers: list[Handover]


class Intake:
    """fetch: starts a transfer to a rank of the instance, whose end is told by `arrive`; None where nothing comes in.
    stages: by way of host memory.

    waiting: for room. arrived: to join the rank that they were brought `into` with the next step.
    """

    def __init__(
        self,
        instance: Instance,
        journal: Journal,
        fetch: Callable[[Instance, Handover, Rank], None] | None,
        stages: bool,
    ) -> None:
        self.stages = stages
        self.waiting: Queue[Handover] = queue_of(journal.priority, lambda handover: handover.request)
        self.waiting_tokens = 0
        self.arrived: list[Handover] = []
        self._under_way: dict[int, Handover] = {}  # by request
        self._instance = instance
        self._scheduler = instance.scheduler
        self._journal = journal
        self._fetch = fetch

    @property
    def is_empty(self) -> bool:
        return not (self.waiting or self._under_way or self.arrived)

    def offer(self, handover: Handover) -> None:
        """Take a sequence, whose KV is at its source."""
        if self.stages:
            ranks = self._scheduler.batch.ranks
            self._begin_fetch(handover, ranks[handover.request % len(ranks)])  # spread over the links
            return
        if self.waiting:
            self._await_room(handover)
            self.accept()
            return
        rank = self._scheduler.reserve(handover.request, handover.tokens)
        if rank is None:
            self._await_room(handover)
        else:
            self._begin_fetch(handover, rank)

    def _await_room(self, handover: Handover) -> None:
        self.waiting.append(handover)
        self.waiting_tokens += handover.tokens

    def _begin_fetch(self, handover: Handover, rank: Rank) -> None:
        assert self._fetch is not None
        self._under_way[handover.request] = handover
        self._fetch(self._instance, handover, rank)

    def accept(self) -> None:
        """Reserve room for sequences, in order of arrival, and fetch their KV or take it from the stage."""
        waiting = self.waiting
        while waiting:
            handover = waiting[0]
            rank = self._scheduler.reserve(handover.request, handover.tokens)
            if rank is None:
                return
            waiting.popleft()
            self.waiting_tokens -= handover.tokens
            if self.stages:
                handover.into = rank
                self.arrived.append(handover)
            else:
                self._begin_fetch(handover, rank)

    def arrive(self, handover: Handover, lost: bool) -> None:
        """The transfer is over; KV of a source that has failed meanwhile, and is lost, is not there."""
        if self._under_way.get(handover.request) is handover:
            del self._under_way[handover.request]
        if lost:
            if not self.stages:
                handover.into.release(handover.tokens)
                self._scheduler.sequences -= 1
        elif self.stages:
            self._await_room(handover)
        else:
            self.arrived.append(handover)

    def join(self) -> None:
        """What has arrived runs from now on."""
        journal = self._journal
        batch = self._scheduler.batch
        for handover in self.arrived:
            request = handover.request
            left = journal.output_tokens[request] - journal.emitted[request]
            batch.join(request, handover.into, handover.tokens, left)
        self.arrived.clear()

    def forget_lost(self) -> int:
        """Drop those that wait for room and whose KV has gone with their source; how many they were."""
        kept = [handover for handover in self.waiting if not handover.is_lost]
        dropped = len(self.waiting) - len(kept)
        self.waiting.clear()
        for handover in kept:
            self.waiting.append(handover)
        self.waiting_tokens = sum(handover.tokens for handover in kept)
        self.accept()
        return dropped

    def drop(self) -> Losses:
        """Forget all: what had come here is lost, what is at its source may go elsewhere."""
        requests = [handover.request for handover in self.arrived]
        handovers = list(self._under_way.values())
        if self.stages:  # what waits for room has left its source
            requests += [handover.request for handover in self.waiting]
        else:
            handovers += self.waiting
        for held in (self.arrived, self._under_way, self.waiting):
            held.clear()
        self.waiting_tokens = 0
        return Losses(requests, [handover for handover in handovers if not handover.is_lost])

"""Prefilled sequences on their way into a decode instance.

KV waits at its source until there is room, is fetched into that room and joins the batch with the next step. Where
host memory stages it, KV is fetched at once and waits there for room.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isnan

from simulator.des.instance.handover import Handover, Losses
from simulator.des.instance.rank import Rank
from simulator.des.instance.scheduler import Scheduler
from simulator.des.primitives.queues import Queue, queue_of
from simulator.des.records.request_log import RequestLog


class KvReceiver:
    """fetch: starts a transfer to a rank of the instance, whose end is told by `arrive`. stages: by way of host memory.

    waiting: for room. arrived: to join the rank that they were brought `into` with the next step. debuts: requests that
    have joined, and whose clients see their first token with the end of the next step that decodes.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        log: RequestLog,
        fetch: Callable[[Handover, Rank], None],
        stages: bool,
    ) -> None:
        self.stages = stages
        self.waiting: Queue[Handover] = queue_of(log.priority, lambda handover: handover.request)
        self.waiting_tokens = 0
        self.arrived: list[Handover] = []
        self.debuts: list[int] = []
        self._under_way: dict[int, Handover] = {}  # by request
        self._scheduler = scheduler
        self._log = log
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
        self._under_way[handover.request] = handover
        self._fetch(handover, rank)

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
                handover.place(rank)
                self.arrived.append(handover)
            else:
                self._begin_fetch(handover, rank)

    def arrive(self, handover: Handover, lost: bool) -> None:
        """The transfer is over; KV of a source that has failed meanwhile, and is lost, is not there."""
        if self._under_way.get(handover.request) is handover:
            del self._under_way[handover.request]
        if lost:
            if not self.stages:
                self._scheduler.give_back(handover.into, handover.tokens)
        elif self.stages:
            self._await_room(handover)
        else:
            self.arrived.append(handover)

    def join(self) -> None:
        """What has arrived runs from now on."""
        log = self._log
        batch = self._scheduler.batch
        for handover in self.arrived:
            request = handover.request
            left = log.output_tokens[request] - log.emitted[request]
            batch.join(request, handover.into, handover.tokens, left)
            if log.first_from_decode and isnan(log.first_token_s[request]):
                self.debuts.append(request)
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
        for held in (self.arrived, self._under_way, self.waiting, self.debuts):
            held.clear()
        self.waiting_tokens = 0
        return Losses(requests, [handover for handover in handovers if not handover.is_lost])

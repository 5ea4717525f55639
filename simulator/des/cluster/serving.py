"""The instances of a cluster at work: requests come in by the entry pool and are handed over, instances come and go."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence, Sized

import numpy as np
import simpy

from simulator.des.cluster.dispatch import Dispatch
from simulator.des.cluster.group import Fleet
from simulator.des.cluster.kv_transfer import Interconnect
from simulator.des.cluster.recorder import Recorder
from simulator.des.cluster.router import Homes, make_router
from simulator.des.cluster.spec import ClusterSpec, GroupSpec
from simulator.des.cluster.spines import make_spines
from simulator.des.instance.instance import Instance
from simulator.des.instance.kv_receiver import Handover
from simulator.des.primitives.queues import Queue, queue_of
from simulator.des.records.request_log import Journal, Usage

SHARED_QUEUE = "shared_queue"
CACHE_ROUTERS = ("prefix_aware", "session_affinity")  # pick by what an instance keeps of past prompts


class Serving:
    """Takes requests by `enter`.

    finished: called with each request that has emitted its last token; refused: with one that found its queue full,
    and the reason; lost: with those whose KV or place in a queue went with an instance.
    fleets: of each group, by its name. entry, decode: all instances of a pool, by number.
    """

    def __init__(
        self,
        env: simpy.Environment,
        spec: ClusterSpec,
        journal: Journal,
        rng: np.random.Generator,
        finished: Callable[[int], None],
        refused: Callable[[int, str], None],
        lost: Callable[[list[int]], None],
        recorder: Recorder | None = None,
    ) -> None:
        self.env = env
        self.spec = spec
        self.journal = journal
        self._max_queue = spec.max_queue
        self._refused = refused
        self._lost = lost
        self._parked: deque[int] = deque()  # requests and hand-overs while no instance serves
        self._parked_handovers: deque[Handover] = deque()
        shared = spec.router == SHARED_QUEUE
        self._shared_queue = self._new_queue() if shared else None
        self._backlog: deque[int] | None = deque() if journal.offline else None
        self.fleets: dict[str, Fleet] = {}
        self.links = Interconnect(env, spec.transfer_bytes, spec.transfer, spec.layers)
        # Instances take prompts from where no router has looked at their room.
        pulls = shared or self._backlog is not None
        unlike = not spec.decode and len({group.instance.kv for group in spec.entry}) > 1

        def entry(group: GroupSpec, index: int) -> Instance:
            kv = group.instance.kv
            return Instance(
                env,
                index,
                group.instance,
                journal,
                self._new_queue() if self._shared_queue is None else self._shared_queue,
                finished,
                self._hand_over if spec.decode else None,
                streams=self.links if spec.decode and self.links.streams else None,
                observe=None if recorder is None else recorder.observer(env, group.name),
                backlog=self._backlog,
                holds=(lambda request: kv.fits(1, self._all_tokens(request))) if pulls and unlike else None,
            )

        def decode(group: GroupSpec, index: int) -> Instance:
            return Instance(
                env,
                index,
                group.instance,
                journal,
                self._new_queue(),
                finished,
                fetch=self.links.fetch,
                stages=spec.transfer.staged,
                observe=None if recorder is None else recorder.observer(env, group.name),
                backlog=None if self._backlog is None else deque(),
            )

        picks = "least_loaded" if shared else spec.router
        # No decode instance keeps prefixes.
        decode_picks = spec.decode_router or ("least_loaded" if picks in CACHE_ROUTERS else picks)
        homes = None if journal.session is None else Homes(journal.session)
        self._entry = Dispatch(
            lambda among, loads: make_router(picks, among, rng, homes, loads),
            self._prompt_tokens if spec.decode else self._all_tokens,
        )
        self._decode = Dispatch(
            lambda among, loads: make_router(decode_picks, among, rng, loads=loads), self._all_tokens
        )
        self.entry = self._enlist(self._entry, spec.entry, entry)
        self.decode = self._enlist(self._decode, spec.decode, decode)
        for instance in self.entry:
            instance.shares_queue = shared
        self.links.spines = make_spines(self.link_rates, spec.transfer.oversubscription, spec.transfer.rails)

    def _new_queue(self) -> Queue[int]:
        return queue_of(self.journal.priority, lambda request: request)

    def _enlist(
        self, dispatch: Dispatch, groups: Sequence[GroupSpec], make: Callable[[GroupSpec, int], Instance]
    ) -> list[Instance]:
        """The instances of a pool, numbered through its groups."""
        made: list[Instance] = []
        for group in groups:
            own = [make(group, len(made) + i) for i in range(group.count)]
            made += own
            self.fleets[group.name] = Fleet(
                self.env, group, own, dispatch.review, self._opens, self._dies, self._drains
            )
        dispatch.enlist([self.fleets[group.name] for group in groups])
        return made

    # What others may ask

    @property
    def link_rates(self) -> dict[Instance, float]:
        """What the link of each attention rank reaches, of the instances that KV leaves from. [B/s]"""
        if not self.spec.decode:
            return {}
        return {instance: self.spec.transfer.achieved * instance.spec.rank_bandwidth for instance in self.entry}

    @property
    def is_empty(self) -> bool:
        """No request and no KV left."""
        return all(instance.is_empty for instance in (*self.entry, *self.decode))

    @property
    def unassigned(self) -> int:
        """Requests that no instance has yet: they wait for one to serve, or in a place that instances share."""
        return len(self._parked) + len(self._shared_queue or ()) + len(self._backlog or ())

    def usage(self) -> dict[str, list[Usage]]:
        """Of every instance, by group."""
        return {name: [instance.usage() for instance in fleet.instances] for name, fleet in self.fleets.items()}

    def parked(self, group: GroupSpec) -> Sized:
        """What waits for any instance of the group's pool to serve."""
        return self._parked if self.spec.is_entry(group) else self._parked_handovers

    def can_compute(self, request: int) -> bool:
        """Whether the KV of prompt and tokens out, which has to be computed anew, fits an instance that could."""
        tokens = self._prompt_tokens(request)
        return any(group.instance.kv.fits(1, tokens) for group in self.spec.entry)

    def _prompt_tokens(self, request: int) -> int:
        """KV that a request needs until it is handed over."""
        return self.journal.prompt_tokens[request] + self.journal.emitted[request] + 1

    def _all_tokens(self, request: int) -> int:
        """KV that a request needs until its end."""
        return self.journal.prompt_tokens[request] + self.journal.output_tokens[request]

    # Requests come in and are handed over

    def enter(self, request: int) -> None:
        """Queue a request, or refuse it where the queue is full; where no instance serves it waits for one."""
        if self._backlog is not None and request in self.journal.offline:
            self._backlog.append(request)
            for instance in self._entry.open:
                instance.kick()
            return
        shared = self._shared_queue
        limit = self._max_queue
        taker = None
        if shared is None:
            taker = self._entry.pick(request)
            if taker is None:
                self._parked.append(request)
                return
            if limit is None:
                taker.enqueue(request)
                return
        takers = self._entry.open if taker is None else [taker]
        queue = shared if taker is None else taker.waiting
        assert queue is not None
        if limit is not None and len(queue) >= limit and not any(taker.has_place for taker in takers):
            self._refused(request, f"the queue was full (max_queue={limit})")
        elif taker is not None:
            taker.enqueue(request)
        else:
            queue.append(request)
            for instance in takers:
                instance.kick()

    def _hand_over(self, handover: Handover) -> None:
        taker = self._decode.pick(handover.request)
        if taker is None:
            self._parked_handovers.append(handover)
        else:
            taker.offer(handover)

    # Instances come and go

    def _opens(self, instance: Instance) -> None:
        """An instance serves from now on: what waits at the router may go there."""
        parked, handovers = list(self._parked), list(self._parked_handovers)
        if instance in self.entry:
            self._parked.clear()
            for request in parked:
                self.enter(request)
            instance.kick()
        else:
            self._parked_handovers.clear()
            for handover in handovers:
                self._hand_over(handover)

    def _drains(self, instance: Instance) -> None:
        """An instance begins no more prompts: those in its own queue go elsewhere."""
        if instance.waiting is not self._shared_queue:
            for request in instance.unqueue():
                self.enter(request)

    def _dies(self, instance: Instance) -> None:
        """What an instance held is lost; KV that it was to fetch goes elsewhere."""
        losses = instance.fail()
        self.links.drop(instance)
        queued = [] if instance.waiting is self._shared_queue else instance.unqueue()
        for _ in range(len(self._parked_handovers)):
            handover = self._parked_handovers.popleft()
            if not handover.is_lost:
                self._parked_handovers.append(handover)
        for other in self.decode:
            other.forget_lost()
        for handover in losses.handovers:
            self._hand_over(handover)
        self._lost([*losses.requests, *queued])

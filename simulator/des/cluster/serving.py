"""The instances of a cluster at work: requests come in by the entry pool and are handed over, instances come and go."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence, Sized
from typing import Any, TypeVar

import numpy as np

from simulator.des.cluster.dispatch import Dispatch
from simulator.des.cluster.group import Group
from simulator.des.cluster.kv_transfer import Interconnect
from simulator.des.cluster.recorder import Recorder
from simulator.des.cluster.router import Homes, make_router
from simulator.des.cluster.spec import ClusterSpec, GroupSpec
from simulator.des.cluster.spines import Spines, make_spines
from simulator.des.instance.handover import Handover, KvSource
from simulator.des.instance.instance import DecodeInstance, Instance, InstanceSetup, PrefillInstance
from simulator.des.instance.scheduler import PromptQueues
from simulator.des.instance.spec import InstanceSpec
from simulator.des.instance.step_loop import start
from simulator.des.primitives.clock import Environment
from simulator.des.primitives.queues import Queue, queue_of
from simulator.des.records.request_log import RequestLog
from simulator.des.records.usage import Usage

Kind = TypeVar("Kind", bound=Instance)

SHARED_QUEUE = "shared_queue"
CACHE_ROUTERS = ("prefix_aware", "session_affinity")  # pick by what an instance keeps of past prompts


class Serving:
    """Takes requests by `enter`.

    routing: of what routers draw; draws: of what instances draw while they run.
    finished: called with each request that has emitted its last token; refused: with one that found its queue full,
    and the reason; lost: with those whose KV or place in a queue went with an instance.
    groups: of each group, by its name. entry, decode: all instances of a pool, by number.
    """

    def __init__(
        self,
        env: Environment,
        spec: ClusterSpec,
        log: RequestLog,
        routing: np.random.Generator,
        draws: np.random.Generator,
        finished: Callable[[int], None],
        refused: Callable[[int, str], None],
        lost: Callable[[list[int]], None],
        recorder: Recorder | None = None,
    ) -> None:
        self.env = env
        self.spec = spec
        self.log = log
        self._max_queue = spec.max_queue
        self._draws = draws
        self._recorder = recorder
        self._finished = finished
        self._refused = refused
        self._lost = lost
        self._parked: deque[int] = deque()  # requests and hand-overs while no instance serves
        self._parked_handovers: deque[Handover] = deque()
        shared = spec.router == SHARED_QUEUE
        self._shared_queue = self._new_queue() if shared else None
        self._backlog: deque[int] | None = deque() if log.offline else None
        self.groups: dict[str, Group[Any]] = {}
        self._interconnect = Interconnect(env, spec.transfer_bytes, spec.transfer, spec.layers)
        picks = "least_loaded" if shared else spec.router
        # No decode instance keeps prefixes.
        decode_picks = spec.decode_router or ("least_loaded" if picks in CACHE_ROUTERS else picks)
        homes = None if log.session is None else Homes(log.session)
        self._entry: Dispatch[Instance] = Dispatch(
            lambda among, loads: make_router(picks, among, routing, homes, loads),
            self._prompt_tokens if spec.decode else self._all_tokens,
        )
        self._decode: Dispatch[DecodeInstance] = Dispatch(
            lambda among, loads: make_router(decode_picks, among, routing, loads=loads), self._all_tokens
        )
        self.entry = self._enlist(self._entry, spec.entry, self._prefill_instance if spec.decode else self._colocated)
        self.decode = self._enlist(self._decode, spec.decode, self._decode_instance)
        self.share_spines(make_spines(self.link_rates, spec.transfer.oversubscription, spec.transfer.rails))

    # What the cluster is made of

    def _colocated(self, group: GroupSpec, index: int) -> Instance:
        return Instance(self._setup(group, index, self._entry_queues(group.instance)))

    def _prefill_instance(self, group: GroupSpec, index: int) -> PrefillInstance:
        setup = self._setup(group, index, self._entry_queues(group.instance))
        return PrefillInstance(setup, self._hand_over, self._interconnect if self._interconnect.streams else None)

    def _decode_instance(self, group: GroupSpec, index: int) -> DecodeInstance:
        queues = PromptQueues(self._new_queue(), backlog=None if self._backlog is None else deque())
        setup = self._setup(group, index, queues)
        return DecodeInstance(setup, self._interconnect.fetch, self.spec.transfer.staged)

    def _setup(self, group: GroupSpec, index: int, queues: PromptQueues) -> InstanceSetup:
        spec = group.instance
        return InstanceSetup(
            self.env,
            index,
            spec,
            spec.times_of_one(self._draws),
            self.log,
            queues,
            self._finished,
            self._interconnect.make_links(spec) if self.spec.decode else (),
            None if self._recorder is None else self._recorder.observer(self.env, group.name),
        )

    def _entry_queues(self, spec: InstanceSpec) -> PromptQueues:
        """Where an instance of the entry pool takes prompts from: those that fit, where no router looks at its room."""
        kv = spec.kv
        shared = self._shared_queue
        pulls = shared is not None or self._backlog is not None
        unlike = not self.spec.decode and len({group.instance.kv for group in self.spec.entry}) > 1
        return PromptQueues(
            self._new_queue() if shared is None else shared,
            shared is not None,
            self._backlog,
            (lambda request: kv.fits(1, self._all_tokens(request))) if pulls and unlike else None,
        )

    def _new_queue(self) -> Queue[int]:
        return queue_of(self.log.priority, lambda request: request)

    def _enlist(
        self, dispatch: Dispatch[Kind], specs: Sequence[GroupSpec], make: Callable[[GroupSpec, int], Kind]
    ) -> list[Kind]:
        """The instances of a pool, numbered through its groups."""
        made: list[Kind] = []
        groups: list[Group[Kind]] = []
        for spec in specs:
            own = [make(spec, len(made) + i) for i in range(spec.count)]
            for instance in own:
                start(instance)
            made += own
            groups.append(Group(self.env, spec, own, dispatch.review, self._opens, self._dies, self._drains))
            self.groups[spec.name] = groups[-1]
        dispatch.enlist(groups)
        return made

    # What others may ask

    @property
    def link_rates(self) -> dict[KvSource, float]:
        """What the link of each attention rank reaches, of the instances that KV leaves from. [B/s]"""
        sources = [instance for instance in self.entry if isinstance(instance, PrefillInstance)]
        return {instance: self._interconnect.rank_rate(instance.spec) for instance in sources}

    def share_spines(self, spines: Spines) -> None:
        """Let KV that leaves from now on cross these spines, which other clusters may share."""
        self._interconnect.share_spines(spines)

    def set_link_speed(self, instance: Instance, share: float) -> None:
        """Leave the NICs of an instance a share of their rate: 0 takes them down, 1 mends them."""
        self._interconnect.set_speed(instance, share)

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
        return {name: [instance.usage() for instance in group.instances] for name, group in self.groups.items()}

    def parked(self, group: GroupSpec) -> Sized:
        """What waits for any instance of the group's pool to serve."""
        return self._parked if self.spec.is_entry(group) else self._parked_handovers

    def can_compute(self, request: int) -> bool:
        """Whether the KV of prompt and tokens out, which has to be computed anew, fits an instance that could."""
        tokens = self._prompt_tokens(request)
        return any(group.instance.kv.fits(1, tokens) for group in self.spec.entry)

    def _prompt_tokens(self, request: int) -> int:
        """KV that a request needs until it is handed over."""
        return self.log.prompt_tokens[request] + self.log.emitted[request] + 1

    def _all_tokens(self, request: int) -> int:
        """KV that a request needs until its end."""
        return self.log.prompt_tokens[request] + self.log.output_tokens[request]

    # Requests come in and are handed over

    def enter(self, request: int) -> None:
        """Queue a request, or refuse it where the queue is full; where no instance serves it waits for one."""
        if self._backlog is not None and request in self.log.offline:
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
        self._interconnect.drop(instance)
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

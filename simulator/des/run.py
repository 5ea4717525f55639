"""A run of the cluster: source -> router -> instances -> journal, on one SimPy clock."""

from __future__ import annotations

import gc
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import simpy

from simulator.des.admission import hopeless
from simulator.des.autoscale import GroupView, follow_schedule, watch
from simulator.des.dispatch import Dispatch
from simulator.des.faults import FaultInjector, Incident
from simulator.des.fleet import Change, Fleet, Moment
from simulator.des.instance import Handover, Instance
from simulator.des.journal import Journal, Status, Usage
from simulator.des.queues import Queue, queue_of
from simulator.des.recorder import Recorder
from simulator.des.router import Homes, make_router
from simulator.des.scenario import Autoscale
from simulator.des.sources import Source, make_source
from simulator.des.spec import ClusterSpec, GroupSpec
from simulator.des.spines import make_spines
from simulator.des.transfer import Interconnect
from simulator.des.workload import Requests

SHARED_QUEUE = "shared_queue"
CACHE_ROUTERS = ("prefix_aware", "session_affinity")  # pick by what an instance keeps of past prompts
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Snapshot:
    """Usage of every instance, by group, at one moment."""

    time_s: float
    usage: dict[str, list[Usage]]


@dataclass(frozen=True)
class Run:
    """What a finished run left behind.

    streams: whose requests they were, in the order of their numbers.
    incidents: faults in order of their beginning. fleets: how many instances each group had, from when on; changes: the
    state of each of its instances, from when on.
    warmup: requests sent before the first measured one; at least one request is measured. Offline work is not counted.
    opened: taken when the first measured request arrived; closed: when the last request arrived; end: at the end.
    """

    streams: tuple[Requests, ...]
    journal: Journal
    rejections: Counter[str]
    incidents: list[Incident]
    fleets: dict[str, list[Moment]]
    changes: dict[str, list[Change]]
    warmup: int
    opened: Snapshot
    closed: Snapshot
    end: Snapshot


class Cluster:
    """One run through `spec` of the requests of one or several tenants, numbered tenant by tenant.

    `warmup` requests are sent before the first measured one. env: a clock that others share; none: its own.
    """

    def __init__(
        self,
        spec: ClusterSpec,
        requests: Requests | Sequence[Requests],
        rng: np.random.Generator,
        warmup: int = 0,
        progress: Progress | None = None,
        recorder: Recorder | None = None,
        env: simpy.Environment | None = None,
    ) -> None:
        self.env = env = env or simpy.Environment()
        self.spec = spec
        self.streams = (requests,) if isinstance(requests, Requests) else tuple(requests)
        self.journal = journal = Journal(self.streams, rng.spawn(1)[0])
        self._total = len(journal.status)
        self._online = sum(len(stream) for stream in self.streams if not stream.offline)
        self._warmup = max(0, min(warmup, self._online - 1))
        paces = max(len(group.instance.rates) for group in spec.groups)
        if paces > 1:
            journal.pace = journal.rng.integers(paces, size=self._total).tolist()
        self._progress = progress
        self._progress_every = max(1, self._total // 100)
        self._done = 0
        self._sent = 0
        self._rejected, self._reasons = hopeless(spec, journal)
        self.rejections: Counter[str] = Counter()
        shared = spec.router == SHARED_QUEUE
        self._shared_queue = self._new_queue() if shared else None
        backlog: deque[int] | None = deque() if journal.offline else None
        self._backlog = backlog
        picks = "least_loaded" if shared else spec.router
        # No decode instance keeps prefixes.
        decode_picks = spec.decode_router or ("least_loaded" if picks in CACHE_ROUTERS else picks)
        hand_over = self._hand_over if spec.decode else None
        self.links = Interconnect(env, spec.transfer_bytes, spec.transfer, spec.layers)
        homes = None if journal.session is None else Homes(journal.session)
        self.fleets: dict[str, Fleet] = {}

        pulls = shared or backlog is not None  # instances take prompts from where no router has looked at their room
        unlike = not spec.decode and len({group.instance.kv for group in spec.entry}) > 1

        def entry(group: GroupSpec, index: int) -> Instance:
            kv = group.instance.kv
            return Instance(
                env,
                index,
                group.instance,
                journal,
                self._new_queue() if self._shared_queue is None else self._shared_queue,
                self._finish,
                hand_over,
                streams=self.links if hand_over is not None and self.links.streams else None,
                observe=None if recorder is None else recorder.observer(env, group.name),
                backlog=backlog,
                holds=(lambda request: kv.fits(1, self._all_tokens(request))) if pulls and unlike else None,
            )

        def decode(group: GroupSpec, index: int) -> Instance:
            return Instance(
                env,
                index,
                group.instance,
                journal,
                self._new_queue(),
                self._finish,
                fetch=self.links.fetch,
                stages=spec.transfer.staged,
                observe=None if recorder is None else recorder.observer(env, group.name),
                backlog=None if backlog is None else deque(),
            )

        self._entry = Dispatch(
            lambda among: make_router(picks, among, rng, homes),
            self._prompt_tokens if spec.decode else self._all_tokens,
        )
        self.entry = self._enlist(self._entry, spec.entry, entry)
        self.links.spines = make_spines(self.link_rates, spec.transfer.oversubscription, spec.transfer.rails)
        self._decode = Dispatch(lambda among: make_router(decode_picks, among, rng), self._all_tokens)
        self.decode = self._enlist(self._decode, spec.decode, decode)
        self._parked: deque[int] = deque()  # requests and hand-overs while no instance serves
        self._parked_handovers: deque[Handover] = deque()
        self.over = env.event()
        self.entry_delay_s = max(group.instance.times.first_token_extra_s for group in spec.entry)
        self._sources: list[Source] = []
        self._first: list[int] = []  # of each source its first request
        for stream in self.streams:
            self._first.append(sum(map(len, self.streams[: len(self._sources)])))
            self._sources.append(make_source(stream, self._first[-1], self))
        self._feedback = any(stream.arrival_s is None for stream in self.streams)
        self._injector: FaultInjector | None = None
        if spec.faults is not None:
            fleets = {pool[0].pool: [self.fleets[group.name] for group in pool] for pool in spec.pools}
            self._injector = FaultInjector(env, spec.faults, fleets, self.links.set_speed, rng.spawn(1)[0])
        self._ended: list[int] = []  # requests in order of their end, where an autoscaler looks at them
        self._notes_ends = False
        for group in spec.groups:
            if group.autoscale is not None:
                self._autoscale(group, group.autoscale)

    def run(self) -> Run:
        """Play all requests to their end."""
        return play_together([self])[0]

    def start(self) -> None:
        self._opened = self._closed = self._snapshot()
        for source in self._sources:
            source.start()
        assert self.over.callbacks is not None
        self.over.callbacks.append(lambda _: self._end())

    def _end(self) -> None:
        """The last request has ended. What may go on for ever counts no more: faults, autoscaling, timers."""
        if not all(instance.is_empty for instance in (*self.entry, *self.decode)):
            raise AssertionError("KV was left behind")
        self.ended = Run(
            self.streams,
            self.journal,
            self.rejections,
            [] if self._injector is None else list(self._injector.incidents),
            {group: list(fleet.log) for group, fleet in self.fleets.items()},
            {group: list(fleet.changes) for group, fleet in self.fleets.items()},
            self._warmup,
            self._opened,
            self._closed,
            self._snapshot(),
        )

    @property
    def link_rates(self) -> dict[Instance, float]:
        """What the link of each attention rank reaches, of the instances that KV leaves from. [B/s]"""
        if not self.spec.decode:
            return {}
        return {instance: self.spec.transfer.achieved * instance.spec.rank_bandwidth for instance in self.entry}

    # Requests come and go

    def arrive(self, request: int) -> None:
        """Queue a request that was sent `entry_delay_s` ago."""
        self._mark()
        if self._rejected[request]:
            self._refuse(request, self._reasons[self._rejected[request]])
        else:
            self._enter(request)

    def send(self, request: int) -> bool:
        """Take a request that is sent now, which reaches the queue after the entry overhead; False: it is refused."""
        env = self.env
        self.journal.arrival_s[request] = env.now
        self._mark()
        if self._rejected[request]:
            self._refuse(request, self._reasons[self._rejected[request]])
            return False
        timeout = env.timeout(self.entry_delay_s, request)
        assert timeout.callbacks is not None
        timeout.callbacks.append(lambda event: self._enter(event.value))
        return True

    def pile(self, request: int) -> None:
        """Take an offline request, which waits for a gap."""
        self.journal.arrival_s[request] = self.env.now
        if self._rejected[request]:
            self._refuse(request, self._reasons[self._rejected[request]])
        else:
            self._enter(request)

    def _new_queue(self) -> Queue[int]:
        return queue_of(self.journal.priority, lambda request: request)

    def _mark(self) -> None:
        """Count a request that is not offline as sent."""
        if self._sent == self._warmup:
            self._opened = self._snapshot()
        self._sent += 1
        if self._sent == self._online:
            self._closed = self._snapshot()

    def _enter(self, request: int) -> None:
        """Queue a request, or refuse it where the queue is full; where no instance serves it waits for one."""
        if request in self.journal.offline:
            assert self._backlog is not None
            self._backlog.append(request)
            for instance in self._entry.open:
                instance.kick()
            return
        shared = self._shared_queue
        taker = None if shared is not None else self._entry.pick(request)
        if shared is None and taker is None:
            self._parked.append(request)
            return
        takers = self._entry.open if taker is None else [taker]
        queue = shared if taker is None else taker.waiting
        limit = self.spec.max_queue
        assert queue is not None
        if limit is not None and len(queue) >= limit and not any(taker.has_place for taker in takers):
            self._refuse(request, f"the queue was full (max_queue={limit})")
            self._tell_source(request)
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

    def _prompt_tokens(self, request: int) -> int:
        """KV that a request needs until it is handed over."""
        return self.journal.prompt_tokens[request] + self.journal.emitted[request] + 1

    def _all_tokens(self, request: int) -> int:
        """KV that a request needs until its end."""
        return self.journal.prompt_tokens[request] + self.journal.output_tokens[request]

    def _autoscale(self, group: GroupSpec, keys: Autoscale) -> None:
        fleet = self.fleets[group.name]
        if keys.schedule:
            self.env.process(follow_schedule(self.env, fleet, keys))
            return
        if keys.metric == "attainment":
            self._notes_ends = True
        entry = self.spec.is_entry(group)
        journal = self.journal
        numbers = {instance.index for instance in fleet.instances}
        served_by = journal.prefill_instance if entry and self.spec.decode else journal.decode_instance
        limits = self.spec.limits_of(group)

        def limits_of(request: int) -> dict[str, float]:
            """Of a group beside others, those of requests that it has served."""
            if group.label and served_by[request] not in numbers:
                return {}
            return limits[0] if len(limits) == 1 else limits[self._stream_of(request)]

        view = GroupView(fleet, self._parked if entry else self._parked_handovers, journal, self._ended, limits_of)
        self.env.process(watch(self.env, fleet, keys, view, by_steps=entry and bool(self.spec.decode)))

    def _opens(self, instance: Instance) -> None:
        """An instance serves from now on: what waits at the router may go there."""
        parked, handovers = list(self._parked), list(self._parked_handovers)
        if instance in self.entry:
            self._parked.clear()
            for request in parked:
                self._enter(request)
            instance.kick()
        else:
            self._parked_handovers.clear()
            for handover in handovers:
                self._hand_over(handover)

    def _drains(self, instance: Instance) -> None:
        """An instance begins no more prompts: those in its own queue go elsewhere."""
        if instance.waiting is not self._shared_queue:
            for request in instance.unqueue():
                self._enter(request)

    def _dies(self, instance: Instance) -> None:
        """What an instance held is lost: its requests are sent again, KV that it was to fetch goes elsewhere."""
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
        self._retry([*losses.requests, *queued])

    def _retry(self, requests: list[int]) -> None:
        """Send requests again as often as they may; their KV, of prompt and tokens out, has to be computed anew."""
        keys = self.spec.faults
        assert keys is not None
        journal = self.journal
        again = []
        for request in requests:
            tokens = self._prompt_tokens(request)
            journal.retries[request] += 1
            fits = any(group.instance.kv.fits(1, tokens) for group in self.spec.entry)
            if journal.retries[request] > keys.retries or not fits:
                self._close(request, Status.FAILED)
                self._tell_source(request)
            else:
                again.append(request)

        def enter(_: simpy.Event) -> None:
            for request in again:
                self._enter(request)

        if again:
            timeout = self.env.timeout(keys.retry_delay_s)
            assert timeout.callbacks is not None
            timeout.callbacks.append(enter)

    def _refuse(self, request: int, reason: str) -> None:
        self.rejections[reason] += 1
        self._close(request, Status.REJECTED)

    def _finish(self, request: int) -> None:
        self._close(request, Status.FINISHED)
        if self._notes_ends:
            self._ended.append(request)
        if self._feedback:
            self._tell_source(request)

    def _tell_source(self, request: int) -> None:
        self._sources[self._stream_of(request)].ended(request)

    def _stream_of(self, request: int) -> int:
        return bisect_right(self._first, request) - 1

    def _close(self, request: int, status: Status) -> None:
        journal = self.journal
        assert journal.status[request] == 0, f"request {request} ends twice"
        journal.status[request] = status
        journal.finish_s[request] = self.env.now
        self._done += 1
        if self._done == self._total:
            self.over.succeed()
        if self._progress is not None and (self._done % self._progress_every == 0 or self._done == self._total):
            self._progress(self._done, self._total)

    def _snapshot(self) -> Snapshot:
        usage = {name: [instance.usage() for instance in fleet.instances] for name, fleet in self.fleets.items()}
        return Snapshot(self.env.now, usage)


def play_together(clusters: Sequence[Cluster]) -> list[Run]:
    """Play clusters that are on one clock, each to its own end."""
    collects = gc.isenabled()
    gc.disable()  # a run makes no garbage in cycles; looking for it would cost a sixth of the time
    try:
        for cluster in clusters:
            cluster.start()
        for cluster in clusters:
            cluster.env.run(cluster.over)
    finally:
        if collects:
            gc.enable()
    return [cluster.ended for cluster in clusters]

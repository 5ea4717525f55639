"""A run of the cluster: source -> router -> instances -> journal, on one SimPy clock."""

from __future__ import annotations

import gc
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass

import numpy as np
import simpy

from simulator.des.autoscale import PoolView, follow_schedule, watch
from simulator.des.faults import FaultInjector, Incident, nodes_of
from simulator.des.fleet import Change, Fleet, Moment
from simulator.des.instance import Handover, Instance
from simulator.des.journal import Journal, Status, Usage
from simulator.des.queues import Queue, queue_of
from simulator.des.recorder import Recorder, Step
from simulator.des.router import Homes, Router, make_router
from simulator.des.scenario import Autoscale
from simulator.des.sources import Source, make_source
from simulator.des.spec import ClusterSpec, PoolSpec
from simulator.des.transfer import Interconnect, make_spines
from simulator.des.workload import Requests

SHARED_QUEUE = "shared_queue"
CACHE_ROUTERS = ("prefix_aware", "session_affinity")  # pick by what an instance keeps of past prompts
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Snapshot:
    """Usage of every instance, by pool, at one moment."""

    time_s: float
    usage: dict[str, list[Usage]]


@dataclass(frozen=True)
class Run:
    """What a finished run left behind.

    streams: whose requests they were, in the order of their numbers.
    incidents: faults in order of their beginning. fleets: how many instances each pool had, from when on; changes: the
    state of each instance, from when on.
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

    `warmup` requests are sent before the first measured one.
    """

    def __init__(
        self,
        spec: ClusterSpec,
        requests: Requests | Sequence[Requests],
        rng: np.random.Generator,
        warmup: int = 0,
        progress: Progress | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.env = env = simpy.Environment()
        self.spec = spec
        self.streams = (requests,) if isinstance(requests, Requests) else tuple(requests)
        self.journal = journal = Journal(self.streams, rng.spawn(1)[0])
        self._total = len(journal.status)
        self._online = sum(len(stream) for stream in self.streams if not stream.offline)
        self._warmup = max(0, min(warmup, self._online - 1))
        paces = max(len(pool.instance.rates) for pool in spec.pools)
        if paces > 1:
            journal.pace = journal.rng.integers(paces, size=self._total).tolist()
        self._progress = progress
        self._progress_every = max(1, self._total // 100)
        self._done = 0
        self._sent = 0
        self._rejected, self._reasons = _hopeless(spec, journal)
        self.rejections: Counter[str] = Counter()
        shared = spec.router == SHARED_QUEUE
        self._shared_queue = self._new_queue() if shared else None
        backlog: deque[int] | None = deque() if journal.offline else None
        self._backlog = backlog
        picks = "least_loaded" if shared else spec.router
        # No decode instance keeps prefixes.
        decode_picks = spec.decode_router or ("least_loaded" if picks in CACHE_ROUTERS else picks)
        hand_over = None if spec.decode is None else self._hand_over
        spines = make_spines(spec.entry, spec.transfer)
        self.links = Interconnect(env, spec.transfer_bytes, spec.transfer, spec.layers, spines)
        self.entry = [
            Instance(
                env,
                i,
                spec.entry.instance,
                journal,
                self._new_queue() if self._shared_queue is None else self._shared_queue,
                self._finish,
                hand_over,
                streams=self.links if hand_over is not None and self.links.streams else None,
                observe=_observer(recorder, env, spec.entry.name),
                backlog=backlog,
            )
            for i in range(spec.entry.count)
        ]
        homes = None if journal.session is None else Homes(journal.session)
        self.fleets = {spec.entry.name: self._fleet(spec.entry, self.entry, picks, rng, homes)}
        self._entry_fleet = self.fleets[spec.entry.name]
        self.decode: list[Instance] = []
        if spec.decode is not None:
            self.decode = [
                Instance(
                    env,
                    i,
                    spec.decode.instance,
                    journal,
                    self._new_queue(),
                    self._finish,
                    fetch=self.links.fetch,
                    stages=spec.transfer.staged,
                    observe=_observer(recorder, env, spec.decode.name),
                    backlog=None if backlog is None else deque(),
                )
                for i in range(spec.decode.count)
            ]
            self.fleets[spec.decode.name] = self._fleet(spec.decode, self.decode, decode_picks, rng)
            self._decode_fleet = self.fleets[spec.decode.name]
        self._parked: deque[int] = deque()  # requests and hand-overs while no instance serves
        self._parked_handovers: deque[Handover] = deque()
        self._over = env.event()
        self.entry_delay_s = spec.entry.instance.times.first_token_extra_s
        self._sources: list[Source] = []
        self._first: list[int] = []  # of each source its first request
        for stream in self.streams:
            self._first.append(sum(map(len, self.streams[: len(self._sources)])))
            self._sources.append(make_source(stream, self._first[-1], self))
        self._feedback = any(stream.arrival_s is None for stream in self.streams)
        self._injector: FaultInjector | None = None
        if spec.faults is not None:
            self._injector = FaultInjector(
                env,
                spec.faults,
                self.fleets,
                {pool.name: nodes_of(pool.count, pool.instance.gpus, pool.node_gpus) for pool in spec.pools},
                self.links.set_speed,
                rng.spawn(1)[0],
            )
        self._ended: list[int] = []  # requests in order of their end, where an autoscaler looks at them
        self._notes_ends = False
        for pool in spec.pools:
            if pool.autoscale is not None:
                self._autoscale(pool, pool.autoscale)

    def run(self) -> Run:
        """Play all requests to their end."""
        self._opened = self._closed = self._snapshot()
        for source in self._sources:
            source.start()
        collects = gc.isenabled()
        gc.disable()  # a run makes no garbage in cycles; looking for it would cost a sixth of the time
        try:
            # What may go on for ever ends with the last request: faults, autoscaling, timers of transfers sped up.
            self.env.run(self._over)
        finally:
            if collects:
                gc.enable()
        lost = self._done != self._total
        if lost or not all(instance.is_empty for instance in (*self.entry, *self.decode)):
            raise AssertionError(f"{self._total - self._done} requests never ended or KV was left behind")
        return Run(
            self.streams,
            self.journal,
            self.rejections,
            [] if self._injector is None else self._injector.incidents,
            {pool: fleet.log for pool, fleet in self.fleets.items()},
            {pool: fleet.changes for pool, fleet in self.fleets.items()},
            self._warmup,
            self._opened,
            self._closed,
            self._snapshot(),
        )

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
            for instance in self._entry_fleet.open:
                instance.kick()
            return
        shared = self._shared_queue
        taker = None if shared is not None else self._entry_fleet.pick(request)
        if shared is None and taker is None:
            self._parked.append(request)
            return
        takers = self._entry_fleet.open if taker is None else [taker]
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
        taker = self._decode_fleet.pick(handover.request)
        if taker is None:
            self._parked_handovers.append(handover)
        else:
            taker.offer(handover)

    # Instances come and go

    def _fleet(
        self,
        pool: PoolSpec,
        instances: Sequence[Instance],
        picks: str,
        rng: np.random.Generator,
        homes: Homes | None = None,
    ) -> Fleet:
        def route(among: Sequence[Instance]) -> Router:
            return make_router(picks, among, rng, homes)

        count = pool.count if pool.begins_with is None else pool.begins_with
        return Fleet(self.env, instances, count, pool.startup_s, route, self._opens, self._dies, self._drains)

    def _autoscale(self, pool: PoolSpec, keys: Autoscale) -> None:
        fleet = self.fleets[pool.name]
        if keys.schedule:
            self.env.process(follow_schedule(self.env, fleet, keys))
            return
        if keys.metric == "attainment":
            self._notes_ends = True
        entry = pool is self.spec.entry
        queue: Sized = self._parked if entry else self._parked_handovers
        limits = self.spec.limits_of(pool)

        def limits_of(request: int) -> dict[str, float]:
            return limits[0] if len(limits) == 1 else limits[self._stream_of(request)]

        view = PoolView(fleet, (queue,), self.journal, self._ended, limits_of)
        self.env.process(watch(self.env, fleet, keys, view, by_steps=entry and self.spec.decode is not None))

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
            tokens = journal.prompt_tokens[request] + journal.emitted[request]
            journal.retries[request] += 1
            if journal.retries[request] > keys.retries or not self.spec.entry.instance.kv.fits(1, tokens + 1):
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
            self._over.succeed()
        if self._progress is not None and (self._done % self._progress_every == 0 or self._done == self._total):
            self._progress(self._done, self._total)

    def _snapshot(self) -> Snapshot:
        usage = {self.spec.entry.name: [instance.usage() for instance in self.entry]}
        if self.spec.decode is not None:
            usage[self.spec.decode.name] = [instance.usage() for instance in self.decode]
        return Snapshot(self.env.now, usage)


def _observer(
    recorder: Recorder | None, env: simpy.Environment, pool: str
) -> Callable[[Instance, float, float, int, int], None] | None:
    """Writes the steps of a pool's instances to the recorder."""
    if recorder is None:
        return None
    steps = recorder.steps

    def observe(instance: Instance, start_s: float, prefill_s: float, prompt_tokens: int, sequences: int) -> None:
        steps.append(
            Step(
                pool,
                instance.index,
                start_s,
                env.now,
                prefill_s,
                prompt_tokens,
                sequences,
                instance.batch.size,
                instance.waiting_count,
                instance.kv_bytes,
                instance.cached_bytes,
            )
        )

    return observe


def _hopeless(spec: ClusterSpec, journal: Journal) -> tuple[list[int], list[str]]:
    """Per request the index of the reason why it can never be served (0: it can), and the reasons."""
    prompts = np.array(journal.prompt_tokens)
    total = prompts + np.array(journal.output_tokens)
    reasons = [""]
    verdict = np.zeros(len(prompts), dtype=np.int64)

    def refuse(where: np.ndarray, reason: str) -> None:
        reasons.append(reason)
        verdict[where & (verdict == 0)] = len(reasons) - 1

    if spec.max_positions is not None:
        refuse(total > spec.max_positions, f"prompt and output exceed the model's {spec.max_positions:,} positions")
    for pool in spec.pools:
        kv = pool.instance.kv
        needed = total if pool is (spec.decode or spec.entry) else prompts + 1
        room = kv.capacity_bytes - kv.bytes_per_sequence
        refuse(
            kv.bytes_per_sequence + needed * kv.bytes_per_token > kv.capacity_bytes,
            f"its KV never fits on one attention rank of the {pool.name} pool, which has room for "
            f"{max(0, int(min(room / kv.bytes_per_token, 1e18) if kv.bytes_per_token else 0)):,} tokens",
        )
    return verdict.tolist(), reasons

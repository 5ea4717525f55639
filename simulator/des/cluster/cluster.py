"""A run of the cluster: source -> router -> instances -> log, on one SimPy clock."""

from __future__ import annotations

import gc
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy

from simulator.des.cluster.admission import hopeless
from simulator.des.cluster.autoscale import GroupView, follow_schedule, watch
from simulator.des.cluster.faults import FaultInjector, Incident
from simulator.des.cluster.group import Moment, StateChange
from simulator.des.cluster.recorder import Recorder
from simulator.des.cluster.serving import Serving
from simulator.des.cluster.spec import ClusterSpec, GroupSpec
from simulator.des.primitives.clock import Environment
from simulator.des.records.request_log import RequestLog, Status
from simulator.des.records.usage import Usage
from simulator.des.workload.requests import Requests
from simulator.des.workload.sources import Source, make_source
from simulator.scenario import Autoscale, ScenarioError

RequestProgress = Callable[[int, int], None]  # (requests ended, requests in all)
FINISHED = Status.FINISHED  # looked up once: an enum's member costs as much as three calls
# Random faults of each instance or node, in the mean, between two requests that come or end; with more than that no
# instance lives long enough to serve one, and the run would go on for ever.
FAULTS_BETWEEN_REQUESTS = 1000


@dataclass(frozen=True)
class Snapshot:
    """Usage of every instance, by group, at one moment."""

    time_s: float
    usage: dict[str, list[Usage]]


@dataclass(frozen=True)
class Run:
    """What a finished run left behind.

    streams: whose requests they were, in the order of their numbers.
    incidents: faults in order of their beginning. sizes: how many instances each group had, from when on; changes: the
    state of each of its instances, from when on.
    warmup: requests sent before the first measured one; at least one request is measured. Offline work is not counted.
    opened: taken when the first measured request arrived; closed: when the last request arrived; end: at the end.
    """

    streams: tuple[Requests, ...]
    log: RequestLog
    rejections: Counter[str]
    incidents: list[Incident]
    sizes: dict[str, list[Moment]]
    changes: dict[str, list[StateChange]]
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
        progress: RequestProgress | None = None,
        recorder: Recorder | None = None,
        env: Environment | None = None,
    ) -> None:
        self.env = env = env or Environment()
        self.spec = spec
        self.streams = (requests,) if isinstance(requests, Requests) else tuple(requests)
        draws = rng.spawn(1)[0]  # of what instances draw while they run
        self._total = sum(map(len, self.streams))
        paces = max(len(group.instance.rates) for group in spec.groups)
        pace = draws.integers(paces, size=self._total).tolist() if paces > 1 else ()
        self.log = log = RequestLog(self.streams, pace, spec.first_token == "decode")
        self._online = sum(len(stream) for stream in self.streams if not stream.offline)
        self._warmup = max(0, min(warmup, self._online - 1))
        self._progress = progress
        self._recorder = recorder
        self._progress_every = max(1, self._total // 100)
        self._done = 0
        self._sent = 0
        self._outside = 0  # sent, or to be sent again, and not yet queued; without those of clocks
        self._strikes = 0  # random faults since a request last came or ended
        self._rejected, self._reasons = hopeless(spec, log)
        self.rejections: Counter[str] = Counter()
        self.serving = Serving(env, spec, log, rng, draws, self._finish, self._turn_away, self._retry, recorder)
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
            groups = {pool[0].pool: [self.serving.groups[own.name] for own in pool] for pool in spec.pools}
            set_speed = self.serving.set_link_speed
            self._injector = FaultInjector(env, spec.faults, groups, set_speed, rng.spawn(1)[0], self._struck)
        self._ended: list[int] = []  # requests in order of their end, where an autoscaler looks at them
        self._notes_ends = False
        for group in spec.groups:
            if group.autoscale is not None:
                self._autoscale(group, group.autoscale)

    def run(self) -> Run:
        """Play all requests to their end."""
        return play_together([self])[0]

    @property
    def unassigned(self) -> int:
        """Requests under way that no instance has."""
        return self._outside + self.serving.unassigned + sum(source.on_the_way() for source in self._sources)

    def start(self) -> None:
        self._opened = self._closed = self._snapshot()
        if self._recorder is not None:
            self._recorder.begin(self.env, self.serving.groups, lambda: self.unassigned)
        for source in self._sources:
            source.start()
        assert self.over.callbacks is not None
        self.over.callbacks.append(lambda _: self._end())

    def _end(self) -> None:
        """The last request has ended. What may go on for ever counts no more: faults, autoscaling, timers."""
        if not self.serving.is_empty:
            raise AssertionError("KV was left behind")
        if self._recorder is not None:
            self._recorder.end()
        self.ended = Run(
            self.streams,
            self.log,
            self.rejections,
            [] if self._injector is None else list(self._injector.incidents),
            {name: list(group.sizes) for name, group in self.serving.groups.items()},
            {name: list(group.changes) for name, group in self.serving.groups.items()},
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
            self.serving.enter(request)

    def send(self, request: int) -> bool:
        """Take a request that is sent now, which reaches the queue after the entry overhead; False: it is refused."""
        env = self.env
        self.log.arrival_s[request] = env.now
        self._mark()
        if self._rejected[request]:
            self._refuse(request, self._reasons[self._rejected[request]])
            return False
        self._outside += 1
        timeout = env.timeout(self.entry_delay_s, [request])
        assert timeout.callbacks is not None
        timeout.callbacks.append(self._let_in)
        return True

    def _let_in(self, event: simpy.Event) -> None:
        """Queue requests that were sent a while ago."""
        requests: Any = event.value
        self._outside -= len(requests)
        for request in requests:
            self.serving.enter(request)

    def put_offline(self, request: int) -> None:
        """Take an offline request, which waits for a gap."""
        self.log.arrival_s[request] = self.env.now
        if self._rejected[request]:
            self._refuse(request, self._reasons[self._rejected[request]])
        else:
            self.serving.enter(request)

    def _mark(self) -> None:
        """Count a request that is not offline as sent; usage is noted with the first measured one and with the last."""
        self._strikes = 0
        self._sent = sent = self._sent + 1
        if sent == self._warmup + 1:
            self._opened = self._snapshot()
        if sent == self._online:
            self._closed = self._snapshot()

    def _retry(self, requests: list[int]) -> None:
        """Send requests again as often as they may; their KV, of prompt and tokens out, has to be computed anew."""
        keys = self.spec.faults
        assert keys is not None
        log = self.log
        again = []
        for request in requests:
            log.retries[request] += 1
            if log.retries[request] > keys.retries or not self.serving.can_compute(request):
                self._close(request, Status.FAILED)
                self._tell_source(request)
            else:
                again.append(request)

        if again:
            self._outside += len(again)
            timeout = self.env.timeout(keys.retry_delay_s, again)
            assert timeout.callbacks is not None
            timeout.callbacks.append(self._let_in)

    def _refuse(self, request: int, reason: str) -> None:
        self.rejections[reason] += 1
        self._close(request, Status.REJECTED)

    def _turn_away(self, request: int, reason: str) -> None:
        """Its queue is full. One that was let in before and lost to a fault was not refused: it has failed."""
        if self.log.retries[request]:
            self._close(request, Status.FAILED)
        else:
            self._refuse(request, reason)
        self._tell_source(request)

    def _finish(self, request: int) -> None:
        self._close(request, FINISHED)
        if self._notes_ends:
            self._ended.append(request)
        if self._feedback:
            self._tell_source(request)

    def _tell_source(self, request: int) -> None:
        self._sources[self._stream_of(request)].ended(request)

    def _stream_of(self, request: int) -> int:
        return bisect_right(self._first, request) - 1

    def _close(self, request: int, status: Status) -> None:
        log = self.log
        assert log.status[request] == 0, f"request {request} ends twice"
        log.status[request] = status
        log.finish_s[request] = self.env.now
        self._done = done = self._done + 1
        self._strikes = 0
        is_last = done == self._total
        if is_last:
            self.over.succeed()
        if self._progress is not None and (is_last or done % self._progress_every == 0):
            self._progress(done, self._total)

    def _struck(self) -> None:
        """A random fault took instances down. Refuse to wait for ever where requests are open that none will serve."""
        assert self._injector is not None
        self._strikes += 1
        open_now = self._sent + len(self.log.offline) - self._done
        if open_now > 0 and self._strikes > FAULTS_BETWEEN_REQUESTS * self._injector.killers:
            raise ScenarioError(
                f"[deployment.faults] leaves no instance up long enough to end a request: none has ended for "
                f"{self._strikes:,} faults, {self._total - self._done:,} of {self._total:,} are left; raise mtbf_s, or "
                "shorten mttr_s or [deployment.startup]"
            )

    def _snapshot(self) -> Snapshot:
        return Snapshot(self.env.now, self.serving.usage())

    def _autoscale(self, group: GroupSpec, keys: Autoscale) -> None:
        own = self.serving.groups[group.name]
        if keys.schedule:
            self.env.process(follow_schedule(self.env, own, keys))
            return
        if keys.metric == "attainment":
            self._notes_ends = True
        prefills = self.spec.is_entry(group) and bool(self.spec.decode)
        log = self.log
        numbers = {instance.index for instance in own.instances}
        served_by = log.prefill_instance if prefills else log.decode_instance
        limits = self.spec.limits_of(group)
        decodes_first = log.first_from_decode and not prefills

        def limits_of(request: int) -> dict[str, float]:
            """Of a group beside others, those of requests that it has served. A first token is not late by decode where
            its prompt was not in time."""
            if group.label and served_by[request] not in numbers:
                return {}
            mine = limits[0] if len(limits) == 1 else limits[self._stream_of(request)]
            if decodes_first and log.prompt_end_s[request] - log.arrival_s[request] > mine.get("ttft_s", math.inf):
                return {name: limit for name, limit in mine.items() if name != "ttft_s"}
            return mine

        first_s = log.prompt_end_s if prefills else log.first_token_s
        view = GroupView(own, self.serving.parked(group), log, self._ended, first_s, limits_of)
        self.env.process(watch(self.env, own, keys, view, by_steps=prefills))


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

"""A run of the cluster: source -> router -> instances -> journal, on one SimPy clock."""

from __future__ import annotations

import gc
from collections import Counter, deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy

from simulator.des.instance import Handover, Instance
from simulator.des.journal import Journal, Status, Usage
from simulator.des.recorder import Recorder, Step
from simulator.des.router import make_router
from simulator.des.spec import ClusterSpec
from simulator.des.transfer import Interconnect
from simulator.des.workload import Requests

SHARED_QUEUE = "shared_queue"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Snapshot:
    """Usage of every instance, by pool, at one moment."""

    time_s: float
    usage: dict[str, list[Usage]]


@dataclass(frozen=True)
class Run:
    """What a finished run left behind.

    warmup: requests before the first measured one; at least one request is measured.
    opened: taken when the first measured request arrived; closed: when the last request arrived; end: at the end.
    """

    journal: Journal
    rejections: Counter[str]
    warmup: int
    opened: Snapshot
    closed: Snapshot
    end: Snapshot


class Cluster:
    """One run of `requests` through `spec`. `warmup` requests come before the first measured one."""

    def __init__(
        self,
        spec: ClusterSpec,
        requests: Requests,
        rng: np.random.Generator,
        warmup: int = 0,
        progress: Progress | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.env = env = simpy.Environment()
        self.spec = spec
        self.requests = requests
        self.journal = journal = Journal(requests, rng.spawn(1)[0])
        paces = max(len(pool.instance.rates) for pool in spec.pools)
        if paces > 1:
            journal.pace = journal.rng.integers(paces, size=len(requests)).tolist()
        self._warmup = min(warmup, len(requests) - 1)
        self._progress = progress
        self._progress_every = max(1, len(requests) // 100)
        self._done = 0
        self._sent = 0
        self._rejected, self._reasons = _hopeless(spec, requests)
        self.rejections: Counter[str] = Counter()
        shared = spec.router == SHARED_QUEUE
        self._shared_queue: deque[int] | None = deque() if shared else None
        picks = "least_loaded" if shared else spec.router
        # No decode instance keeps prefixes.
        decode_picks = "least_loaded" if picks == "prefix_aware" else picks
        hand_over = None if spec.decode is None else self._hand_over
        total_bandwidth = spec.entry.gpus * spec.entry.instance.nic_bandwidth
        self.links = Interconnect(env, spec.transfer_bytes, spec.transfer, spec.layers, total_bandwidth)
        self.entry = [
            Instance(
                env,
                i,
                spec.entry.instance,
                journal,
                deque() if self._shared_queue is None else self._shared_queue,
                self._finish,
                hand_over,
                streams=self.links if hand_over is not None and self.links.streams else None,
                observe=_observer(recorder, env, spec.entry.name),
            )
            for i in range(spec.entry.count)
        ]
        self._pick_entry = make_router(picks, self.entry, rng)
        self.decode: list[Instance] = []
        if spec.decode is not None:
            self.decode = [
                Instance(
                    env,
                    i,
                    spec.decode.instance,
                    journal,
                    deque(),
                    self._finish,
                    fetch=self.links.fetch,
                    observe=_observer(recorder, env, spec.decode.name),
                )
                for i in range(spec.decode.count)
            ]
            self._pick_decode = make_router(decode_picks, self.decode, rng)
        self._over = env.event()
        self._entry_delay_s = spec.entry.instance.times.first_token_extra_s

    def run(self) -> Run:
        """Play all requests to their end."""
        self._opened = self._closed = self._snapshot()
        if self.requests.arrival_s is not None:
            self.env.process(self._arrivals())
        else:
            assert self.requests.concurrency is not None
            for _ in range(min(self.requests.concurrency, len(self.requests))):
                self._send_next()
        collects = gc.isenabled()
        gc.disable()  # a run makes no garbage in cycles; looking for it would cost a sixth of the time
        try:
            self.env.run(self._over)  # timers may be left of transfers that were sped up
        finally:
            if collects:
                gc.enable()
        lost = self._done != len(self.requests)
        if lost or not all(instance.is_empty for instance in (*self.entry, *self.decode)):
            raise AssertionError(f"{len(self.requests) - self._done} requests never ended or KV was left behind")
        return Run(self.journal, self.rejections, self._warmup, self._opened, self._closed, self._snapshot())

    # Requests come and go

    def _arrivals(self) -> Generator[simpy.Event, Any, None]:
        """Open loop: send each request at its time, which reaches the queue after the entry overhead."""
        env = self.env
        extra = self._entry_delay_s
        for request, arrival_s in enumerate(self.journal.arrival_s):
            delay = arrival_s + extra - env.now
            if delay > 0:
                yield env.timeout(delay)
            self._mark(request)
            if self._rejected[request]:
                self._refuse(request, self._reasons[self._rejected[request]])
            else:
                self._enter(request)

    def _send_next(self) -> None:
        """Closed loop: a client sends its next request; refused ones end at once and the client goes on."""
        env = self.env
        while self._sent < len(self.requests):
            request = self._sent
            self._sent += 1
            self.journal.arrival_s[request] = env.now
            self._mark(request)
            if not self._rejected[request]:
                timeout = env.timeout(self._entry_delay_s, request)
                assert timeout.callbacks is not None
                timeout.callbacks.append(lambda event: self._enter(event.value))
                return
            self._refuse(request, self._reasons[self._rejected[request]])

    def _mark(self, request: int) -> None:
        if request == self._warmup:
            self._opened = self._snapshot()
        if request == len(self.requests) - 1:
            self._closed = self._snapshot()

    def _enter(self, request: int) -> None:
        """Queue a request, or refuse it where the queue is full."""
        shared = self._shared_queue
        takers = self.entry if shared is not None else [self.entry[self._pick_entry(request)]]
        limit = self.spec.max_queue
        if limit is not None and len(takers[0].waiting) >= limit and not any(taker.has_place for taker in takers):
            self._refuse(request, f"the queue was full (max_queue={limit})")
            if self.requests.concurrency is not None:
                self._send_next()
        elif shared is None:
            takers[0].enqueue(request)
        else:
            shared.append(request)
            for taker in takers:
                taker.kick()

    def _hand_over(self, handover: Handover) -> None:
        self.decode[self._pick_decode(handover.request)].offer(handover)

    def _refuse(self, request: int, reason: str) -> None:
        self.rejections[reason] += 1
        self._close(request, Status.REJECTED)

    def _finish(self, request: int) -> None:
        self._close(request, Status.FINISHED)
        if self.requests.concurrency is not None:
            self._send_next()

    def _close(self, request: int, status: Status) -> None:
        journal = self.journal
        assert journal.status[request] == 0, f"request {request} ends twice"
        journal.status[request] = status
        journal.finish_s[request] = self.env.now
        self._done += 1
        total = len(self.requests)
        if self._done == total:
            self._over.succeed()
        if self._progress is not None and (self._done % self._progress_every == 0 or self._done == total):
            self._progress(self._done, total)

    def _snapshot(self) -> Snapshot:
        usage = {self.spec.entry.name: [instance.usage() for instance in self.entry]}
        if self.spec.decode is not None:
            usage[self.spec.decode.name] = [instance.usage() for instance in self.decode]
        return Snapshot(self.env.now, usage)


def _observer(
    recorder: Recorder | None, env: simpy.Environment, pool: str
) -> Callable[[Instance, float, int, int], None] | None:
    """Writes the steps of a pool's instances to the recorder."""
    if recorder is None:
        return None
    steps = recorder.steps

    def observe(instance: Instance, start_s: float, prompt_tokens: int, sequences: int) -> None:
        steps.append(
            Step(
                pool,
                instance.index,
                start_s,
                env.now,
                prompt_tokens,
                sequences,
                instance.batch.size,
                instance.waiting_count,
                instance.kv_bytes,
            )
        )

    return observe


def _hopeless(spec: ClusterSpec, requests: Requests) -> tuple[list[int], list[str]]:
    """Per request the index of the reason why it can never be served (0: it can), and the reasons."""
    total = requests.prompt_tokens + requests.output_tokens
    reasons = [""]
    verdict = np.zeros(len(requests), dtype=np.int64)

    def refuse(where: np.ndarray, reason: str) -> None:
        reasons.append(reason)
        verdict[where & (verdict == 0)] = len(reasons) - 1

    if spec.max_positions is not None:
        refuse(total > spec.max_positions, f"prompt and output exceed the model's {spec.max_positions:,} positions")
    for pool in spec.pools:
        kv = pool.instance.kv
        needed = total if pool is (spec.decode or spec.entry) else requests.prompt_tokens + 1
        room = kv.capacity_bytes - kv.bytes_per_sequence
        refuse(
            kv.bytes_per_sequence + needed * kv.bytes_per_token > kv.capacity_bytes,
            f"its KV never fits on one attention rank of the {pool.name} pool, which has room for "
            f"{max(0, int(min(room / kv.bytes_per_token, 1e18) if kv.bytes_per_token else 0)):,} tokens",
        )
    return verdict.tolist(), reasons

"""A yardstick for `benchmarks.des`: the same requests in plain SimPy, one event a decode step and no mechanism at all.

Prefill servers take one prompt at a time, a hand-over is a delay, and a decode step takes a constant time whatever
its batch. No KV, no caches, no records, no step times from ops: what is left is what SimPy itself costs. Its seconds
tell how fast a machine is at the moment, and the ratio of the cluster model to them depends less on that.
"""

from __future__ import annotations

import gc
import heapq
import time
from collections import deque
from collections.abc import Generator
from typing import Any

import simpy

from simulator.des.workload.requests import Requests

# Chosen near what the cluster model of `benchmarks.des` gives, so that both take about as many steps a request.
DECODE_STEP_S = 0.032
PREFILL_S_PER_TOKEN = 25e-6
TRANSFER_S_PER_TOKEN = 0.2e-6
SERVERS = 8  # for prefill, and as many for decode

_Process = Generator[simpy.Event, Any, None]


def cpu_s(requests: Requests) -> float:
    """CPU seconds it takes to serve `requests` to the last token, the garbage collector off as in the cluster model."""
    gc.disable()
    try:
        start = time.process_time()
        served = _serve(requests)
        taken = time.process_time() - start
    finally:
        gc.enable()
    assert served == len(requests)
    return taken


def _serve(requests: Requests) -> int:
    """How many requests reached their last token."""
    clock = simpy.Environment()
    waiting = simpy.Store(clock)
    prompts, outputs = requests.prompt_tokens.tolist(), requests.output_tokens.tolist()
    assert requests.arrival_s is not None
    arrivals_s = requests.arrival_s.tolist()
    servers = [_DecodeServer(clock, outputs) for _ in range(SERVERS)]

    def arrivals() -> _Process:
        for index, at_s in enumerate(arrivals_s):
            yield clock.timeout(max(0.0, at_s - clock.now))
            waiting.put(index)

    def prefill() -> _Process:
        while True:
            index = yield waiting.get()
            yield clock.timeout(PREFILL_S_PER_TOKEN * prompts[index])
            arrived = clock.timeout(TRANSFER_S_PER_TOKEN * prompts[index], index)
            arrived.callbacks.append(servers[index % SERVERS].take)

    clock.process(arrivals())
    for _ in range(SERVERS):
        clock.process(prefill())
    clock.run()
    return sum(server.served for server in servers)


class _DecodeServer:
    """Running sequences in a heap by the step that ends them."""

    def __init__(self, clock: simpy.Environment, outputs: list[int]) -> None:
        self.clock, self.outputs = clock, outputs
        self.arrived: deque[int] = deque()
        self.idle: simpy.Event | None = None
        self.served = 0
        clock.process(self._run())

    def take(self, arrived: simpy.Event) -> None:
        self.arrived.append(arrived.value)
        if self.idle is not None:
            self.idle.succeed()
            self.idle = None

    def _run(self) -> _Process:
        step, ends, arrived = 0, list[int](), self.arrived
        while True:
            while arrived:
                heapq.heappush(ends, step + self.outputs[arrived.popleft()])
            if not ends:
                self.idle = self.clock.event()
                yield self.idle
                continue
            yield self.clock.timeout(DECODE_STEP_S)
            step += 1
            while ends and ends[0] <= step:
                heapq.heappop(ends)
                self.served += 1

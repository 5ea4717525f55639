"""A prefill and a decode engine side by side on virtual clocks: what two machines would do, on one.

Each engine has its own clock, which its measured step durations advance; whichever is behind goes next. The cache of
a prefilled request is really written out and read in: writing delays its arrival, reading is part of the decode step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from calibration.microbench.timer import clock_of
from calibration.microbench.virtual_clock import ReplayedRequests, TimedStep, VirtualReplay, timed_step

if TYPE_CHECKING:
    from runtime.engine import Engine, Importer
    from runtime.executor import Executor
    from runtime.handover import Handover
    from runtime.trace import TraceRequest

FOREVER = float("inf")


@dataclass(frozen=True)
class Delivery:
    """A prefilled request on its way: when it reaches the decode engine, its first token, where its cache lies."""

    at_s: float
    name: str
    token: int
    written: Handover


class Pair:
    """Traffic through a prefill and a decode engine."""

    def __init__(self, prefill: Engine, decode: Engine, trace: Sequence[TraceRequest], seed: int = 0) -> None:
        self.prefill, self.decode = prefill, decode
        self.requests = ReplayedRequests(trace, prefill.vocab_size, seed)
        self._delivered: deque[Delivery] = deque()
        self._prefill_s = self._decode_s = 0.0

    @property
    def done(self) -> bool:
        return self.requests.done

    def step(self) -> TimedStep:
        prefill_at = max(self._prefill_s, 0.0 if self.prefill.has_work else self.requests.next_arrival_s)
        next_delivery_s = self._delivered[0].at_s if self._delivered else FOREVER
        decode_at = max(self._decode_s, 0.0 if self.decode.has_work else next_delivery_s)
        step = self._step_prefill(prefill_at) if prefill_at <= decode_at else self._step_decode(decode_at)
        self.requests.steps.append(step)
        return step

    def result(self) -> VirtualReplay:
        self.close()
        for name in self.requests.under_way:
            self.prefill.abort(name)
            self.decode.abort(name)
        return self.requests.result()

    def close(self) -> None:
        """Remove what is in shared memory: caches on their way, or waiting to be read."""
        from runtime import handover

        for name in self.requests.under_way:
            handover.remove(_segment(name))

    def _step_prefill(self, at_s: float) -> TimedStep:
        for request in self.requests.arrived(at_s):
            self.prefill.add_request(request, prefill_only=True)
        events, step = timed_step(self.prefill, at_s)
        self._prefill_s = at_s + step.duration_s
        self.requests.note(events, self._prefill_s)
        for event in events:
            if event.output is None:
                assert event.token_id is not None
                written, seconds = _write_out(self.prefill, event.request_id)
                self._delivered.append(Delivery(self._prefill_s + seconds, event.request_id, event.token_id, written))
        return step

    def _step_decode(self, at_s: float) -> TimedStep:
        while self._delivered and self._delivered[0].at_s <= at_s:
            delivery = self._delivered.popleft()
            continued = replace(self.requests.requests[delivery.name], output_token_ids=(delivery.token,))
            self.decode.add_request(continued, importer=_importer(delivery.written))
        events, step = timed_step(self.decode, at_s)
        self._decode_s = at_s + step.duration_s
        self.requests.note(events, self._decode_s)
        return step


def _segment(name: str) -> str:
    """Shared memory that holds the cache of request `name`."""
    from runtime import handover

    return f"{handover.segment_prefix('virtual')}-{name}"


def _write_out(engine: Engine, name: str) -> tuple[Handover, float]:
    clock = clock_of(engine.device)
    begin_s = clock()
    written = engine.write_out(name, _segment(name))
    seconds = clock() - begin_s
    engine.abort(name)
    return written, seconds


def _importer(source: Handover) -> Importer:
    from runtime import handover

    def fill(target: Executor, block_ids: Sequence[int], slot: int) -> int:
        try:
            return target.import_from(source, block_ids, slot)
        finally:
            handover.remove(source.segment)

    return fill

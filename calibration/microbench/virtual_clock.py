"""Traffic through a real engine on a clock that counts step durations alone: idle time is skipped, nothing waits.

A request whose time has come when a step ends is in the next step's queue, as in `simulator.des`. Durations are those
of `engine.step()` by `timer.clock_of`, scheduling and bookkeeping included.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from calibration.microbench.measurement import EngineStep
from calibration.microbench.timer import clock_of

if TYPE_CHECKING:
    from runtime.engine import Engine
    from runtime.sequence import Request, TokenEvent
    from runtime.trace import TraceRequest


WARM_UP_REQUESTS = 4  # enough that steps of several batch sizes come by (assumed)
WARM_UP_STEPS = 8  # that find what is compiled, allocated or cached on first use (assumed)


@dataclass(frozen=True)
class TimedStep:
    """One step: when it began on the virtual clock, how long it took, what it computed."""

    start_s: float
    duration_s: float
    shape: EngineStep


@dataclass(frozen=True)
class VirtualReplay:
    """Times of each finished request in order of arrival, on the virtual clock. [s]"""

    arrival_s: tuple[float, ...]
    first_token_s: tuple[float, ...]
    finish_s: tuple[float, ...]
    output_tokens: tuple[int, ...]
    steps: tuple[TimedStep, ...]


class Playback(Protocol):
    """Traffic on its way through one or more engines, a step at a time."""

    @property
    def done(self) -> bool: ...

    def step(self) -> TimedStep:
        """Run the next step of whichever engine is next in time."""

    def result(self) -> VirtualReplay:
        """What has finished; what is under way is dropped."""

    def close(self) -> None:
        """Leave nothing behind, whatever happened."""


class OneEngine:
    """Traffic through one engine."""

    def __init__(self, engine: Engine, trace: Sequence[TraceRequest], seed: int = 0) -> None:
        self.engine = engine
        self.requests = ReplayedRequests(trace, engine.vocab_size, seed)
        self._clock_s = 0.0

    @property
    def done(self) -> bool:
        return self.requests.done

    def step(self) -> TimedStep:
        if not self.engine.has_work:
            self._clock_s = max(self._clock_s, self.requests.next_arrival_s)
        for request in self.requests.arrived(self._clock_s):
            self.engine.add_request(request)
        events, step = timed_step(self.engine, self._clock_s)
        self._clock_s += step.duration_s
        self.requests.note(events, self._clock_s)
        self.requests.steps.append(step)
        return step

    def result(self) -> VirtualReplay:
        for name in self.requests.under_way:
            self.engine.abort(name)
        return self.requests.result()

    def close(self) -> None:
        """The engine is another's to close."""


class ReplayedRequests:
    """Requests of a trace, and when each arrived, got its first token and finished."""

    def __init__(self, trace: Sequence[TraceRequest], vocab_size: int, seed: int) -> None:
        from runtime.sequence import Request, SamplingParams
        from runtime.trace import prompt_tokens

        self.trace = trace
        self.requests: dict[str, Request] = {}
        for i, item in enumerate(trace):
            sampling = SamplingParams(item.output_tokens, seed=seed, ignore_eos=True)
            name = f"virtual-{seed}-{i}"
            self.requests[name] = Request(name, prompt_tokens(item, i, vocab_size, seed), sampling, item.arrival_s)
        self.names = tuple(self.requests)
        self.steps: list[TimedStep] = []
        self._first_s: dict[str, float] = {}
        self._finish_s: dict[str, float] = {}
        self._sent = 0

    @property
    def done(self) -> bool:
        return len(self._finish_s) == len(self.names)

    @property
    def next_arrival_s(self) -> float:
        return self.trace[self._sent].arrival_s if self._sent < len(self.trace) else float("inf")

    @property
    def under_way(self) -> list[str]:
        return [name for name in self.names[: self._sent] if name not in self._finish_s]

    def arrived(self, clock_s: float) -> list[Request]:
        """Requests whose time has come, once each."""
        before = self._sent
        while self.next_arrival_s <= clock_s:
            self._sent += 1
        return [self.requests[name] for name in self.names[before : self._sent]]

    def note(self, events: Sequence[TokenEvent], clock_s: float) -> None:
        for event in events:
            if event.token_id is not None:
                self._first_s.setdefault(event.request_id, clock_s)
            if event.output is not None:
                self._finish_s[event.request_id] = clock_s

    def result(self) -> VirtualReplay:
        done = [i for i, name in enumerate(self.names) if name in self._finish_s]
        return VirtualReplay(
            tuple(self.trace[i].arrival_s for i in done),
            tuple(self._first_s[self.names[i]] for i in done),
            tuple(self._finish_s[self.names[i]] for i in done),
            tuple(self.trace[i].output_tokens for i in done),
            tuple(self.steps),
        )


def timed_step(engine: Engine, start_s: float) -> tuple[list[TokenEvent], TimedStep]:
    """One step of an engine that begins at `start_s` of its virtual clock."""
    clock = clock_of(engine.device)
    begin_s = clock()
    events = engine.step()
    seconds = clock() - begin_s
    record = engine.step_records[-1]
    return events, TimedStep(start_s, seconds, EngineStep(record.prefills, record.decode_contexts))


def replay(
    playback: Playback, until_steps: int | None = None, limit_s: float = math.inf, at_least: int = 0
) -> VirtualReplay:
    """Play to the end, or for `until_steps` steps, or until `limit_s` of real time are over and `at_least` made."""
    made, end_s = 0, time.monotonic() + limit_s
    with contextlib.closing(playback):
        while not playback.done and (until_steps is None or made < until_steps):
            if made >= at_least and time.monotonic() > end_s:
                break
            playback.step()
            made += 1
        return playback.result()


def warm_up(engine: Engine, trace: Sequence[TraceRequest], limit_s: float = math.inf, seed: int = 0) -> None:
    """A few steps that nobody counts, one at least."""
    replay(OneEngine(engine, trace, seed), WARM_UP_STEPS, limit_s, at_least=1)

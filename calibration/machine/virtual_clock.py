"""Traffic through a real engine on a clock that counts step durations alone: idle time is skipped, nothing waits.

A request whose time has come when a step ends is in the next step's queue, as in `simulator.des`. Durations are those
of `engine.step()` as measured, scheduling and bookkeeping included, or what a given function says.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from calibration.machine.measurement import StepShape

if TYPE_CHECKING:
    from runtime.engine import Engine
    from runtime.trace import TraceRequest

Duration = Callable[[StepShape], float]


@dataclass(frozen=True)
class Step:
    """One step: when it began on the virtual clock, how long it took, what it computed."""

    start_s: float
    duration_s: float
    shape: StepShape


@dataclass(frozen=True)
class VirtualReplay:
    """Times of each request in order of arrival, on the virtual clock. [s]"""

    arrival_s: tuple[float, ...]
    first_token_s: tuple[float, ...]
    finish_s: tuple[float, ...]
    output_tokens: tuple[int, ...]
    steps: tuple[Step, ...]


def replay(
    engine: Engine,
    trace: Sequence[TraceRequest],
    seed: int = 0,
    duration: Duration | None = None,
    until_steps: int | None = None,
    between: Callable[[int], None] | None = None,
) -> VirtualReplay:
    """Play `trace` to its end, or for `until_steps` steps (what is under way is then dropped).

    duration: seconds of a step instead of the measured ones. between: called with the number of steps so far, off
    the clock.
    """
    from runtime.sequence import Request, SamplingParams
    from runtime.trace import prompt_tokens

    first: dict[str, float] = {}
    finish: dict[str, float] = {}
    steps: list[Step] = []
    clock_s, sent = 0.0, 0
    names = [f"virtual-{i}" for i in range(len(trace))]
    while len(finish) < len(trace) and (until_steps is None or len(steps) < until_steps):
        while sent < len(trace) and trace[sent].arrival_s <= clock_s:
            item = trace[sent]
            sampling = SamplingParams(item.output_tokens, seed=seed, ignore_eos=True)
            prompt = prompt_tokens(item, sent, engine.vocab_size, seed)
            engine.add_request(Request(names[sent], prompt, sampling, item.arrival_s))
            sent += 1
        if not engine.has_work:
            clock_s = trace[sent].arrival_s
            continue
        begin_s = time.perf_counter()
        events = engine.step()
        measured_s = time.perf_counter() - begin_s
        record = engine.step_records[-1]
        shape = StepShape(record.prefills, record.decode_contexts)
        step_s = measured_s if duration is None else duration(shape)
        steps.append(Step(clock_s, step_s, shape))
        clock_s += step_s
        for event in events:
            if event.token_id is not None:
                first.setdefault(event.request_id, clock_s)
            if event.output is not None:
                finish[event.request_id] = clock_s
        if between is not None:
            between(len(steps))
    for name in names[:sent]:
        engine.abort(name)
    done = [i for i, name in enumerate(names) if name in finish]
    return VirtualReplay(
        tuple(trace[i].arrival_s for i in done),
        tuple(first[names[i]] for i in done),
        tuple(finish[names[i]] for i in done),
        tuple(trace[i].output_tokens for i in done),
        tuple(steps),
    )

"""A prefill and a decode engine side by side on virtual clocks: what two machines would do, on one.

Each engine has its own clock, which its measured step durations advance; whichever is behind goes next. The cache of
a prefilled request is really written out and read in: writing delays its arrival, reading is part of the decode step.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from calibration.machine.measurement import StepShape
from calibration.machine.virtual_clock import Step, VirtualReplay

if TYPE_CHECKING:
    from runtime.cache import KVCache
    from runtime.engine import Engine, Importer
    from runtime.handover import Handover
    from runtime.sequence import Request, TokenEvent
    from runtime.trace import TraceRequest

FOREVER = float("inf")


def replay_pair(
    prefill: Engine,
    decode: Engine,
    trace: Sequence[TraceRequest],
    seed: int = 0,
    between: Callable[[int], None] | None = None,
) -> VirtualReplay:
    """Play `trace` to its end. between: called with the number of steps so far, off the clocks."""
    from runtime.sequence import Request, SamplingParams
    from runtime.trace import prompt_tokens

    names = [f"pair-{i}" for i in range(len(trace))]
    requests: dict[str, Request] = {}
    for i, item in enumerate(trace):
        sampling = SamplingParams(item.output_tokens, seed=seed, ignore_eos=True)
        prompt = prompt_tokens(item, i, prefill.vocab_size, seed)
        requests[names[i]] = Request(names[i], prompt, sampling, item.arrival_s)
    first: dict[str, float] = {}
    finish: dict[str, float] = {}
    delivered: deque[tuple[float, str, int, Handover]] = deque()  # when, request, first token, where its cache lies
    steps: list[Step] = []
    prefill_s = decode_s = 0.0
    sent = 0
    while len(finish) < len(trace):
        next_arrival = trace[sent].arrival_s if sent < len(trace) else FOREVER
        prefill_at = prefill_s if prefill.has_work else max(prefill_s, next_arrival)
        decode_at = decode_s if decode.has_work else max(decode_s, delivered[0][0] if delivered else FOREVER)
        if prefill_at <= decode_at:
            while sent < len(trace) and trace[sent].arrival_s <= prefill_at:
                prefill.add_request(requests[names[sent]], prefill_only=True)
                sent += 1
            events, step = _step(prefill, prefill_at)
            prefill_s = prefill_at + step.duration_s
            for event in events:
                name = event.request_id
                first[name] = prefill_s
                if event.output is not None:
                    finish[name] = prefill_s
                    continue
                assert event.token_id is not None
                written, seconds = _write_out(prefill, name)
                delivered.append((prefill_s + seconds, name, event.token_id, written))
        else:
            while delivered and delivered[0][0] <= decode_at:
                _, name, token, written = delivered.popleft()
                decode.add_request(_continued(requests[name], token), importer=_importer(written))
            events, step = _step(decode, decode_at)
            decode_s = decode_at + step.duration_s
            finish |= {event.request_id: decode_s for event in events if event.output is not None}
        steps.append(step)
        if between is not None:
            between(len(steps))
    return VirtualReplay(
        tuple(item.arrival_s for item in trace),
        tuple(first[name] for name in names),
        tuple(finish[name] for name in names),
        tuple(item.output_tokens for item in trace),
        tuple(steps),
    )


def _step(engine: Engine, start_s: float) -> tuple[list[TokenEvent], Step]:
    begin_s = time.perf_counter()
    events = engine.step()
    seconds = time.perf_counter() - begin_s
    record = engine.step_records[-1]
    return events, Step(start_s, seconds, StepShape(record.prefills, record.decode_contexts))


def _continued(request: Request, token: int) -> Request:
    from dataclasses import replace

    return replace(request, output_token_ids=(token,))


def _write_out(engine: Engine, name: str) -> tuple[Handover, float]:
    from runtime import handover

    begin_s = time.perf_counter()
    written = handover.write(f"moeplan-virtual-{os.getpid()}-{name}", engine.export(name))
    seconds = time.perf_counter() - begin_s
    engine.abort(name)
    return written, seconds


def _importer(source: Handover) -> Importer:
    from runtime import handover

    def fill(cache: KVCache, block_ids: Sequence[int], slot: int) -> int:
        try:
            with handover.opened(source) as tensors:
                cache.import_blocks(block_ids, slot, tensors)
        finally:
            handover.remove(source.segment)
        return source.num_bytes

    return fill

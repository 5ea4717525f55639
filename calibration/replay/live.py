"""A workload through the real engine in real time: colocated, or as prefill and decode processes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from calibration.microbench import models
from calibration.replay.subject import Form, Subject
from calibration.replay.traffic import ReplayTraffic, trace_of
from calibration.replay.twin import Times

if TYPE_CHECKING:
    from runtime.backend import Backend
    from runtime.bench import Replay
    from runtime.engine import StepRecord


class ValidationError(ValueError):
    """A validation that cannot run; the message says why."""


@dataclass(frozen=True)
class Replayed:
    """Times of the requests, and every step that was made. core_share: of a core, what the one thread that computes
    had during steps; None where others compute."""

    times: Times
    steps: list[StepRecord]
    core_share: float | None


def replay(
    subject: Subject, form: Form, traffic: ReplayTraffic, seed: int, progress: Callable[[int, int], None] | None = None
) -> Replayed:
    """The workload through the real engine, on the wall clock."""
    from runtime.bench import replay as run
    from runtime.bench import warm_up

    backend = _backend(subject, form)
    with contextlib.closing(backend):
        warm_up(backend, 2)
        begin_s = time.thread_time()
        result = run(backend, trace_of(traffic), seed=seed, progress=progress)
        computed_s = time.thread_time() - begin_s
    steps: list[StepRecord] = []
    records: Any = backend.step_records  # type: ignore[attr-defined]
    for one in records.values() if isinstance(records, dict) else [records]:
        steps += [step for step in one if step.start_s >= result.start_s]
    share = None
    if form == "colocated" and subject.machine.device == "cpu" and subject.machine.threads == 1:
        share = min(1.0, computed_s / sum(step.duration_s + step.setup_s for step in steps))
    return Replayed(_times(result, traffic), steps, share)


def _backend(subject: Subject, form: Form) -> Backend:
    from runtime.disaggregation import DisaggregatedConfig, DisaggregatedEngine
    from runtime.engine import EngineConfig
    from runtime.worker import WorkerSpec

    p, limits = subject.preset, subject.limits
    config = EngineConfig(
        num_blocks=limits.capacity_tokens // p.block_size,
        block_size=p.block_size,
        num_snapshots=0,
        max_num_seqs=limits.max_sequences,
        max_num_batched_tokens=limits.max_step_tokens,
        prefix_caching=False,
    )
    spec = WorkerSpec(
        models.runtime_config(subject.config),
        config,
        device=subject.machine.device,
        dtype=models.torch_dtype(subject.machine),
        num_threads=subject.machine.threads,
    )
    return (
        spec.build()
        if form == "colocated"
        else DisaggregatedEngine(spec, DisaggregatedConfig(max_staged=limits.max_sequences))
    )


def _times(result: Replay, traffic: ReplayTraffic) -> Times:
    failed = [output.error for output in result.outputs if output.error is not None]
    if failed:
        raise ValidationError(f"{len(failed)} of {len(result.outputs)} requests failed in the replay: {failed[0]}")
    times = [output.timing.token_times_s for output in result.outputs]
    start = result.start_s
    return Times(
        traffic.arrival_s,
        np.array([t[0] for t in times]) - start,
        np.array([t[-1] for t in times]) - start,
        traffic.output_tokens,
    )

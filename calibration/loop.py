"""Closing the loop: one workload through the real engine and through the simulator, load by load.

The engine runs in real time on this machine: colocated, or as a prefill and a decode worker in processes of their
own. The simulator gets the same arrivals and token counts, the engine's limits, and the profile.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from calibration import models
from calibration.device import Machine
from calibration.measurement import Measurements, StepShape
from calibration.sweeps import Bench, Preset
from calibration.twin import HandoverCost, Limits, Times, Traffic, profiled_times, simulate
from hw_profiles.profile import HardwareProfile
from simulator.model.latency import StepLatency

if TYPE_CHECKING:
    from runtime.backend import Backend
    from runtime.bench import Replay
    from runtime.engine import StepRecord
    from runtime.trace import TraceRequest

Form = Literal["colocated", "disaggregated"]
FORMS: tuple[Form, ...] = ("colocated", "disaggregated")
PERCENTILES = (50, 90, 99)
Progress = Callable[[str, int, int], None]


class ValidationError(ValueError):
    """A validation that cannot run; the message says why."""


@dataclass(frozen=True)
class Figure:
    """One metric as the simulator predicted it and as the engine did it."""

    metric: str
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Relative, signed."""
        return self.predicted / self.measured - 1


@dataclass(frozen=True)
class LoadReport:
    """One replay. load: arrivals as a share of what the profile says the engine can take."""

    form: Form
    load: float
    requests: int
    figures: tuple[Figure, ...]
    step_sum_ratio: float  # predicted / measured over the steps that the engine made

    def figure(self, metric: str) -> Figure:
        return next(f for f in self.figures if f.metric == metric)


@dataclass(frozen=True)
class Subject:
    """What is served. handover: between workers."""

    machine: Machine
    preset: Preset
    config: dict[str, Any]  # of the model, already cut to its layers
    handover: HandoverCost

    @property
    def limits(self) -> Limits:
        p = self.preset
        per_sequence = -(-(p.longest_prompt + p.longest_output) // p.block_size) * p.block_size
        return Limits(p.max_sequences, p.max_step_tokens, p.max_sequences * per_sequence)

    def times(self, hardware: HardwareProfile) -> StepLatency:
        return profiled_times(models.model_spec(self.config, self.machine, self.preset.model), hardware)


def subject_of(machine: Machine, preset: Preset, layers: int, measured: Measurements | None = None) -> Subject:
    """The preset's model cut to `layers`; hand-over as measured, else measured now."""
    config = models.read_config(preset.model)
    bench = Bench(machine, replace(preset, layers=layers), config)
    rows = measured.family("handover") if measured else ()
    points = [(row.num_bytes, row.seconds) for row in rows]
    if not points:
        items = [item for item in bench.items() if item.key.startswith("hand-over")]
        found = [row for item in items for row in item.run()]
        points = [(row.num_bytes, row.seconds) for row in found if row.sample is not None]
    return Subject(machine, preset, models.cut_to(config, layers), _handover_cost(bench, points))


def _handover_cost(bench: Bench, points: Sequence[tuple[float, float]]) -> HandoverCost:
    """Fixed time and bandwidth through the measured points; bytes from the cache's own count."""
    from runtime.cache import KVCache

    p = bench.preset
    config = models.runtime_config(models.cut_to(bench.config, p.layers))
    cache = KVCache(config, 1, 1, p.block_size, "cpu", bench.dtype)
    sizes, seconds = (np.array(column) for column in zip(*points, strict=True))
    slope = float(np.polyfit(sizes, seconds, 1)[0]) if len(set(sizes)) > 1 else 0.0
    bandwidth = 1 / slope if slope > 0 else float(sizes.max() / seconds.min())
    fixed = max(0.0, float(np.median(seconds - sizes / bandwidth)))
    # A prompt's last block moves whole: half a block on average beyond its tokens.
    half_block = cache.bytes_per_block / 2
    return HandoverCost(fixed, bandwidth, cache.bytes_per_slot + half_block, cache.bytes_per_block / p.block_size)


def draw_traffic(preset: Preset, requests: int, seed: int) -> Traffic:
    """Poisson arrivals of one a second, log-uniform prompts, uniform outputs; `at_rate` sets the pace."""
    rng = np.random.default_rng(seed)
    prompts = np.rint(np.exp(rng.uniform(np.log(8), np.log(preset.longest_prompt), requests))).astype(np.int64)
    outputs = rng.integers(preset.longest_output // 2, preset.longest_output, requests, endpoint=True)
    arrivals = np.cumsum(rng.exponential(1.0, requests))
    return Traffic(arrivals - arrivals[0], prompts, outputs)


def read_traffic(path: Path, requests: int, length_scale: float) -> Traffic:
    """The first requests of an Azure or Mooncake trace, its token counts scaled."""
    from runtime.trace import load_trace

    rows = load_trace(path, max_requests=requests, length_scale=length_scale)
    columns = zip(*((row.arrival_s, row.input_tokens, row.output_tokens) for row in rows), strict=True)
    arrival, prompt, output = (np.array(column) for column in columns)
    return Traffic(arrival, prompt, np.maximum(output, 1))


def at_rate(traffic: Traffic, rate: float) -> Traffic:
    """The same requests at `rate` a second on average. [1/s]"""
    span = float(traffic.arrival_s[-1])
    if span == 0.0:  # one request, or all at once
        return traffic
    return replace(traffic, arrival_s=traffic.arrival_s * ((len(traffic.arrival_s) - 1) / (span * rate)))


def capacity(traffic: Traffic, subject: Subject, times: StepLatency, form: Form) -> float:
    """Requests a second when all arrive at once, by the simulator. [1/s]"""
    burst = replace(traffic, arrival_s=np.zeros_like(traffic.arrival_s))
    result = simulate(burst, times, subject.limits, subject.handover if form == "disaggregated" else None)
    return len(burst.arrival_s) / float(result.finish_s.max())


def replay(
    subject: Subject, form: Form, traffic: Traffic, seed: int, progress: Progress | None = None
) -> tuple[Times, list[StepRecord]]:
    """The workload through the real engine, on the wall clock; and every step that it made."""
    from runtime.bench import replay as run
    from runtime.bench import warm_up

    backend = _backend(subject, form)
    with contextlib.closing(backend):
        warm_up(backend, 2)
        result = run(backend, trace_of(traffic), seed=seed, progress=progress and (lambda d, n: progress(form, d, n)))
    steps: list[StepRecord] = []
    records: Any = backend.step_records  # type: ignore[attr-defined]
    for one in records.values() if isinstance(records, dict) else [records]:
        steps += [step for step in one if step.start_s >= result.start_s]
    return _times(result, traffic), steps


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
    return spec.build() if form == "colocated" else DisaggregatedEngine(spec, DisaggregatedConfig())


def trace_of(traffic: Traffic) -> list[TraceRequest]:
    from runtime.trace import TraceRequest

    columns = (traffic.arrival_s.tolist(), traffic.prompt_tokens.tolist(), traffic.output_tokens.tolist())
    return [TraceRequest(*row) for row in zip(*columns, strict=True)]


def _times(result: Replay, traffic: Traffic) -> Times:
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


def compare(
    form: Form,
    load: float,
    traffic: Traffic,
    subject: Subject,
    times: StepLatency,
    measured: Times,
    steps: Sequence[Any],
) -> LoadReport:
    """Simulate what was replayed, and set both side by side."""
    predicted = simulate(traffic, times, subject.limits, subject.handover if form == "disaggregated" else None)
    figures = [
        Figure(f"{name} p{p}", *(float(np.percentile(getattr(x, name), p)) for x in (predicted, measured)))
        for name in ("ttft_s", "tpot_s", "e2e_s")
        for p in PERCENTILES
    ]
    figures.append(Figure("output tokens/s", predicted.output_tokens_per_s, measured.output_tokens_per_s))
    return LoadReport(form, load, len(traffic.arrival_s), tuple(figures), step_sum_ratio(times, steps))


def step_sum_ratio(times: StepLatency, steps: Sequence[StepRecord]) -> float:
    """Predicted over measured seconds of the steps that an engine made, each priced by itself."""
    predicted = sum(price(times, StepShape(s.prefills, s.decode_contexts)) for s in steps)
    return predicted / sum(s.duration_s + s.setup_s for s in steps)


def price(times: StepLatency, shape: StepShape) -> float:
    """Seconds of one step of an engine by the profile. [s]"""
    from simulator.model.latency import NO_DECODE, Chunk, DecodeLoad

    contexts = shape.contexts
    capped = tuple(sum(min(context, cap) for context in contexts) for cap in times.caps)
    load = DecodeLoad(len(contexts), sum(contexts), capped, len(contexts)) if contexts else NO_DECODE
    return times.mixed_s([Chunk(new, past) for new, past in shape.prefills], load)


def validate(
    subject: Subject,
    hardware: HardwareProfile,
    traffic: Traffic,
    loads: Sequence[float],
    forms: Sequence[Form] = FORMS,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[LoadReport]:
    """Replay `traffic` in each form at each load, and compare with the simulation. A pure forecast: nothing that
    the replay shows goes into the profile."""
    times = subject.times(hardware)
    reports = []
    for form in forms:
        full = capacity(traffic, subject, times, form)
        for load in loads:
            paced = at_rate(traffic, load * full)
            measured, steps = replay(subject, form, paced, seed, progress)
            reports.append(compare(form, load, paced, subject, times, measured, steps))
    return reports


def median_errors(reports: Sequence[LoadReport]) -> dict[str, float]:
    """Median of absolute errors over loads, by metric."""
    metrics = [figure.metric for figure in reports[0].figures]
    return {m: float(np.median([abs(r.figure(m).error) for r in reports])) for m in metrics}

"""Predicted beside measured: TTFT, TPOT, end-to-end and throughput of replays, load by load."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from calibration.microbench.measurement import EngineStep
from calibration.replay import live
from calibration.replay.subject import FORMS, Form, Subject, capacity
from calibration.replay.traffic import ReplayTraffic, at_rate
from calibration.replay.twin import ScaledTimes, Times, simulate
from hw_profiles.profile import HardwareProfile
from simulator.model.latency import NO_DECODE, Chunk, DecodeLoad, StepLatency
from simulator.progress import Progress

LOADS = (0.3, 0.6, 0.9, 1.5)  # of capacity: light to saturated (assumed)
PERCENTILES = (50, 90, 99)
THROUGHPUT = "output tokens/s"
LATENCIES = {"TPOT": "tpot_s", "TTFT": "ttft_s", "e2e": "e2e_s"}
METRICS = (THROUGHPUT, *(f"{name} p{p}" for name in LATENCIES for p in PERCENTILES))


def metrics(times: Times) -> dict[str, float]:
    """METRICS of one replay. [s, tokens/s]"""
    found = {THROUGHPUT: times.output_tokens_per_s}
    for name, field in LATENCIES.items():
        values = np.percentile(getattr(times, field), PERCENTILES).tolist()
        found |= {f"{name} p{p}": value for p, value in zip(PERCENTILES, values, strict=True)}
    return found


@dataclass(frozen=True)
class LoadReport:
    """One replay. load: arrivals as a share of what the profile says the engine can take.

    step_sum_ratio: predicted over measured, summed over the steps that the engine made.
    at_speed: predicted once more with all step times divided by that ratio: what is left is not a machine that runs
        at another speed than when it was measured (nor a bias of all step times).
    core_share: what the engine's thread had of a core during steps, where that is known. Measurements of one thread
        count what it computed, a replay in real time also what it waited for the core.
    """

    form: Form
    load: float
    requests: int
    predicted: dict[str, float]
    measured: dict[str, float]
    step_sum_ratio: float
    at_speed: dict[str, float]
    core_share: float | None = None

    def error(self, metric: str) -> float:
        """Relative, signed."""
        return self.predicted[metric] / self.measured[metric] - 1

    def error_at_speed(self, metric: str) -> float:
        return self.at_speed[metric] / self.measured[metric] - 1


def compare(
    form: Form,
    load: float,
    traffic: ReplayTraffic,
    subject: Subject,
    hardware: HardwareProfile,
    measured: Times,
    steps: Iterable[tuple[EngineStep, float]],
) -> LoadReport:
    """Simulate what was replayed, and set both side by side. steps: what the engine computed, and its seconds."""
    times = subject.times(hardware)
    handover = subject.handover if form == "disaggregated" else None
    predicted = simulate(traffic, times, subject.limits, handover)
    shapes, seconds = zip(*steps, strict=True)
    ratio = sum(price(times, shape) for shape in shapes) / sum(seconds)
    at_speed = simulate(traffic, ScaledTimes(times, 1 / ratio), subject.limits, handover)
    return LoadReport(
        form, load, len(traffic.arrival_s), metrics(predicted), metrics(measured), ratio, metrics(at_speed)
    )


def price(times: StepLatency, shape: EngineStep) -> float:
    """Seconds of one step of an engine by the profile. [s]"""
    contexts = shape.contexts
    load = DecodeLoad.of(contexts, times.caps) if contexts else NO_DECODE
    return times.mixed_s([Chunk(new, past) for new, past in shape.prefills], load)


def validate(
    subject: Subject,
    hardware: HardwareProfile,
    traffic: ReplayTraffic,
    loads: Sequence[float],
    forms: Sequence[Form] = FORMS,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[LoadReport]:
    """Replay `traffic` in each form at each load, and compare with the simulation. A pure forecast: nothing that
    the replay shows goes into the profile."""
    reports: list[LoadReport] = []
    total = len(forms) * len(loads) * len(traffic.arrival_s)
    for form in forms:
        full = capacity(traffic, subject, subject.times(hardware), form)
        for load in loads:
            paced = at_rate(traffic, load * full)
            before = len(reports) * len(traffic.arrival_s)
            done = live.replay(subject, form, paced, seed, _counted(progress, f"{form}, load {load:g}", before, total))
            made = [(EngineStep(s.prefills, s.decode_contexts), s.duration_s + s.setup_s) for s in done.steps]
            report = compare(form, load, paced, subject, hardware, done.times, made)
            reports.append(replace(report, core_share=done.core_share))
    return reports


def _counted(progress: Progress | None, stage: str, before: int, total: int) -> Callable[[int, int], None] | None:
    """Progress of one replay as that of all."""
    return None if progress is None else lambda done, _: progress(stage, before + done, total)


def median_errors(reports: Sequence[LoadReport], at_speed: bool = False) -> dict[str, float]:
    """Median of absolute errors over replays, by metric."""
    error = LoadReport.error_at_speed if at_speed else LoadReport.error
    return {metric: float(np.median([abs(error(report, metric)) for report in reports])) for metric in METRICS}

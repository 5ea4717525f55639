"""Predicted beside measured: TTFT, TPOT, end-to-end and throughput of replays, load by load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from calibration.loop.live import Progress, replay
from calibration.loop.subject import FORMS, Form, Subject, capacity
from calibration.loop.traffic import Traffic, at_rate
from calibration.loop.twin import Times, simulate
from calibration.machine.measurement import StepShape
from hw_profiles.profile import HardwareProfile
from simulator.model.latency import StepLatency

if TYPE_CHECKING:
    from runtime.engine import StepRecord

PERCENTILES = (50, 90, 99)


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

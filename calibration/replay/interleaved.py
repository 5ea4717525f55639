"""A replay with calibration between its steps: every few steps, some of other requests on engines of their own.

What was timed between refits the profile, which then follows a shared machine whose speed drifts during the replay.
That checks the model. It is no forecast: it uses times taken while the replay ran.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from calibration.microbench import models
from calibration.microbench.bench import Bench
from calibration.microbench.fit.profile_fit import refit
from calibration.microbench.fit.step_fit import StepRow
from calibration.microbench.step_ops import StepPricer
from calibration.microbench.virtual_clock import WARM_UP_REQUESTS, OneEngine, Playback, TimedStep, warm_up
from calibration.replay.subject import Form, Subject
from calibration.replay.traffic import ReplayTraffic, trace_of
from calibration.replay.twin import Times
from calibration.replay.virtual_pair import Pair
from hw_profiles.profile import HardwareProfile

if TYPE_CHECKING:
    from runtime.engine import Engine

EVERY, PROBES = 1, 1  # steps of the replay, then of other requests


@dataclass(frozen=True)
class Interleaved:
    """A replay on virtual clocks, and the steps of other requests that were timed between its own."""

    times: Times
    steps: tuple[TimedStep, ...]
    probes: tuple[TimedStep, ...]


def play(subject: Subject, form: Form, traffic: ReplayTraffic, others: ReplayTraffic, seed: int = 0) -> Interleaved:
    """Replay `traffic`, with steps of `others` between."""
    bench = Bench(subject.machine, subject.preset, subject.config)
    with contextlib.ExitStack() as stack:

        def warm_engine() -> Engine:
            engine = stack.enter_context(contextlib.closing(bench.engine(subject.layers)))
            warm_up(engine, bench.traffic(WARM_UP_REQUESTS, seed))
            return engine

        def playback(requests: ReplayTraffic, seed: int) -> Playback:
            trace = trace_of(requests)
            if form == "colocated":
                return OneEngine(warm_engine(), trace, seed)
            return stack.enter_context(contextlib.closing(Pair(warm_engine(), warm_engine(), trace, seed)))

        probes: list[TimedStep] = []
        mine, probing = playback(traffic, seed), playback(others, seed + 1)
        made = 0
        while not mine.done:
            mine.step()
            made += 1
            if made % EVERY == 0:
                probes += [probing.step() for _ in range(PROBES) if not probing.done]
        done, _ = mine.result(), probing.result()
    first, finish = np.array(done.first_token_s), np.array(done.finish_s)
    return Interleaved(Times(traffic.arrival_s, first, finish, traffic.output_tokens), done.steps, tuple(probes))


def as_it_ran(hardware: HardwareProfile, subject: Subject, probes: Sequence[TimedStep]) -> HardwareProfile:
    """The profile of this machine refitted to steps that were timed in between."""
    pricer = StepPricer(models.model_spec(subject.config, subject.machine, subject.preset.model), hardware)
    return refit(hardware, [StepRow(pricer.ops(step.shape), step.duration_s, subject.layers) for step in probes])

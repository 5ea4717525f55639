"""Whole steps of engines of several depths, under bursts of traffic."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from calibration.microbench.bench import Bench, Item
from calibration.microbench.measurement import Measurement
from calibration.microbench.timer import TimeSample
from calibration.microbench.virtual_clock import WARM_UP_REQUESTS, OneEngine, replay, warm_up

WEIGHT = 4  # of progress, in ops of one step (assumed)
FEWEST = 15  # steps, however slow: those of two depths suffice for a fit (`step_fit.FEWEST_STEPS`)


def items(bench: Bench) -> list[Item]:
    return [_steps(bench, depth) for depth in bench.preset.depths]


def _steps(bench: Bench, depth: int) -> Item:
    def run() -> Iterator[Measurement]:
        count, limit_s = bench.preset.steps, bench.preset.steps_s
        with contextlib.closing(bench.engine(depth)) as engine:
            warm_up(engine, bench.traffic(WARM_UP_REQUESTS, bench.seed + 1), limit_s)
            steps = replay(OneEngine(engine, bench.traffic(count, bench.seed)), count, limit_s, FEWEST).steps
        for number, step in enumerate(steps):
            s = step.duration_s
            yield Measurement(
                f"{name}: {number}",
                "step",
                sample=TimeSample(s, s, s, 1),
                step=step.shape,
                layers=depth,
                model=bench.preset.model,
            )
        yield Measurement(name, "steps", layers=depth)

    name = f"whole steps of {depth} layers"
    return Item(name, run, weight=WEIGHT)

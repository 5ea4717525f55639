"""Whole steps of engines of several depths, under bursts of traffic."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from calibration.machine.bench import Bench, Item
from calibration.machine.measurement import Measurement
from calibration.machine.timer import Sample
from calibration.machine.virtual_clock import OneEngine, replay


def items(bench: Bench) -> list[Item]:
    return [_steps(bench, depth) for depth in bench.preset.depths]


def _steps(bench: Bench, depth: int) -> Item:
    def run() -> Iterator[Measurement]:
        count = bench.preset.steps
        with contextlib.closing(bench.engine(depth)) as engine:
            replay(OneEngine(engine, bench.traffic(4, bench.seed + 1)), until_steps=8)  # warm-up
            steps = replay(OneEngine(engine, bench.traffic(count, bench.seed)), until_steps=count).steps
        for number, step in enumerate(steps):
            s = step.duration_s
            yield Measurement(
                f"{name}: {number}",
                "step",
                sample=Sample(s, s, s, 1),
                step=step.shape,
                layers=depth,
                model=bench.preset.model,
            )
        yield Measurement(name, "steps", layers=depth)

    name = f"whole steps of {depth} layers"
    return Item(name, run)

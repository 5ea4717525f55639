"""Steps of the table are those of `StepLatency`, and engine parameters change what they name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hw_profiles.catalog import load
from hw_profiles.profile import HardwareProfile
from simulator.model.engine import FACTORS, driven
from simulator.model.latency import StepLatency
from simulator.model.parallelism import Parallelism
from simulator.model.presets import load_model
from simulator.model.step import Chunk, DecodeLoad, StepOps
from simulator.steady_state.parameters import EngineParameters, constant
from simulator.steady_state.step_table import BATCHES, StepTable, price
from simulator.steady_state.traffic import TrafficSample

CUTS = [
    ("deepseek-v3", "h200", Parallelism(dp=8, ep=8), 1),
    ("deepseek-v3", "h200", Parallelism(tp=8, pp=2), 0),
    ("deepseek-v4-flash", "b200", Parallelism(tp=4, ep=4), 3),
    ("qwen3-30b-a3b", "h200", Parallelism(tp=2), 0),
    ("gpt-oss-120b", "b200", Parallelism(dp=2, ep=2), 0),
]
TRAFFIC = TrafficSample.of([2000.0], [200.0])


def table_of(name: str, hardware: HardwareProfile, cut: Parallelism, drafts: int, **keys: Any) -> StepTable:
    ops = StepOps(load_model(name), hardware, cut, drafts)
    return StepTable.of([price(ops, TRAFFIC, keys.pop("budget", 8192), **keys)])


@pytest.mark.parametrize(("name", "gpu", "cut", "drafts"), CUTS)
def test_steps_are_those_of_the_latency_model(name: str, gpu: str, cut: Parallelism, drafts: int) -> None:
    hardware = load(gpu)
    seconds = table_of(name, hardware, cut, drafts, most_sequences=256).seconds(EngineParameters.of([hardware]))
    times = StepLatency(load_model(name), hardware, cut, drafts)
    for node in (1, BATCHES - 1):
        n = round(seconds.batches[0, 0, node])
        busiest = n / cut.dp + (cut.dp - 1) / (2 * cut.dp) if n > 1 else 1
        context = TRAFFIC.context[0]
        load_of = DecodeLoad(
            round(busiest), round(busiest * context), tuple(round(busiest * TRAFFIC.capped(c)) for c in times.caps), n
        )
        assert seconds.decode_s[0, 0, node] == pytest.approx(times.decode_s(load_of), rel=0.02)
        mixed_s = times.mixed_s([Chunk(2000, 0)], load_of, 2000)
        assert seconds.lone_s[0, 0, node, 0] == pytest.approx(mixed_s, rel=0.02)
    assert seconds.lone_s[0, 0, 0, 0] == pytest.approx(times.prefill_s([Chunk(2000, 0)], 2000), rel=1e-3)


def test_long_prompts_take_the_sum_of_their_chunks() -> None:
    hardware, cut = load("h200"), Parallelism(tp=2)
    times = StepLatency(load_model("qwen3-30b-a3b"), hardware, cut)
    seconds = table_of("qwen3-30b-a3b", hardware, cut, 0, budget=128, decodes=False).seconds(
        EngineParameters.of([hardware])
    )
    chunks = [Chunk(min(128, 2000 - past), past) for past in range(0, 2000, 128)]
    assert seconds.lone_steps[0, 0, 0, 0] == len(chunks)
    assert seconds.lone_s[0, 0, 0, 0] == pytest.approx(sum(times.prefill_s([c], c.new) for c in chunks), rel=0.002)


@pytest.mark.parametrize("part", ["memory", "matrix", "network", "attention", "experts"])
def test_a_parameter_does_what_a_driven_profile_does(part: str) -> None:
    hardware, cut = load("h200"), Parallelism(dp=8, ep=8)
    given = dict.fromkeys(FACTORS, 1.0) | {part: 0.8}
    slower = replace(hardware, efficiency=driven(hardware.efficiency, given, 10.0))  # type: ignore[arg-type]
    plain = EngineParameters.of([hardware])
    changed = table_of("deepseek-v3", hardware, cut, 0).seconds(replace(plain, **{part: constant(0.8)}))
    expected = table_of("deepseek-v3", slower, cut, 0).seconds(plain)
    np.testing.assert_allclose(changed.decode_s, expected.decode_s, rtol=2e-3)  # profiles hold rounded fractions
    np.testing.assert_allclose(changed.bunch_s, expected.bunch_s, rtol=2e-3)


def test_draws_are_an_axis_of_their_own() -> None:
    hardware = load("h200")
    table = table_of("qwen3-30b-a3b", hardware, Parallelism(tp=2), 0)
    table = StepTable.of([*table.engines, *table.engines])
    plain = EngineParameters.of([hardware])
    drawn = table.seconds(
        replace(plain, memory=np.array([[1.0, 0.5, 0.25]]), kernel_overhead_s=np.array([[0.0], [1e-6]]))
    )
    assert drawn.decode_s.shape == (2, 3, BATCHES)
    alone = table.take([0]).seconds(replace(plain, memory=constant(0.5), kernel_overhead_s=constant(0.0)))
    np.testing.assert_allclose(drawn.decode_s[0, 1], alone.decode_s[0, 0])
    kernels = table.engines[0].kernels
    np.testing.assert_allclose(drawn.decode_s[1, :, 1:] - drawn.decode_s[0, :, 1:], kernels * 1e-6)

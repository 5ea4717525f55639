"""Simulator and engine make the same batches from the same arrivals, and recorded durations replay exactly."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.microbench import models
from calibration.microbench.bench import Bench
from calibration.microbench.measurement import EngineStep
from calibration.microbench.preset import Preset
from calibration.microbench.virtual_clock import OneEngine, TimedStep, VirtualReplay, replay
from calibration.replay import virtual_pair
from calibration.replay.traffic import ReplayTraffic
from calibration.replay.twin import EngineLimits, HandoverCost, Times, simulate
from runtime.block_manager import BlockManager
from runtime.scheduler import Scheduler, SchedulerConfig
from runtime.sequence import Request, SamplingParams
from runtime.sequence import Sequence as TokenSequence
from runtime.trace import TraceRequest
from simulator.model.latency import Chunk, DecodeLoad


class TwinError(AssertionError):
    """Simulator and engine did not make the same batches."""


class RecordedTimes:
    """Durations of an engine's steps, given out in order; each asked-for step must be the one that was recorded."""

    def __init__(self, steps: Sequence[TimedStep], caps: tuple[int, ...] = ()) -> None:
        self.caps = caps
        self.first_token_extra_s = 0.0
        self._steps = iter(enumerate(steps))
        self._mixed: DecodeLoad | None = None

    def decode_s(self, load: DecodeLoad) -> float:
        if load is self._mixed:  # the decode share of the mixed step just given out: no step of its own
            return 0.0
        return self._next([], load)

    def prefill_s(self, chunks: Sequence[Chunk], total_tokens: int | None = None) -> float:
        return self._next(chunks, None)

    def mixed_s(self, chunks: Sequence[Chunk], load: DecodeLoad, total_tokens: int | None = None) -> float:
        self._mixed = load
        return self._next(chunks, load)

    def _next(self, chunks: Sequence[Chunk], load: DecodeLoad | None) -> float:
        number, step = next(self._steps, (-1, None))
        if step is None:
            raise TwinError("the simulator makes more steps than the engine made")
        asked = (tuple(tuple(c) for c in chunks), load.sequences if load else 0, load.context if load else 0)
        made = _summary(step.shape)
        if asked != made:
            raise TwinError(f"step {number}: the simulator computes {asked}, the engine computed {made}")
        return step.duration_s


class RecordedPairTimes:
    """The same for a prefill and a decode engine, each with its own steps in order."""

    first_token_extra_s = 0.0

    def __init__(self, steps: Sequence[TimedStep], caps: tuple[int, ...] = ()) -> None:
        self.caps = caps
        self._prefill = RecordedTimes([step for step in steps if step.shape.prefills], caps)
        self._decode = RecordedTimes([step for step in steps if not step.shape.prefills], caps)

    def decode_s(self, load: DecodeLoad) -> float:
        return self._decode.decode_s(load)

    def prefill_s(self, chunks: Sequence[Chunk], total_tokens: int | None = None) -> float:
        return self._prefill.prefill_s(chunks)

    def mixed_s(self, chunks: Sequence[Chunk], load: DecodeLoad, total_tokens: int | None = None) -> float:
        raise TwinError("the simulator mixes prompts and decodes, which the engines never do")


def _summary(shape: EngineStep) -> tuple[tuple[tuple[int, ...], ...], int, int]:
    """Prompt chunks, decode rows, and their summed context."""
    return shape.prefills, len(shape.contexts), sum(shape.contexts)


def step_seconds(shape: EngineStep) -> float:
    """Any function of a step's content will do; this one gives no two kinds of step the same time."""
    pairs = sum(new * (2 * past + new) for new, past in shape.prefills)
    return 0.01 + 1e-4 * pairs + 3e-3 * len(shape.contexts) + 1e-5 * sum(shape.contexts)


def drive(traffic: ReplayTraffic, limits: EngineLimits) -> tuple[list[TimedStep], list[float], list[float], int]:
    """The runtime's scheduler alone, on a clock of `step_seconds`: its steps, first tokens and ends. Blocks of one
    token, as the simulator counts KV."""
    count = len(traffic.arrival_s)
    blocks = BlockManager(limits.capacity_tokens, 1, 0, False)
    scheduler = Scheduler(SchedulerConfig(limits.max_sequences, limits.max_step_tokens), blocks)
    first, finish = [0.0] * count, [0.0] * count
    steps: list[TimedStep] = []
    clock, sent, preempted = 0.0, 0, 0
    while sent < count or scheduler.has_work:
        while sent < count and traffic.arrival_s[sent] <= clock:
            tokens = tuple([1] * int(traffic.prompt_tokens[sent]))
            sampling = SamplingParams(int(traffic.output_tokens[sent]), ignore_eos=True)
            scheduler.add(TokenSequence(Request(str(sent), tokens, sampling, 0.0), 1))
            sent += 1
        if not scheduler.has_work:
            clock = float(traffic.arrival_s[sent])
            continue
        made = scheduler.schedule()
        preempted += len(made.preempted)
        shape = EngineStep(
            tuple((c.new, c.past) for c in made.chunks if not c.is_decode),
            tuple(c.past + 1 for c in made.chunks if c.is_decode),
        )
        steps.append(TimedStep(clock, step_seconds(shape), shape))
        clock += steps[-1].duration_s
        scheduler.complete(made)
        for chunk in made.chunks:
            if not chunk.samples:
                continue
            sequence = chunk.sequence
            number = int(sequence.request_id)
            sequence.token_ids.append(1)
            if sequence.num_output == 1:
                first[number] = clock
            if sequence.finish_reason_after(()) is not None:
                finish[number] = clock
                scheduler.finish(sequence)
    return steps, first, finish, preempted


class FormulaTimes:
    """`step_seconds` as the simulator asks for it."""

    caps = ()
    first_token_extra_s = 0.0

    def decode_s(self, load) -> float:
        return 0.01 + 3e-3 * load.sequences + 1e-5 * load.context

    def prefill_s(self, chunks, total_tokens=None) -> float:
        return step_seconds(EngineStep(tuple(tuple(c) for c in chunks), ()))

    def mixed_s(self, chunks, load, total_tokens=None) -> float:
        return self.prefill_s(chunks) + self.decode_s(load) - 0.01


def traffic_of(gaps: Sequence[float], prompts: Sequence[int], outputs: Sequence[int]) -> ReplayTraffic:
    return ReplayTraffic(np.cumsum(gaps), np.array(prompts), np.array(outputs))


requests = st.lists(st.tuples(st.floats(0.0, 0.2), st.integers(1, 120), st.integers(1, 20)), min_size=1, max_size=25)
AMPLE = 25 * 320
WRITE_S = 2e-3


def check_twin(traffic: ReplayTraffic, limits: EngineLimits) -> int:
    """Preemptions of the engine, where simulator and engine make the same batches at the same times."""
    steps, first, finish, preempted = drive(traffic, limits)
    # RecordedTimes raises TwinError at the first step that differs.
    twin = simulate(traffic, RecordedTimes(steps), limits)
    np.testing.assert_allclose(twin.first_token_s, first, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(twin.finish_s, finish, rtol=1e-9, atol=1e-12)
    alone = simulate(traffic, FormulaTimes(), limits)
    np.testing.assert_allclose(alone.finish_s, finish, rtol=1e-9, atol=1e-12)
    return preempted


@settings(max_examples=60)
@given(rows=requests, sequences=st.integers(1, 6), budget=st.integers(6, 64))
def test_same_arrivals_and_step_times_give_the_same_batches(rows, sequences, budget) -> None:
    assert check_twin(traffic_of(*zip(*rows, strict=True)), EngineLimits(sequences, budget, AMPLE)) == 0


# Multiples of 100 tokens: what a newcomer must leave free is then a whole number of blocks.
@settings(max_examples=60)
@given(rows=requests, sequences=st.integers(2, 6), budget=st.integers(6, 64), capacity=st.sampled_from((200, 300)))
def test_scarce_kv_gives_the_same_batches(rows, sequences, budget, capacity) -> None:
    check_twin(traffic_of(*zip(*rows, strict=True)), EngineLimits(sequences, budget, capacity))


def test_the_same_sequences_are_preempted() -> None:
    """Six prompts of 40 in room for 300 tokens: each grows by 60, so that some must go and come back."""
    traffic = traffic_of([0.0] + [1e-3] * 5, [40] * 6, [60] * 6)
    assert check_twin(traffic, EngineLimits(6, 64, 300)) >= 3


def test_a_different_batch_is_noticed() -> None:
    traffic = traffic_of([0.0, 0.001], [30, 30], [4, 4])
    steps, *_ = drive(traffic, EngineLimits(2, 64, 1000))
    with pytest.raises(TwinError, match="the simulator computes"):
        simulate(traffic, RecordedTimes(steps), EngineLimits(1, 64, 1000))


def bursts(rng: np.random.Generator) -> tuple[ReplayTraffic, list[TraceRequest]]:
    """Faster than any engine goes, then idle, then slower: queues, full batches and gaps occur at every speed."""
    arrivals = np.concatenate((np.sort(rng.random(14)) * 1e-3, 50 + np.sort(rng.random(6)) * 0.05))
    prompts = rng.integers(1, 60, 20)
    outputs = np.concatenate((rng.integers(5, 9, 14), rng.integers(1, 5, 6)))
    rows = zip(arrivals.tolist(), prompts.tolist(), outputs.tolist(), strict=True)
    return ReplayTraffic(arrivals, prompts, outputs), [TraceRequest(*row) for row in rows]


def check_times(twin: Times, played: VirtualReplay, traffic: ReplayTraffic) -> None:
    """TTFT and TPOT of simulator and engine are the same."""
    first, finish = np.array(played.first_token_s), np.array(played.finish_s)
    np.testing.assert_allclose(twin.ttft_s, first - traffic.arrival_s, rtol=1e-9, atol=1e-9)
    several = traffic.output_tokens > 1
    tpot = (finish - first)[several] / (traffic.output_tokens[several] - 1)
    np.testing.assert_allclose(twin.tpot_s, tpot, rtol=1e-9, atol=1e-9)


def test_recorded_durations_of_a_real_engine_replay_exactly(tiny_preset: Preset, this_machine, nano_model) -> None:
    bench = Bench(this_machine, tiny_preset, models.read_config(nano_model))
    traffic, trace = bursts(np.random.default_rng(4))
    with contextlib.closing(bench.engine(4)) as engine:
        played = replay(OneEngine(engine, trace))
    limits = EngineLimits(tiny_preset.max_sequences, tiny_preset.max_step_tokens, 4 * 128)
    check_times(simulate(traffic, RecordedTimes(played.steps), limits), played, traffic)
    assert max(len(step.shape.contexts) for step in played.steps) == 4, "the engine never filled up"


def test_recorded_durations_of_real_prefill_and_decode_engines_replay_exactly(
    tiny_preset: Preset, this_machine, nano_model, monkeypatch
) -> None:
    """Every cache really moves; it is said to take 2 ms, as the simulator has one time for all of a length."""
    write_out = virtual_pair._write_out
    monkeypatch.setattr(virtual_pair, "_write_out", lambda *of: (write_out(*of)[0], WRITE_S))
    bench = Bench(this_machine, tiny_preset, models.read_config(nano_model))
    traffic, trace = bursts(np.random.default_rng(5))
    with contextlib.ExitStack() as stack:
        prefill, decode = (stack.enter_context(contextlib.closing(bench.engine(4))) for _ in range(2))
        played = replay(virtual_pair.Pair(prefill, decode, trace))
    limits = EngineLimits(tiny_preset.max_sequences, tiny_preset.max_step_tokens, 4 * 128)
    handover = HandoverCost(WRITE_S, float("inf"), 0.0, 0.0)
    check_times(simulate(traffic, RecordedPairTimes(played.steps), limits, handover), played, traffic)
    assert max(len(step.shape.contexts) for step in played.steps) == 4, "decode never filled up"

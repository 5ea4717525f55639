"""Which prompts share a step: hand-worked chunks, means of Poisson arrivals, and what mixing with decode saves."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from calibration.serving.engine_parameters import NOTHING_FITTED
from calibration.serving.point_steps import hardware_of, parallelism_of
from calibration.serving.points import parse_point
from calibration.serving.predict import predictions, prepare
from calibration.serving.prompts import accepted_tokens, arriving, most_at_once, shares_steps, together
from calibration.serving.served_model import variant
from simulator.model.latency import StepLatency
from simulator.model.step import DecodeLoad

ROW: dict[str, Any] = {
    "model": "DeepSeek-R1", "gpu": "b200_sxm", "engine": "SGLang", "precision": "FP8", "n_gpu": 8, "isl": 1000,
    "osl": 500, "concurrency": 64, "decode_parallel": "DEP8", "tpot_ms": 10.0,
}  # fmt: skip
BESIDE = DecodeLoad(8, 10_000, (), 64)


def engine_of(row: dict[str, Any]) -> StepLatency:
    point = parse_point(0, row)
    hardware, cut = hardware_of(point.gpu), parallelism_of(point.decode)
    return StepLatency(variant(point.model, point.precision, point.engine, hardware, cut.ep), hardware, cut)


def tpot(**changes: Any) -> float:
    lines = predictions(prepare(pd.DataFrame([{**ROW, **changes}])), NOTHING_FITTED)
    return float(lines["predicted"].iloc[0])


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, 1),
        ({"isl": 16_000}, 1),  # engines take what little is more than a chunk along, where the row says none
        ({"isl": 16_000, "notes": "chunked prefill 8192"}, 2),
        ({"isl": 16_000, "notes": "--chunked-prefill-size 2000"}, 8),
        ({"isl": 1000, "notes": "max-num-batched-tokens 512"}, 2),
        ({"isl": 20_000}, 3),
    ],
)
def test_a_prompt_takes_as_many_steps_as_its_chunks(changes: dict[str, Any], steps: int) -> None:
    row = {**ROW, **changes}
    assert together(engine_of(row), parse_point(0, row), 1, None).extra == steps


def test_a_token_budget_leaves_prompts_what_decode_does_not_use() -> None:
    """512 tokens less 8 rows are 504: 1000 tokens are two chunks, beside 312 rows (200 left) they are five."""
    row = {**ROW, "notes": "max-num-batched-tokens 512"}
    engine, point = engine_of(row), parse_point(0, row)
    for rows, chunks in ((8, 2), (312, 5)):
        beside = DecodeLoad(rows, rows * 1250, (), rows * 8)
        steps = together(engine, point, 1, beside).steps
        assert [weight for weight, _ in steps] == [1.0, -1.0] * chunks


def test_prompts_of_a_step_are_bounded_by_its_chunk_its_ranks_and_the_requests() -> None:
    engine, point = engine_of(ROW), parse_point(0, ROW)
    assert most_at_once(engine, point) == 8 * 8  # 8192 // 1000 on each of eight ranks
    assert most_at_once(engine, point, 5.2) == 6
    longer = parse_point(0, {**ROW, "isl": 9000})
    assert most_at_once(engine, longer) == 8


def test_prompts_that_arrive_are_those_of_poisson() -> None:
    """The mean of a Poisson count that is not zero, here by drawing; a step cannot take a part of a prompt."""
    engine, point = engine_of(ROW), parse_point(0, ROW)
    for running in (16.0, 400.0, 2000.0):
        drawn = np.random.default_rng(1).poisson(running / 500, 200_000)
        found = arriving(engine, point, running, None)
        assert found.prompts == pytest.approx(drawn[drawn > 0].mean(), rel=0.01)
        assert sum(weight for weight, _ in found.steps) == pytest.approx(1)


def test_drafts_end_more_requests_in_a_step() -> None:
    """1 + p + p^2 + p^3 tokens with three drafts."""
    assert accepted_tokens(0) == pytest.approx(1)
    assert accepted_tokens(3) == pytest.approx(1 + 0.68 + 0.68**2 + 0.68**3)


@pytest.mark.parametrize(
    ("engine", "disaggregated", "mixes"),
    [("vLLM", 0, True), ("TensorRT-LLM", 0, True), ("SGLang", 0, False), ("ATOM", 0, False), ("Dynamo+vLLM", 1, False)],
)
def test_schedulers_that_put_prompts_into_decode_steps(engine: str, disaggregated: int, mixes: bool) -> None:
    pools = {"n_gpu": 16, "n_prefill_gpu": 8, "n_decode_gpu": 8} if disaggregated else {}
    point = parse_point(0, {**ROW, **pools, "engine": engine, "disaggregated": disaggregated})
    assert shares_steps(point) is mixes


def test_a_step_shared_with_decode_costs_less_than_two() -> None:
    """Weights of the experts are read once for both; no host time is added."""
    engine, point = engine_of(ROW), parse_point(0, ROW)
    alone, beside = together(engine, point, 1, None), together(engine, point, 1, BESIDE)
    assert (alone.extra, beside.extra) == (1, 0)

    def bytes_of(prompts: Any) -> float:
        return float(sum(weight * op.count * op.hbm_bytes for weight, ops in prompts.steps for op in ops))

    assert 0 < bytes_of(beside) < 0.9 * bytes_of(alone)
    seen = beside.as_seen()
    assert seen.extra == 1
    assert bytes_of(seen) > bytes_of(alone)


def test_smaller_chunks_slow_decode() -> None:
    fine = tpot(notes="chunked prefill 256")
    coarse = tpot(notes="chunked prefill 8192")
    assert fine > coarse
    assert math.isfinite(fine)

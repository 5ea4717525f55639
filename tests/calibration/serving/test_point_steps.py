"""What a row asks of the steps: its limits, its pipeline, and what nothing is known of."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from calibration.serving.engine_parameters import NOTHING_FITTED
from calibration.serving.point_steps import IN_FLIGHT, steps_of
from calibration.serving.points import Unpredictable, parse_point
from calibration.serving.predict import predictions, prepare

ROW: dict[str, Any] = {
    "model": "DeepSeek-R1", "gpu": "H200", "engine": "SGLang", "precision": "FP8", "n_gpu": 8, "isl": 1000,
    "osl": 500, "concurrency": 16, "decode_parallel": "TP8", "tpot_ms": 12.0,
}  # fmt: skip
ALONE = {**ROW, "disaggregated": 1, "osl": None, "n_gpu": None, "isl": 65536, "concurrency": 1, "gpu": "H20-141GB"}


def predicted(metric: str, **changes: Any) -> float:
    lines = predictions(prepare(pd.DataFrame([{**ROW, metric: 1.0, **changes}])), NOTHING_FITTED)
    return float(lines.loc[lines["metric"] == metric, "predicted"].iloc[0])


def test_all_requests_at_once_run_as_many_as_memory_holds() -> None:
    row = {**ROW, "concurrency": None, "workload": "max throughput"}
    steps = steps_of(parse_point(0, row))
    assert steps.batches == (steps.limit,)
    assert steps.point.concurrency * IN_FLIGHT == pytest.approx(steps.limit)
    most = predicted("output_tok_s_per_gpu", **{k: row[k] for k in ("concurrency", "workload")})
    assert most > predicted("output_tok_s_per_gpu", concurrency=256)
    with pytest.raises(Unpredictable, match="all requests at once"):  # it does not fit by our count
        steps_of(parse_point(0, {**row, "n_gpu": 1, "decode_parallel": "TP1"}))


def test_drafts_without_a_head_are_refused() -> None:
    row = {**ROW, "model": "MiniMax-M3", "spec_decode": "EAGLE3"}
    with pytest.raises(Unpredictable, match="drafts by a head of which nothing is known"):
        steps_of(parse_point(0, row))
    assert steps_of(parse_point(0, {**row, "spec_decode": "none"})).kernels > 0


@pytest.mark.parametrize(
    ("model", "said"),
    [("Nemotron-3-Ultra-550B-A55B", "Mamba-2"), ("Qwen3.8-2.4T-A95B", "no configuration"), ("Other-1", "no preset")],
)
def test_models_that_are_not_modelled_are_refused_by_name(model: str, said: str) -> None:
    with pytest.raises(Unpredictable, match=said):
        steps_of(parse_point(0, {**ROW, "model": model}))


def test_a_pool_alone_counts_its_own_accelerators() -> None:
    alone = {**ALONE, "phase": "decode", "n_decode_gpu": 16, "decode_parallel": "DP16 EP16", "concurrency": 16}
    user, rate = predicted("tok_s_per_user", **alone), predicted("output_tok_s_per_gpu", **alone)
    assert rate == pytest.approx(user)  # one request for each accelerator


def test_a_second_stage_halves_long_prompts_and_leaves_single_tokens_as_they_are() -> None:
    prefill = {**ALONE, "phase": "prefill", "decode_parallel": "", "tpot_ms": None}
    one = predicted("ttft_ms", **prefill, n_prefill_gpu=8, prefill_parallel="TP8")
    two = predicted("ttft_ms", **prefill, n_prefill_gpu=16, prefill_parallel="PP2 x TP8")
    assert 0.5 < two / one < 0.65
    decode = {k: v for k, v in ALONE.items() if k != "decode_parallel"} | {"phase": "decode"}
    one = predicted("tpot_ms", **decode, n_decode_gpu=8, decode_parallel="TP8")
    two = predicted("tpot_ms", **decode, n_decode_gpu=16, decode_parallel="PP2 x TP8")
    assert two == pytest.approx(one, rel=0.05)

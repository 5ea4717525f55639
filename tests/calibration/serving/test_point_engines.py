"""What a row asks of the steps: its limits, its pipeline, and what nothing is known of."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from calibration.serving.effects import NOTHING_FITTED
from calibration.serving.equilibria import priced_point
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


def test_all_requests_at_once_run_as_many_as_an_instance_takes() -> None:
    most = predicted("output_tok_s_per_gpu", concurrency=None, workload="max throughput")
    assert most > predicted("output_tok_s_per_gpu", concurrency=256)
    assert most == pytest.approx(predicted("output_tok_s_per_gpu", concurrency=100_000), rel=0.02)


def test_drafts_without_a_head_are_refused() -> None:
    row = {**ROW, "model": "MiniMax-M3", "spec_decode": "EAGLE3"}
    with pytest.raises(Unpredictable, match="drafts by a head of which nothing is known"):
        priced_point(parse_point(0, row))
    assert priced_point(parse_point(0, {**row, "spec_decode": "none"})).entry.kernels > 0


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("Nemotron-3-Ultra-550B-A55B", "give the path of its config.json"),
        ("Qwen3.8-2.4T-A95B", "no configuration"),
        ("Other-1", "no preset"),
    ],
)
def test_models_that_are_not_modelled_are_refused_by_name(model: str, said: str) -> None:
    with pytest.raises(Unpredictable, match=said):
        priced_point(parse_point(0, {**ROW, "model": model}))


def test_a_pool_alone_counts_its_own_accelerators() -> None:
    alone = {**ALONE, "phase": "decode", "n_decode_gpu": 16, "decode_parallel": "DP16 EP16", "concurrency": 16}
    user, rate = predicted("tok_s_per_user", **alone), predicted("output_tok_s_per_gpu", **alone)
    assert rate == pytest.approx(user)  # one request for each accelerator


def test_a_second_stage_speeds_up_long_prompts_and_leaves_single_tokens_as_they_are() -> None:
    """Each chunk drains the pipeline: 3 stage times of half the layers for 2."""
    prefill = {**ALONE, "phase": "prefill", "decode_parallel": "", "tpot_ms": None}
    one = predicted("ttft_ms", **prefill, n_prefill_gpu=8, prefill_parallel="TP8")
    two = predicted("ttft_ms", **prefill, n_prefill_gpu=16, prefill_parallel="PP2 x TP8")
    assert two / one == pytest.approx(0.75, abs=0.04)
    decode = {k: v for k, v in ALONE.items() if k != "decode_parallel"} | {"phase": "decode"}
    one = predicted("tpot_ms", **decode, n_decode_gpu=8, decode_parallel="TP8")
    two = predicted("tpot_ms", **decode, n_decode_gpu=16, decode_parallel="PP2 x TP8")
    assert two == pytest.approx(one, rel=0.05)

"""Equilibria against the simulator's own step times, Little's law, and each other; the whole way from a file."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from calibration.serving.balance import balance
from calibration.serving.engine_parameters import NOTHING_FITTED, PARAMETERS, StackFit, shipped, values
from calibration.serving.point_steps import hardware_of, parallelism_of
from calibration.serving.predict import predictions, prepare
from calibration.serving.scores import report
from calibration.serving.served_model import preset_of, variant
from calibration.serving.waits import waits, waits_of_steps
from simulator.model.latency import StepLatency
from simulator.model.step import DecodeLoad

ROW: dict[str, Any] = {
    "model": "DeepSeek-R1", "gpu": "mi355x", "engine": "elsewhere", "precision": "FP8", "n_gpu": 8, "isl": 1000,
    "osl": 500, "concurrency": 64, "decode_parallel": "TP8", "tpot_ms": 20.0, "total_tok_s_per_gpu": 900.0,
    "ttft_ms": 300.0,
}  # fmt: skip
SPLIT: dict[str, Any] = {
    **ROW, "disaggregated": 1, "n_gpu": 24, "n_prefill_gpu": 8, "n_decode_gpu": 16,
    "prefill_parallel": "1x(TP8)", "decode_parallel": "2x(TP8)",
}  # fmt: skip
# All kernels at their own rates, nothing hidden, no host: what StepLatency alone says.
BARE = {
    "launch": 1.0,
    "memory": 1.0,
    "matrix": 1.0,
    "network": 1.0,
    "kernel_overhead_s": 1e-12,
    "sequence_overhead_s": 1e-12,
}


def fit_with(**given: float) -> StackFit:
    shift = np.array([math.log(given[p.name] / p.assumed) if p.name in given else 0.0 for p in PARAMETERS])
    return StackFit({"all=": shift}, {}, "test")


def lines_of(*rows: dict[str, Any], fit: StackFit = NOTHING_FITTED) -> pd.DataFrame:
    return predictions(prepare(pd.DataFrame(rows)), fit)


def test_decode_steps_are_those_of_the_simulator() -> None:
    prepared = prepare(pd.DataFrame([{**ROW, "phase": "decode"}]))
    assert prepared.loop is not None
    step_s = balance(prepared.loop, fit_with(**BARE).theta(prepared.levels)).tpot_s[0]
    hardware, cut = hardware_of("mi355x"), parallelism_of(prepared.steps[0].point.decode)
    engine = StepLatency(variant("DeepSeek-R1", "FP8", "elsewhere", hardware, 1), hardware, cut)
    own_s = engine.decode_s(DecodeLoad(64, 64 * 1250, (), 64)) - hardware.efficiency.step_overhead_s
    assert step_s == pytest.approx(own_s, rel=0.01)


def test_older_software_has_the_host_time_that_renewal_says() -> None:
    """Where it halves every half-year, that of a year ago takes four times as long between the same kernels."""
    prepared = prepare(
        pd.DataFrame([{**ROW, "phase": "decode", "date": date} for date in ("2026-08-01", "2025-08-01")])
    )
    assert prepared.loop is not None
    given = {**BARE, "kernel_overhead_s": 5e-6, "renewal": 0.5}
    now, before = balance(prepared.loop, fit_with(**given).theta(prepared.levels)).tpot_s
    hardware, cut = hardware_of("mi355x"), parallelism_of(prepared.steps[0].point.decode)
    kernels = StepLatency(variant("DeepSeek-R1", "FP8", "elsewhere", hardware, 1), hardware, cut).kernels
    assert before - now == pytest.approx(3 * 5e-6 * kernels)


@pytest.mark.parametrize("row", [ROW, SPLIT])
def test_littles_law(row: dict[str, Any]) -> None:
    """Requests in the system are throughput times residence."""
    found = lines_of(row).set_index("metric")["predicted"]
    rate = found["total_tok_s_per_gpu"] * row["n_gpu"] / (row["isl"] + row["osl"])
    residence_s = found["ttft_ms"] / 1e3 + (row["osl"] - 1) * found["tpot_ms"] / 1e3
    assert rate * residence_s == pytest.approx(row["concurrency"], rel=0.08)


def test_more_users_are_slower_each_and_faster_together() -> None:
    for row in (ROW, SPLIT):
        found = lines_of(*({**row, "concurrency": c} for c in (4, 16, 64, 256)))
        for metric, sign in (("tpot_ms", 1), ("total_tok_s_per_gpu", 1)):
            curve = found.loc[found["metric"] == metric, "predicted"].to_numpy()
            assert (np.diff(curve) * sign > 0).all(), (metric, curve)


def test_drafts_help_by_the_tokens_they_bring() -> None:
    """Tokens per step are (1 - p^4) / (1 - p) with three drafts."""
    row = {**ROW, "spec_decode": "MTP", "phase": "decode"}
    slow, fast = (
        lines_of(row, fit=fit_with(acceptance=a)).set_index("metric")["predicted"]["tpot_ms"] for a in (0.5, 0.8)
    )
    chances = [values(fit_with(acceptance=a).theta([("all=",)]))["acceptance"][0] for a in (0.5, 0.8)]
    tokens = [(1 - p**4) / (1 - p) for p in chances]
    assert slow / fast == pytest.approx(tokens[1] / tokens[0], rel=1e-6)


def test_rates_per_pool_where_both_are_given() -> None:
    row = {**SPLIT, "output_tok_s_per_gpu": 100.0, "input_tok_s_per_gpu": 400.0}
    found = lines_of(row).set_index("metric")["predicted"]
    total = found["output_tok_s_per_gpu"] * 16 + found["input_tok_s_per_gpu"] * 8
    assert total == pytest.approx(found["total_tok_s_per_gpu"] * 24, rel=1e-9)


def test_nothing_is_dropped_silently() -> None:
    frame = pd.DataFrame([ROW, {**ROW, "model": "Unheard-Of-7B"}, {**ROW, "concurrency": None}])
    prepared = prepare(frame)
    answer = report(prepared, predictions(prepared, NOTHING_FITTED))
    assert answer.predicted == 1
    assert answer.coverage_of_points == pytest.approx(1 / 3)
    assert [one.row for one in answer.unpredicted] == [1, 2]


def test_bands_hold_the_prediction_and_widen_away_from_what_was_fitted() -> None:
    fit = shipped()
    found = lines_of({**ROW, "engine": "SGLang"}, {**ROW, "engine": "SGLang", "gpu": "a100_sxm"}, fit=fit)
    assert (found["p10"] < found["predicted"]).all()
    assert (found["predicted"] < found["p90"]).all()
    tpot = found[found["metric"] == "tpot_ms"]
    assert list(tpot["situation"]) == ["known", "new accelerator"]
    width = (tpot["p90"] / tpot["p10"]).to_numpy()
    assert width[1] > width[0]


def test_a_mean_over_all_requests_has_the_first_wave() -> None:
    """Ten requests for each in flight: a tenth of them waits for half the others' prompts, the rest, mean and median,
    for a fifth of that."""
    bunched = fit_with(bunching=0.2, gathering=1e-9, interruption=1.0, warm_up_s=1e-12)
    many, alone = {**ROW, "concurrency": 201}, {**ROW, "concurrency": 1}
    prepared = prepare(pd.DataFrame([many, {**many, "ttft_stat": "mean"}, alone]))
    assert prepared.loop is not None
    theta = bunched.theta(prepared.levels)
    found = balance(prepared.loop, theta)
    prefill_s = found.ttft_s[2] - values(theta)["request_overhead_s"][2] - found.tpot_s[2] / 2
    assert found.tpot_s[0] == pytest.approx(found.tpot_s[1])
    added = found.ttft_s[1] - found.ttft_s[0]
    every = (0.975 * 201 - 1) * prefill_s / 2
    assert added == pytest.approx(0.1 * (1 - 0.2) * every, rel=0.1)  # prompts that share a step take a little less
    assert found.median_ttft_s[:2] == pytest.approx([found.ttft_s[0]] * 2)


@pytest.mark.parametrize("row", [ROW, SPLIT])
def test_the_first_wave_warms_up_for_each_doubling_of_the_batch(row: dict[str, Any]) -> None:
    """One request meets nothing new; 64 meet batch sizes 2, 4, 8, 16, 32 and 64, and are a tenth of all."""
    prepared = prepare(pd.DataFrame([{**row, "concurrency": c, "ttft_stat": "mean"} for c in (1, 64)]))
    assert prepared.loop is not None
    cold, warm = (balance(prepared.loop, fit_with(warm_up_s=s).theta(prepared.levels)) for s in (2.0, 1e-12))
    assert cold.ttft_s - warm.ttft_s == pytest.approx([0.0, 0.1 * 6 * 2.0], abs=1e-9)
    assert cold.median_ttft_s == pytest.approx(warm.median_ttft_s)


@pytest.mark.parametrize("busy", [0.2, 0.45, 0.7, 0.9])
def test_waits_are_those_of_a_queue_with_poisson_arrivals(busy: float) -> None:
    """Lindley's recursion over 400,000 prompts of one second. The median is good to a fifth of a prompt."""
    gaps = np.random.default_rng(0).exponential(1 / busy, 400_000)
    seen = np.empty(len(gaps))
    wait = 0.0
    for i, gap in enumerate(gaps):
        seen[i] = wait = max(0.0, wait + 1.0 - gap)
    mean, median = waits(np.array([1.0]), np.array([busy]), np.array([1e9]), np.array([0.0]))
    assert mean[0] == pytest.approx(seen.mean(), rel=0.05)
    assert median[0] == pytest.approx(np.median(seen), abs=0.2)


def sojourns(fixed: float, each: float, most: int, rate: float) -> NDArray[np.float64]:
    """Of Poisson arrivals at a server whose steps take all that wait, at most `most`, in fixed + n each seconds."""
    arrivals = np.cumsum(np.random.default_rng(0).exponential(1 / rate, 40_000))
    out = np.empty(len(arrivals))
    now, first = 0.0, 0
    while first < len(arrivals):
        start = max(now, arrivals[first])
        last = max(first + 1, min(int(np.searchsorted(arrivals, start, side="right")), first + most))
        now = start + fixed + (last - first) * each
        out[first:last] = now - arrivals[first:last]
        first = last
    return out


@pytest.mark.parametrize("busy", [0.05, 0.3, 0.6, 0.9])
@pytest.mark.parametrize(
    ("fixed", "each", "most"), [(0.0, 1.0, 1), (0.875, 0.125, 8), (0.5, 0.5, 8), (0.9, 0.1, 64), (0.0, 1.0, 8)]
)
def test_waits_of_steps_are_those_of_a_simulated_queue(fixed: float, each: float, most: int, busy: float) -> None:
    """Data-parallel ranks: one prompt takes a whole step (fixed), eight take hardly more. Medians jump where half of
    the prompts find a step running; elsewhere they are as good."""
    served = (fixed + most * each) / most
    seen = sojourns(fixed, each, most, busy / served)
    own, many = np.array([fixed + each]), np.array([1e9])
    mean, median = waits_of_steps(
        own, np.array([served]), np.array([most]), np.array([busy / served]), many, np.array([0.0])
    )
    assert own + mean == pytest.approx(seen.mean(), rel=0.2)
    assert own + median == pytest.approx(np.median(seen), rel=0.5 if 0.3 <= busy <= 0.6 else 0.25)


def test_nobody_waits_for_prompts_that_are_not_there() -> None:
    alone = waits_of_steps(*(np.array([x]) for x in (1.0, 0.2, 8.0, 0.5, 0.0, 0.0)))
    assert [float(x[0]) for x in alone] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("notes", "running"),
    [("--max-running-requests 64", 64), ("KV-capacity-bound (~15 running requests)", 15), ("--max-num-seqs=8", 32)],
)
def test_stated_limits_bound_the_running_requests(notes: str, running: float) -> None:
    """`max-num-seqs` is of each of four data-parallel ranks."""
    labels = {"decode_parallel": "DEP4", "prefill_parallel": "DEP4", "n_gpu": 4}
    (one,) = prepare(pd.DataFrame([{**ROW, **labels, "concurrency": 400, "notes": notes}])).steps
    assert one.batches == (running,)


def test_a_token_budget_bounds_the_running_requests() -> None:
    """Rows without drafts: n + n I/O = budget, so 512 tokens hold 512 / (1 + 2) requests of 1000 in, 500 out."""
    (one,) = prepare(pd.DataFrame([{**ROW, "concurrency": 400, "notes": "uses max-num-batched-tokens 512"}])).steps
    assert one.batches == (pytest.approx(512 / 3),)


def test_distrusted_rows_are_scored_apart() -> None:
    rows = [{**ROW, "tpot_ms": 138.0, "total_tok_s_per_gpu": 172.0}, ROW, {**ROW, "notes": "older run of the same"}]
    prepared = prepare(pd.DataFrame(rows))
    answer = report(prepared, predictions(prepared, NOTHING_FITTED))
    assert answer.overall["tpot_ms"].n == 3
    assert answer.trusted["tpot_ms"].n == 1
    reasons = [one.reason for one in answer.distrusted]
    assert "Little" in reasons[0]
    assert "older" in reasons[1]


def test_names_of_models() -> None:
    assert preset_of("deepseek-ai/DeepSeek-V3.1-Terminus") == "deepseek-v3"
    assert preset_of("GLM-5.2") == "glm-5.2"

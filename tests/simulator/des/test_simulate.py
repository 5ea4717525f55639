"""Scenarios on real models and accelerators."""

import json
from pathlib import Path
from typing import Any

import pytest

from hw_profiles.catalog import load
from simulator.des.simulate import simulate
from simulator.model.latency import DecodeLoad, StepLatency
from simulator.model.parallelism import Parallelism
from simulator.model.presets import load_model
from simulator.scenario import Scenario, ScenarioError, parse_scenario

POOL = {"gpu": "h200_sxm", "tp": 8, "ep": 8}
LOAD = {
    "kind": "open_loop",
    "rate": 3.0,
    "requests": 150,
    "prompt": {"kind": "lognormal", "median": 900, "sigma": 0.7, "maximum": 20_000},
    "output": {"kind": "uniform", "low": 50, "high": 200},
}


def scenario(**changes: Any) -> Scenario:
    base = {
        "model": "qwen3-235b-a22b",
        "workload": LOAD,
        "slo": {"ttft_s": 3.0, "tpot_s": 0.1},
        "deployment": {"colocated": POOL},
    }
    return parse_scenario(base | changes)


DISAGGREGATED = {
    "model": "deepseek-v4-flash",
    "deployment": {
        "prefill": {"gpu": "b200_sxm", "dp": 4, "ep": 4},
        "decode": {"gpu": "h200_sxm", "dp": 8, "ep": 8, "instances": 2},
        "router": "power_of_two",
    },
}


@pytest.mark.parametrize("changes", [{}, DISAGGREGATED], ids=["colocated", "disaggregated"])
def test_summary_has_the_promised_keys_and_survives_json(changes: dict[str, Any]) -> None:
    result = simulate(scenario(**changes))
    summary = json.loads(json.dumps(result.summary().to_json(), allow_nan=False))
    assert summary["requests"] == {"total": 150, "finished": 150, "failed": 0, "rejected": 0}
    assert set(summary["metrics"]) == {"ttft_s", "tpot_s", "e2e_s", "tok_s_per_user"}
    assert all(set(m) == {"mean", "p50", "p90", "p95", "p99"} for m in summary["metrics"].values())
    assert {"total_tok_s_per_gpu", "output_tok_s_per_gpu", "requests_per_s"} <= set(summary["throughput"])
    assert {"usd_per_hour", "usd_per_mtok_input", "usd_per_mtok_output", "usd_per_mtok_blended"} <= set(summary["cost"])
    assert summary["tokens_in"] == result.requests["prompt_tokens"].sum()
    assert summary["assumptions"]
    # The stream is light: what leaves per second is what comes.
    assert summary["throughput"]["requests_per_s"] == pytest.approx(3.0, rel=0.25)


def test_the_same_seed_gives_the_same_requests_and_another_seed_others() -> None:
    first, same, other = (simulate(scenario(), seed=seed).requests for seed in (5, 5, 6))
    assert first.equals(same)
    assert not first["arrival_s"].equals(other["arrival_s"])


def test_a_request_alone_decodes_at_the_step_time_of_the_op_model() -> None:
    alone = {"kind": "closed_loop", "concurrency": 1, "requests": 3, "prompt": 2000, "output": 101}
    result = simulate(scenario(workload=alone, warmup_fraction=0.0))
    times = StepLatency(load_model("qwen3-235b-a22b"), load("h200_sxm"), Parallelism(tp=8, ep=8))

    def step(context: int) -> float:
        return times.decode_s(DecodeLoad(1, context, tuple(min(context, cap) for cap in times.caps), 1))

    assert step(2001) <= result.tpot_s.min()
    assert result.tpot_s.max() <= step(2100)


def test_more_traffic_is_never_faster() -> None:
    def mean_e2e(rate: float) -> float:
        value = simulate(scenario(workload=LOAD | {"rate": rate})).summary().to_json()["metrics"]["e2e_s"]["mean"]
        return float(value)

    assert mean_e2e(1.0) < mean_e2e(8.0) < mean_e2e(64.0)


def test_progress_is_told_to_the_end() -> None:
    told: list[tuple[int, int]] = []
    simulate(scenario(), progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (150, 150)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_a_trace_is_replayed_at_its_own_times(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    rows = [{"timestamp": 500 * i, "input_length": 100 + i, "output_length": 5} for i in range(20)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    table = simulate(scenario(workload={"kind": "trace", "path": str(path), "speed": 2.0})).requests
    assert table["arrival_s"].tolist() == pytest.approx([0.25 * i for i in range(20)])
    assert table["prompt_tokens"].tolist() == [100 + i for i in range(20)]


def test_sequences_beyond_the_models_positions_are_rejected() -> None:
    too_long = {"kind": "open_loop", "rate": 1.0, "requests": 4, "prompt": 41_000, "output": 10}
    result = simulate(scenario(workload=too_long))
    assert result.summary().to_json()["requests"]["rejected"] == 4
    assert "positions" in next(iter(result.rejections))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": "qwen3-235"}, "qwen3-235"),
        ({"deployment": None}, "has no"),
        ({"deployment": {"colocated": POOL | {"gpu": "h201"}}}, "h201"),
        ({"deployment": {"colocated": {"gpu": "h200_sxm", "tp": 3}}}, "tp=3 does not divide 64 attention heads"),
        ({"deployment": {"colocated": {"gpu": "h200_sxm"}}}, "at least 4 h200_sxm would do"),
        ({"workload": {"kind": "trace", "path": "none.csv"}}, "none.csv does not exist"),
    ],
)
def test_what_cannot_be_simulated_is_said_in_one_sentence(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=r".*") as error:
        simulate(scenario(**changes))
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_scenario_without_pools_says_what_to_add() -> None:
    with pytest.raises(ScenarioError, match=r"\[deployment\]"):
        simulate(scenario(deployment=None))

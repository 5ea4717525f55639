"""Points played as their benchmarks were: what a benchmark reports, and that `simulate` gives the same answer."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from app.cli import cli
from calibration.serving.by_des.benchmark import MOST_CLIENTS, benchmark_of, requests_of
from calibration.serving.by_des.engine import FittedEngine, engines_of_rows
from calibration.serving.by_des.play import reported, weighted_median, weights
from calibration.serving.by_des.predictions import predictions_by_des
from calibration.serving.effects import ServingFit, shipped
from calibration.serving.parameters import NAMES, levels_of
from calibration.serving.point_engines import hardware_of
from calibration.serving.points import Point, parse_point
from calibration.serving.predict import prepare
from simulator import simulate
from simulator.des.results.measured import Measured
from simulator.model.acceptance import tokens_per_step
from simulator.model.engine import in_service
from simulator.model.latency import DecodeLoad, StepLatency
from simulator.model.parallelism import Parallelism
from simulator.scenario import parse_scenario

ROW: dict[str, Any] = {
    "id": "a row", "model": "DeepSeek-R1", "gpu": "H200", "n_gpu": 8, "engine": "vLLM", "precision": "FP8",
    "decode_parallel": "TP8", "isl": 1000, "osl": 200, "concurrency": 8, "workload": "random",
    "tpot_ms": 20.0, "total_tok_s_per_gpu": 300.0, "ttft_ms": 300.0,
}  # fmt: skip
APART = {"disaggregated": 1, "n_gpu": 16, "n_prefill_gpu": 8, "n_decode_gpu": 8, "prefill_parallel": "TP8"}
BATCHING = {"SGLang": "prefill_first", "TensorRT-LLM": "inflight", "vLLM": "chunked"}
STACKS = {"SGLang": "sglang", "TensorRT-LLM": "trtllm", "vLLM": "vllm"}


def point_of(**changes: Any) -> Point:
    return parse_point(0, ROW | changes)


def engine_of(point: Point) -> FittedEngine:
    (engine,) = engines_of_rows([point], [levels_of(point, hardware_of(point.gpu))], shipped())
    return engine


def published_like() -> list[dict[str, Any]]:
    """Twenty rows of stacks whose profiles ship: models in the precision of their presets, engines of every policy."""
    colocated = [
        ROW | {"engine": engine, "gpu": gpu, "concurrency": clients, "spec_decode": drafts, "isl": isl}
        for (engine, gpu), (clients, drafts, isl) in product(
            [("SGLang", "H200"), ("TensorRT-LLM", "B200"), ("vLLM", "B200")],
            [(1, "none", 1000), (16, "none", 8000), (64, "MTP1", 1000)],
        )
    ]
    parallel = {"decode_parallel": "TP8 EP8 DPattn"}
    return [
        *colocated,
        *(ROW | APART | {"engine": f"Dynamo+{engine}", "gpu": "B200", "concurrency": clients}
          for engine, clients in product(("SGLang", "TensorRT-LLM", "vLLM"), (4, 32))),
        ROW | {"model": "DeepSeek-V4-Pro", "precision": "FP4", "engine": "SGLang", "gpu": "MI355X"},
        ROW | {"model": "MiniMax-M2", "engine": "vLLM", "gpu": "B200"},
        ROW | {"model": "Kimi-K2", "engine": "SGLang", "gpu": "B200"},
        ROW | APART | parallel | {"engine": "Dynamo+SGLang", "gpu": "B200", "concurrency": 64},
        ROW | parallel | {"engine": "SGLang", "gpu": "B200", "concurrency": 64},
    ]  # fmt: skip


def as_a_user_writes_it(row: dict[str, Any], acceptance: float) -> dict[str, Any]:
    """The deployment of a row as keys of a scenario: nothing of the row's reading is used."""
    engine = row["engine"].rpartition("+")[2]
    wide = "DPattn" in row["decode_parallel"]
    drafts = {"MTP1": 1}.get(row.get("spec_decode", "none"), 0)
    pool = {"gpu": row["gpu"].lower(), "stack": STACKS[engine], "max_sequences": row["concurrency"]}
    decode = pool | ({"dp": 8, "ep": 8} if wide else {"tp": 8})
    decode |= {"draft_tokens": drafts, "acceptance_length": tokens_per_step(acceptance, drafts)}
    pools = {"colocated": decode | {"batching": BATCHING[engine]}}
    if row.get("disaggregated"):
        pools = {"prefill": pool | {"tp": 8}, "decode": decode}

    def lengths(nominal: int) -> dict[str, Any]:
        return {"kind": "uniform", "low": round(0.8 * nominal), "high": nominal}

    workload = {
        "kind": "closed_loop", "concurrency": row["concurrency"], "requests": max(40, 10 * row["concurrency"]),
        "prompt": lengths(row["isl"]), "output": lengths(row["osl"]),
    }  # fmt: skip
    return {"model": row["model"].lower(), "workload": workload, "deployment": pools, "warmup_fraction": 0.0}


@pytest.mark.parametrize("row", published_like(), ids=lambda row: " ".join(map(str, list(row.values())[1:10])))
def test_one_deployment_has_one_answer(row: dict[str, Any]) -> None:
    """`simulate` with the profile that ships against `validate --by des` with the fit that ships."""
    point = parse_point(0, row)
    engine = engine_of(point)
    found = reported(benchmark_of(point, engine)).metrics(point)
    result = simulate(parse_scenario(as_a_user_writes_it(row, engine.acceptance)))
    assert isinstance(result, Measured)
    metrics = result.metrics()
    tpot, ttft = metrics["tpot_s"].p50, metrics["ttft_s"].p50
    assert tpot is not None
    assert ttft is not None
    rate = len(result.finish_s) / float(result.finish_s.max())
    assert found["tpot_ms"] == pytest.approx(tpot * 1e3, rel=0.05)
    assert found["ttft_ms"] == pytest.approx(ttft * 1e3, rel=0.05)
    assert found["total_tok_s_per_gpu"] == pytest.approx(rate * (point.prompt + point.output) / point.gpus, rel=0.05)


@pytest.mark.parametrize(("changes", "few"), [({"engine": "SGLang"}, 5), (APART | {"engine": "Dynamo+vLLM"}, 3)])
def test_a_few_requests_a_client_say_what_ten_would(changes: dict[str, Any], few: int) -> None:
    point = point_of(gpu="B200", concurrency=128, **changes)
    benchmark = benchmark_of(point, engine_of(point))
    workload = benchmark.scenario.workload
    assert workload is not None
    all_of_them, some = (
        reported(replace(benchmark, scenario=benchmark.scenario.model_copy(update={"workload": played})))
        for played in (workload.model_copy(update={"requests": n * 128}) for n in (10, few))
    )
    assert some.rate == pytest.approx(all_of_them.rate, rel=0.03)
    assert some.tpot_s == pytest.approx(all_of_them.tpot_s, rel=0.05)
    assert some.ttft_s == pytest.approx(all_of_them.ttft_s, rel=0.2)


def test_the_last_but_one_of_a_client_stands_for_those_not_played() -> None:
    """Two clients with four requests of ten: six of each are not played."""
    arrivals = np.array([0.0, 0.0, 1.0, 1.1, 2.0, 2.1, 3.0, 3.1])
    assert weights(arrivals, 2).tolist() == pytest.approx([0.05] * 4 + [0.35] * 2 + [0.05] * 2)
    assert weights(np.arange(40.0), 2).tolist() == pytest.approx([1 / 40] * 40)
    assert weighted_median(np.arange(8.0), weights(arrivals, 2)) == 4.0


@pytest.mark.parametrize("changes", [{}, APART, {"engine": "SGLang", "spec_decode": "MTP1"}])
def test_what_is_in_flight_is_what_the_benchmark_keeps_in_flight(changes: dict[str, Any]) -> None:
    """Little's law, but for the drain at the end: the last of ten requests of a client have ever fewer beside them."""
    point = point_of(ttft_stat="mean", concurrency=16, **changes)
    engine = replace(engine_of(point), warm_up_s=0.0)
    found = reported(benchmark_of(point, engine))
    held = found.rate * (found.ttft_s + (point.output - 1) * found.tpot_s)
    assert 0.93 * 16 < held <= 1.01 * 16


def test_a_mean_has_the_warm_up_of_the_first_wave() -> None:
    """A tenth of the requests are of the first wave."""
    point = point_of(ttft_stat="mean")
    cold, warm = (reported(benchmark_of(point, replace(engine_of(point), warm_up_s=s))) for s in (2.0, 0.0))
    assert cold.ttft_s - warm.ttft_s == pytest.approx(0.2)
    assert cold.median_ttft_s == warm.median_ttft_s


def test_first_tokens_of_pools_apart_come_after_hand_over_and_a_step() -> None:
    """One client, prompts of 1,000 tokens: beside its prefill and its first decode step it waits for a hand-over."""
    point = point_of(concurrency=1, **APART)
    benchmark = benchmark_of(point, engine_of(point))
    deployment = benchmark.scenario.deployment
    assert deployment is not None
    early = deployment.model_copy(update={"first_token": "prefill"})
    decode, prefill = (
        reported(replace(benchmark, scenario=benchmark.scenario.model_copy(update={"deployment": d})))
        for d in (deployment, early)
    )
    assert decode.ttft_s > prefill.ttft_s + decode.tpot_s
    assert decode.tpot_s < prefill.tpot_s
    assert decode.rate == pytest.approx(prefill.rate)


def test_rates_of_pools_apart_count_the_accelerators_of_each() -> None:
    point = point_of(
        input_tok_s_per_gpu=1.0, **APART | {"n_gpu": 24, "n_prefill_gpu": 16, "prefill_parallel": "2x(TP8)"}
    )
    found = reported(benchmark_of(point, engine_of(point)))
    rates = found.metrics(point)
    assert rates["input_tok_s_per_gpu"] == pytest.approx(found.rate * 900 / 16)
    assert rates["output_tok_s_per_gpu"] == pytest.approx(found.rate * 180 / 8)
    assert rates["total_tok_s_per_gpu"] == pytest.approx(found.rate * 1080 / 24)


def test_a_release_of_its_own_and_older_software_move_host_times() -> None:
    """Twice the host time for one release, half a year of which made it 1.5 times faster for all."""
    effect = dict.fromkeys(NAMES, 0.0)
    fit = ServingFit(
        {
            "all=": np.array([*(effect | {"renewal": math.log(1 / 1.5)}).values()]),
            "engine+release=vLLM+2026-02": np.array([*(effect | {"kernel_overhead_s": math.log(2.0)}).values()]),
        }
    )
    newest, old = (point_of(date=date) for date in ("2026-08-01", "2026-02-01"))
    hardware = hardware_of(newest.gpu)
    levels = [levels_of(point, hardware) for point in (newest, old)]
    engines = list(engines_of_rows([newest, old], levels, fit))
    tpots = [reported(benchmark_of(p, e)).tpot_s for p, e in zip((newest, old), engines, strict=True)]
    hosts = [
        math.prod(s.factors.get("kernel_overhead_s", 1.0) for s in e.hardware.efficiency.situations) for e in engines
    ]
    assert hosts == pytest.approx([1.0, 3.0])
    assert tpots[1] > 1.1 * tpots[0]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"concurrency": MOST_CLIENTS + 1}, "in flight are more than are played"),
        ({"concurrency": None, "workload": "max throughput"}, "does not say how many"),
        ({"n_gpu": 1, "decode_parallel": "TP1"}, "has 673.2 GB of weights"),
        ({"isl": 10**6}, "does not fit"),
    ],
)
def test_what_cannot_be_played_is_listed_with_the_reason(changes: dict[str, Any], told: str) -> None:
    prepared = prepare(pd.DataFrame([ROW, ROW | {"id": "odd"} | changes]))
    kept, lines = predictions_by_des(prepared, shipped())
    assert [priced.point.id for priced in kept.points] == ["a row"]
    ((row, name, why),) = kept.unpredicted
    assert (row, name) == (1, "odd")
    assert told in why
    assert set(lines["row"]) == {0}


def test_a_prefill_pool_alone_is_sent_prompts_of_one_token() -> None:
    point = point_of(phase="prefill", osl=None, workload="")
    found = reported(benchmark_of(point, engine_of(point)))
    assert math.isnan(found.tpot_s)
    assert found.metrics(point)["input_tok_s_per_gpu"] == pytest.approx(found.rate * 1000 / 8)


@pytest.mark.parametrize("alone", [{"disaggregated": 0}, {"disaggregated": 1, "n_decode_gpu": 8}])
def test_a_decode_pool_alone_is_at_its_context(alone: dict[str, Any]) -> None:
    """Eight sequences of 4,000 tokens: TPOT is a step of the op model there, and the rate eight tokens a step."""
    point = point_of(phase="decode", isl=4000, osl=None, workload="", **alone)
    engine = engine_of(point)
    benchmark = benchmark_of(point, engine)
    found = reported(benchmark)
    cut = Parallelism(tp=8)
    hardware = in_service(benchmark.hardware, benchmark.model, "disaggregated")
    step_s = StepLatency(benchmark.model, hardware, cut, 0).decode_s(DecodeLoad.alike(8, 4032, (), 8))
    assert found.tpot_s == pytest.approx(step_s, rel=0.01)
    assert found.metrics(point)["output_tok_s_per_gpu"] == pytest.approx(8 / step_s / 8, rel=0.04)  # its drain
    assert math.isnan(found.ttft_s)


def test_few_clients_send_more_than_ten_and_many_fewer() -> None:
    assert [requests_of(point_of(concurrency=n)) for n in (1, 10, 100, 800, 4000)] == [40, 100, 1000, 5000, 20_000]
    assert requests_of(point_of(concurrency=4000, **APART)) == 12_000


def test_the_command_plays_points(tmp_path: Path) -> None:
    points = tmp_path / "points.csv"
    pd.DataFrame([ROW, ROW | APART | {"engine": "Dynamo+SGLang", "gpu": "B200"}]).to_csv(points, index=False)
    answers = {}
    for by in ("des", "steady"):
        ran = CliRunner().invoke(cli, ["validate", str(points), "--by", by, "--json", "-"])
        assert ran.exit_code == 0, ran.output
        answers[by] = json.loads(ran.stdout)
    assert answers["des"]["predicted"] == answers["steady"]["predicted"] == 2
    assert answers["des"]["overall"].keys() == answers["steady"]["overall"].keys()
    assert answers["des"]["overall"] != answers["steady"]["overall"]

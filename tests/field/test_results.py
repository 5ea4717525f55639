"""Benchmark results of every tool say the same of one run, and become points that can be fitted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from support.bench_files import (
    MODEL,
    Run,
    aiperf,
    aiperf_csv,
    aiperf_records,
    genai_perf,
    guidellm,
    inferencex,
    llmperf,
    sglang,
    trtllm_bench,
    trtllm_serving,
    vllm,
    write_lines,
)
from typer.testing import CliRunner

from app.cli import cli
from calibration.results.point_rows import Setup, rows_of
from calibration.results.reading import read_results
from calibration.results.result import BenchmarkResult, ResultError
from calibration.serving.point_files import read_point_files

RUN = Run()
TOOLS: dict[str, Callable[[Run], dict[str, Any]]] = {
    "vllm bench serve": vllm,
    "sglang.bench_serving": sglang,
    "trtllm benchmark_serving": trtllm_serving,
    "trtllm-bench": trtllm_bench,
    "aiperf": aiperf,
    "genai-perf": genai_perf,
    "guidellm": guidellm,
    "inferencex": inferencex,
    "llmperf": llmperf,
}
SETUP = Setup(gpu="h100", tp=2, engine="vLLM")


def expected(run: Run) -> dict[str, float]:
    return {
        "mean_input_tokens": run.prompt, "mean_output_tokens": run.output, "requests_per_s": run.rate,
        "output_tokens_per_s": run.output_rate, "total_tokens_per_s": run.total_rate, "mean_ttft_s": run.ttft_s,
        "mean_tpot_s": run.tpot_s, "mean_e2e_s": run.e2e_s, "mean_concurrency": run.mean_clients,
    }  # fmt: skip


def check(result: BenchmarkResult, tolerance: float = 1e-6) -> None:
    for name, value in expected(RUN).items():
        assert getattr(result, name) == pytest.approx(value, rel=tolerance), name


@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_says_the_same_of_one_run(tmp_path: Path, tool: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(TOOLS[tool](RUN)), encoding="utf-8")
    (result,) = read_results(path).results
    assert result.tool == tool
    assert result.model == MODEL
    check(result)
    if tool not in ("trtllm-bench", "inferencex"):
        assert result.completed == 80
    if tool not in ("trtllm-bench", "inferencex", "genai-perf"):
        assert result.failed == 2
    if tool != "trtllm-bench":
        assert result.concurrency_limit == 8


def test_tables_and_records_of_aiperf_say_it_too(tmp_path: Path) -> None:
    table = tmp_path / "profile_export_aiperf.csv"
    table.write_text(aiperf_csv(RUN), encoding="utf-8")
    (result,) = read_results(table).results
    check(result, 1e-3)
    assert (result.gpu, result.n_gpu, result.failed) == ("NVIDIA H100 80GB HBM3", 2, 2)
    records = write_lines(tmp_path / "profile_export.jsonl", list(aiperf_records(RUN)))
    (result,) = read_results(records).results
    check(result, 1e-3)
    assert (result.completed, result.failed) == (80, 2)


def test_tables_of_genai_perf_have_thousands_separators(tmp_path: Path) -> None:
    path = tmp_path / "profile_export_genai_perf.csv"
    rows = ['Time to First Token (ms),"1,098.50","900.00","1,200.25"', 'Request Latency (ms),"2,004.15","1.0","2.0"']
    path.write_text("Metric,avg,min,p50\n" + "\n".join(rows) + "\n\nMetric,Value\nRequest Count (count),24.00\n")
    (result,) = read_results(path).results
    assert result.mean_ttft_s == pytest.approx(1.0985)
    assert result.median_ttft_s == pytest.approx(1.20025)
    assert result.completed == 24


def test_an_inter_token_latency_with_the_first_token_is_no_tpot(tmp_path: Path) -> None:
    for make in (llmperf, guidellm):
        path = tmp_path / "r.json"
        path.write_text(json.dumps(make(RUN)))
        (result,) = read_results(path).results
        assert result.mean_tpot_s == pytest.approx(RUN.tpot_s)
        assert result.mean_e2e_over_output_tokens_s == pytest.approx(RUN.e2e_s / RUN.output)


def test_infinity_and_one_object_a_line_are_read_and_one_bad_line_is_listed(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "appended.json", [vllm(RUN), sglang(RUN)])
    text = path.read_text().splitlines()
    path.write_text("\n".join([text[0], '{"completed": 24, "mean_ttft_ms": ', text[1], '{"a": 1}']))
    found = read_results(path)
    assert [result.where.partition(", ")[2] for result in found.results] == ["line 1", "line 3"]
    assert len(found.left_out) == 2
    assert f"{path}, line 2: what begins here is not JSON" in found.left_out[0]
    assert "line 4: keys a... are no result of vllm bench serve" in found.left_out[1]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"mean_ttft_ms": "soon"}, "line 1, key mean_ttft_ms: 'soon' is no number"),
        ({"duration": -1.0}, "key duration: -1 is negative"),
        ({"output_throughput": True}, "key output_throughput: True is no number"),
    ],
)
def test_a_bad_figure_is_named_with_its_place(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    path = write_lines(tmp_path / "r.json", [vllm(RUN) | change])
    with pytest.raises(ResultError) as error:
        read_results(path)
    assert told in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is empty"),
        ("a,b\n1,2\n", "a table with the header 'a,b' is no result"),
        ("[1]", "is no object with results"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(ResultError, match=told):
        read_results(path)


@pytest.mark.parametrize(
    "text",
    [
        '{"completed": 5, "mean_ttft_ms": 1, "server_info": {"tp_size": -4}}',
        '{"time_to_first_token": {"unit": "parsec", "avg": 1}}',
        '{"time_to_first_token": {"unit": "ms", "avg": {"a": 1}}, "input_config": 7}',
        '{"benchmarks": [{"metrics": {}}, 3]}',
        '{"hw": 3, "conc": 4, "tput_per_gpu": "x"}',
        '{"metadata": {"request_start_ns": "x"}, "metrics": {}}',
        "[" * 100_000,
        "Metric,avg\nTime to First Token (ms)\n",
    ],
)
def test_malformed_results_are_refused_in_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(ResultError) as error:
        read_results(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def rows(tmp_path: Path, objects: list[dict[str, Any]], setup: Setup) -> tuple[list[dict[str, Any]], list[str]]:
    return rows_of(read_results(write_lines(tmp_path / "r.json", objects)).results, setup)


def test_a_row_has_rates_per_accelerator_and_the_limits_of_a_rank(tmp_path: Path) -> None:
    """SGLang's server writes the chunk of a rank, and requests at once of all ranks."""
    ((row,), left_out) = rows(tmp_path, [sglang(RUN)], Setup(gpu="NVIDIA H100 80GB HBM3"))
    assert left_out == []
    assert (row["gpu"], row["n_gpu"], row["decode_parallel"]) == ("h100_sxm", 4, "TP4 DPattn")
    assert (row["prefill_chunk"], row["sequences_per_rank"], row["decode_attention_ranks"]) == (4096, 128, 2)
    assert row["total_tok_s_per_gpu"] == pytest.approx(RUN.total_rate / 4, rel=1e-6)
    assert (row["tpot_ms"], row["ttft_ms"], row["concurrency"]) == (9.0, 120.0, 8)
    assert row["spec_decode"] == "none"


def test_arrivals_that_keep_few_in_flight_count_as_they_are(tmp_path: Path) -> None:
    ((row,), _) = rows(tmp_path, [sglang(Run(kept=0.4)) | {"request_rate": 1.5}], Setup(gpu="h100"))
    assert row["concurrency"] == pytest.approx(3.2)


@pytest.mark.parametrize(
    ("setup", "told"),
    [
        (Setup(tp=2), "the accelerator is not said; give it as --gpu"),
        (Setup(gpu="h100"), "how the model is cut is not said; give --tp"),
        (Setup(gpu="h100", tp=2, n_gpu=3), "instances of 2 accelerators do not fill 3"),
        (Setup(gpu="h100", commands=("vllm serve a/b -tp 2 --kv-transfer-config '{\"kv_role\": \"kv_producer\"}'",)),
         "only the launch line of prefill is given"),
    ],
)  # fmt: skip
def test_what_a_point_lacks_is_asked_for(tmp_path: Path, setup: Setup, told: str) -> None:
    made, left_out = rows(tmp_path, [vllm(RUN)], setup)
    assert made == []
    assert told in left_out[0]


def test_a_launch_line_that_contradicts_a_result_is_refused(tmp_path: Path) -> None:
    line = "python -m sglang.launch_server --model-path a/b --tp 8 --dp 8 --enable-dp-attention"
    _, left_out = rows(tmp_path, [sglang(RUN)], Setup(gpu="h100", commands=(line,)))
    assert "the file says accelerators 4 and the launch line 8" in left_out[0]


def test_a_pair_of_launch_lines_is_disaggregated(tmp_path: Path) -> None:
    lines = (
        "python -m sglang.launch_server --model-path a/b --disaggregation-mode prefill --tp 4 "
        "--chunked-prefill-size 8192",
        "python -m sglang.launch_server --model-path a/b --disaggregation-mode decode --tp 8 --ep 8 --dp 8 "
        "--enable-dp-attention --max-running-requests 1024",
    )
    ((row,), _) = rows(tmp_path, [vllm(RUN)], Setup(gpu="b200", engine="SGLang", commands=lines))
    assert (row["disaggregated"], row["n_prefill_gpu"], row["n_decode_gpu"]) == (1, 4, 8)
    assert (row["prefill_parallel"], row["decode_parallel"]) == ("TP4", "TP8 EP8 DPattn")
    assert (row["prefill_chunk"], row["sequences_per_rank"]) == (8192, 128)
    assert row["output_tok_s_per_gpu"] == pytest.approx(RUN.output_rate / 8, rel=1e-6)
    assert row["input_tok_s_per_gpu"] == pytest.approx(RUN.rate * RUN.prompt / 4, rel=1e-6)


def test_points_and_results_go_in_together(tmp_path: Path) -> None:
    result = write_lines(tmp_path / "r.json", [vllm(RUN)])
    points = tmp_path / "points.csv"
    base = {"model": "qwen3-30b-a3b", "gpu": "h100", "n_gpu": 2, "isl": 100, "osl": 10, "concurrency": 1}
    pd.DataFrame([base | {"tpot_ms": 7.0}]).to_csv(points, index=False)
    frame = read_point_files([points, result], SETUP).frame
    assert frame["tpot_ms"].tolist() == [7.0, 9.0]


def test_results_are_validated_as_they_are(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "r.json", [vllm(RUN), {"nothing": 1}])
    command = ["validate", str(path), "--gpu", "h100", "--command", f"vllm serve {MODEL} -tp 2", "--json", "-"]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert answer["coverage_of_points"] == 1.0
    assert len(answer["unread"]) == 1
    refused = CliRunner().invoke(cli, ["import", "results", str(path), "--output", str(tmp_path / "p.csv")])
    assert refused.exit_code == 2
    assert "Traceback" not in refused.output

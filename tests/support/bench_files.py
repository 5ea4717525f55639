"""Invented results of one run as benchmark tools write them; only key names, units and nesting are the tools' own."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODEL = "Qwen/Qwen3-30B-A3B"


@dataclass(frozen=True)
class Run:
    """A closed loop of `clients` in equilibrium: rate x latency = clients, but for ramp-up."""

    clients: int = 8
    requests: int = 80
    failed: int = 2
    prompt: float = 1800.0
    output: float = 250.0
    ttft_s: float = 0.12
    tpot_s: float = 0.009
    itl_s: float = 0.0091
    kept: float = 0.97  # of the clients that have a request under way, on average

    @property
    def e2e_s(self) -> float:
        return self.ttft_s + (self.output - 1) * self.tpot_s

    @property
    def mean_clients(self) -> float:
        return self.clients * self.kept

    @property
    def rate(self) -> float:
        return self.mean_clients / self.e2e_s

    @property
    def duration_s(self) -> float:
        return self.requests / self.rate

    @property
    def output_rate(self) -> float:
        return self.rate * self.output

    @property
    def total_rate(self) -> float:
        return self.rate * (self.output + self.prompt)


def vllm(run: Run) -> dict[str, Any]:
    """`vllm bench serve --save-result --percentile-metrics ttft,tpot,itl,e2el`."""
    flat = {
        "date": "20261130-101500", "backend": "vllm", "label": None, "model_id": MODEL, "tokenizer_id": MODEL,
        "num_prompts": run.requests + run.failed, "request_rate": "inf", "burstiness": 1.0,
        "max_concurrency": run.clients, "duration": run.duration_s, "completed": run.requests, "failed": run.failed,
        "total_input_tokens": run.requests * run.prompt, "total_output_tokens": run.requests * run.output,
        "request_throughput": run.rate, "request_goodput": None, "output_throughput": run.output_rate,
        "total_token_throughput": run.total_rate,
    }  # fmt: skip
    return flat | _in_ms(run, "e2el")


def _in_ms(run: Run, whole: str) -> dict[str, float]:
    latencies = {"ttft": run.ttft_s, "tpot": run.tpot_s, "itl": run.itl_s, whole: run.e2e_s}
    return {f"{stat}_{name}_ms": value * 1e3 for name, value in latencies.items() for stat in ("mean", "median", "p99")}


def sglang(run: Run, **server: Any) -> dict[str, Any]:
    """`sglang.bench_serving --output-file`; requests are sent as fast as the clients allow, which is Infinity."""
    info = {"model_path": MODEL, "tp_size": 4, "pp_size": 1, "dp_size": 1, "attn_dp_size": 2, "ep_size": 1,
            "enable_dp_attention": True, "chunked_prefill_size": 4096, "max_running_requests": 256,
            "speculative_algorithm": None, "version": "0.5.23"}  # fmt: skip
    return {
        "backend": "sglang", "dataset_name": "random", "request_rate": float("inf"), "max_concurrency": run.clients,
        "random_input_len": 2048, "random_output_len": 256, "server_info": info | server, "duration": run.duration_s,
        "completed": run.requests, "total_input_tokens": run.requests * run.prompt,
        "total_output_tokens": run.requests * run.output, "request_throughput": run.rate,
        "output_throughput": run.output_rate, "total_throughput": run.total_rate, "concurrency": run.mean_clients,
        "output_lens": [250] * run.requests + [0] * run.failed, **_in_ms(run, "e2e_latency"),
    }  # fmt: skip


def trtllm_serving(run: Run) -> dict[str, Any]:
    """TensorRT-LLM's `benchmark_serving --save-result`; a key ends with a colon."""
    same = {key: value for key, value in vllm(run).items() if key not in ("failed", "request_goodput")}
    return same | {"backend": "openai", "request_goodput:": None, "user_throughput": 110.0}


def trtllm_bench(run: Run) -> dict[str, Any]:
    """`trtllm-bench throughput --streaming --report_json`."""
    return {
        "engine": {"model": MODEL, "version": "1.2.1", "backend": "Pytorch", "dtype": "bfloat16",
                   "kv_cache_dtype": "FP8", "quantization": "FP8"},
        "machine": {"name": "NVIDIA H100 80GB HBM3", "memory.total": 79.1},
        "world_info": {"tp_size": 2, "pp_size": 1, "ep_size": 2, "world_size": 2, "max_batch_size": 64,
                       "max_num_tokens": 8192},
        "request_info": {"num_requests": run.requests, "avg_num_concurrent_requests": run.mean_clients,
                         "avg_input_length": run.prompt, "avg_output_length": run.output},
        "performance": {"total_latency_ms": run.duration_s * 1e3, "avg_request_latency_ms": run.e2e_s * 1e3,
                        "request_throughput_req_s": run.rate, "system_output_throughput_tok_s": run.output_rate,
                        "system_total_throughput_tok_s": run.total_rate},
        "streaming_metrics": {"avg_ttft_ms": run.ttft_s * 1e3, "avg_tpot_ms": run.tpot_s * 1e3,
                              "ttft_percentiles": {"p50": run.ttft_s * 1e3, "p99": run.ttft_s * 1e3},
                              "tpot_percentiles": {"p50": run.tpot_s * 1e3, "p99": run.tpot_s * 1e3}},
    }  # fmt: skip


def _metric(unit: str, value: float) -> dict[str, Any]:
    return {"unit": unit, "avg": value, "p50": value, "p99": value, "min": value, "max": value, "std": 0.0}


def genai_perf(run: Run) -> dict[str, Any]:
    """genai-perf's JSON summary."""
    return {
        "time_to_first_token": _metric("ms", run.ttft_s * 1e3),
        "inter_token_latency": _metric("ms", run.tpot_s * 1e3),
        "request_latency": _metric("ms", run.e2e_s * 1e3),
        "output_sequence_length": _metric("tokens", run.output),
        "input_sequence_length": _metric("tokens", run.prompt),
        "request_throughput": {"unit": "requests/sec", "avg": run.rate},
        "request_count": {"unit": "requests", "avg": float(run.requests)},
        "output_token_throughput": {"unit": "tokens/sec", "avg": run.output_rate},
        "input_config": {"model_names": [MODEL], "perf_analyzer": {"stimulus": {"concurrency": run.clients}}},
    }


def aiperf(run: Run) -> dict[str, Any]:
    """AIPerf's JSON summary."""
    return genai_perf(run) | {
        "schema_version": "1.4",
        "aiperf_version": "0.13.0",
        "total_token_throughput": {"unit": "tokens/sec", "avg": run.total_rate},
        "benchmark_duration": {"unit": "sec", "avg": run.duration_s},
        "error_request_count": {"unit": "requests", "avg": float(run.failed)},
        "input_config": {
            "models": [MODEL],
            "phases": [{"name": "profiling", "type": "concurrency", "concurrency": run.clients}],
        },
    }


def aiperf_csv(run: Run) -> str:
    """AIPerf's CSV summary: three tables."""
    rows: list[list[Any]] = [["Metric", "avg", "p50", "p99"]]
    for name, value in (
        ("Input Sequence Length (tokens)", run.prompt), ("Inter Token Latency (ms)", run.tpot_s * 1e3),
        ("Output Sequence Length (tokens)", run.output), ("Request Latency (ms)", run.e2e_s * 1e3),
        ("Time to First Token (ms)", run.ttft_s * 1e3),
    ):  # fmt: skip
        rows.append([name, *[f"{value:,.4f}"] * 3])
    rows += [[], ["Metric", "Value"], ["Benchmark Duration (sec)", run.duration_s], ["Error Request Count", run.failed],
             ["Output Token Throughput (tokens/sec)", run.output_rate], ["Request Count", run.requests],
             ["Request Throughput (requests/sec)", run.rate], ["Total Token Throughput (tokens/sec)", run.total_rate],
             [], ["Endpoint", "GPU_Index", "GPU_Name", "GPU_UUID", "Metric", "avg"]]  # fmt: skip
    rows += [["localhost", i, "NVIDIA H100 80GB HBM3", f"GPU-{i}", "GPU Power (W)", 460.0] for i in range(2)]
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


def aiperf_records(run: Run) -> Iterator[dict[str, Any]]:
    """A line a request; clients send one after the other for as long as the run lasts."""
    begin_ns, spacing_s = 1_796_033_700_000_000_000, 1 / run.rate
    for i in range(run.requests + run.failed):
        start = begin_ns + int(max(0.0, i * spacing_s - run.e2e_s) * 1e9)
        ok = i < run.requests
        end = begin_ns + int(run.duration_s * 1e9) if i == run.requests - 1 else start + int(run.e2e_s * 1e9)
        metrics = {
            "time_to_first_token": {"value": run.ttft_s * 1e3, "unit": "ms"},
            "inter_token_latency": {"value": run.tpot_s * 1e3, "unit": "ms"},
            "request_latency": {"value": run.e2e_s, "unit": "sec"},
            "input_sequence_length": {"value": run.prompt, "unit": "tokens"},
            "output_sequence_length": {"value": run.output, "unit": "tokens"},
        }
        yield {
            "metadata": {"request_start_ns": start, "request_end_ns": end, "benchmark_phase": "profiling"},
            "metrics": metrics if ok else {},
            "error": None if ok else {"code": 502},
        }


def guidellm(run: Run) -> dict[str, Any]:
    """guidellm's JSON with one load level: the request latency is in seconds, the others in milliseconds."""

    def found(value: float) -> dict[str, Any]:
        figures = {"mean": value, "median": value, "total_sum": value * run.requests,
                   "percentiles": {"p01": value, "p50": value, "p99": value}}  # fmt: skip
        return {"successful": figures, "incomplete": {"mean": 0.0, "median": 0.0}}

    metrics = {
        "request_totals": {"successful": run.requests, "incomplete": 0, "errored": run.failed},
        "requests_per_second": found(run.rate), "request_concurrency": found(run.mean_clients),
        "request_latency": found(run.e2e_s), "prompt_token_count": found(run.prompt),
        "output_token_count": found(run.output), "time_to_first_token_ms": found(run.ttft_s * 1e3),
        "time_per_output_token_ms": found(run.e2e_s / run.output * 1e3),
        "inter_token_latency_ms": found(run.tpot_s * 1e3), "output_tokens_per_second": found(run.output_rate),
        "tokens_per_second": found(run.total_rate),
    }  # fmt: skip
    level = {
        "config": {"strategy": {"type_": "concurrent", "streams": run.clients}, "backend": {"model": MODEL}},
        "scheduler_metrics": {"measure_start_time": 1.7960337e9, "measure_end_time": 1.7960337e9 + run.duration_s},
        "metrics": metrics,
    }
    return {"metadata": {"version": 2, "guidellm_version": "0.8.1"}, "benchmarks": [level]}


def inferencex(run: Run) -> dict[str, Any]:
    """An aggregate of one node: seconds, nominal lengths, `dp_attention` as a word."""
    latencies = {"ttft": run.ttft_s, "tpot": run.tpot_s, "itl": run.itl_s, "e2el": run.e2e_s}
    return {
        "hw": "h100", "conc": run.clients, "model": MODEL, "framework": "vllm", "precision": "fp8",
        "spec_decoding": "none", "disagg": False, "isl": 2000, "osl": 280, "is_multinode": False, "tp": 2, "pp": 1,
        "ep": 1, "dcp_size": 1, "pcp_size": 1, "dp_attention": "false", "tput_per_gpu": run.total_rate / 2,
        "output_tput_per_gpu": run.output_rate / 2, "p99_intvty": 100.0,
        **{f"{stat}_{name}": value for name, value in latencies.items() for stat in ("mean", "median", "p99")},
    }  # fmt: skip


def llmperf(run: Run) -> dict[str, Any]:
    """llmperf's summary: its inter-token latency has the first token in it."""
    return {
        "model": MODEL, "num_concurrent_requests": run.clients,
        "results_inter_token_latency_s_mean": run.e2e_s / run.output, "results_ttft_s_mean": run.ttft_s,
        "results_ttft_s_quantiles_p50": run.ttft_s, "results_end_to_end_latency_s_mean": run.e2e_s,
        "results_number_input_tokens_mean": run.prompt, "results_number_input_tokens_min": "1649",
        "results_number_output_tokens_mean": run.output, "results_number_errors": run.failed,
        "results_num_completed_requests": run.requests, "results_num_completed_requests_per_min": run.rate * 60,
        "results_mean_output_throughput_token_per_s": run.output_rate, "timestamp": 1796033713,
    }  # fmt: skip


def write_lines(path: Path, objects: list[dict[str, Any]]) -> Path:
    """One object a line, with Infinity as Python writes it."""
    path.write_text("".join(json.dumps(each) + "\n" for each in objects), encoding="utf-8")
    return path

"""Results of `vllm bench serve`, `sglang.bench_serving` and TensorRT-LLM's `benchmark_serving`: flat, in ms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calibration.launch.launch import Launch
from calibration.results.documents import Fields
from calibration.results.result import BenchmarkResult

MS = 1e-3
TOOLS = {"vllm": "vllm bench serve", "sglang": "sglang.bench_serving", "trtllm": "trtllm benchmark_serving"}
ENGINES = {
    "vllm": "vLLM", "vllm-chat": "vLLM", "openai": None, "openai-chat": None, "sglang": "SGLang",
    "sglang-oai": "SGLang", "sglang-native": "SGLang", "trt": "TensorRT-LLM", "trtllm": "TensorRT-LLM",
    "tensorrt-llm": "TensorRT-LLM",
}  # fmt: skip


def fits(values: Mapping[str, Any]) -> bool:
    return "completed" in values and ("mean_ttft_ms" in values or "mean_tpot_ms" in values)


def read(where: str, values: Mapping[str, Any]) -> list[BenchmarkResult]:
    """One run. Lists of single requests are not needed, for the figures beside them are over all of them."""
    given = Fields(where, values)
    kind = _kind(values)
    info = values.get("server_info")
    server = info if isinstance(info, Mapping) else {}
    prefill, decode, workers = _servers(where, server)
    backend = (given.text("backend", "endpoint_type") or "").lower()
    engine = {"sglang": "SGLang", "trtllm": "TensorRT-LLM"}.get(kind) or ENGINES.get(backend)
    completed = given.whole("completed")
    return [
        BenchmarkResult(
            where=where,
            tool=TOOLS[kind],
            engine=engine,
            model=given.text("model_id", "model") or _model(server),
            date=_date(given.text("date")),
            gpu=given.text("gpu", "gpu_type", "hardware"),
            n_gpu=given.whole("n_gpu", "num_gpus"),
            precision=given.text("precision", "quantization"),
            disaggregated=prefill is not None,
            prefill=prefill,
            decode=decode or _metadata(given, engine),
            prefill_workers=workers[0],
            decode_workers=workers[1],
            completed=completed,
            failed=_failed(given, completed),
            concurrency_limit=given.number("max_concurrency"),
            mean_concurrency=given.number("concurrency"),
            duration_s=given.number("duration"),
            input_tokens=given.number("total_input_tokens"),
            output_tokens=given.number("total_output_tokens"),
            requests_per_s=given.number("request_throughput"),
            output_tokens_per_s=given.number("output_throughput"),
            total_tokens_per_s=given.number("total_token_throughput", "total_throughput"),
            mean_ttft_s=given.number("mean_ttft_ms", scale=MS),
            median_ttft_s=given.number("median_ttft_ms", scale=MS),
            p99_ttft_s=given.number("p99_ttft_ms", scale=MS),
            mean_tpot_s=given.number("mean_tpot_ms", scale=MS),
            median_tpot_s=given.number("median_tpot_ms", scale=MS),
            mean_itl_s=given.number("mean_itl_ms", scale=MS),
            mean_e2e_s=given.number("mean_e2el_ms", "mean_e2e_latency_ms", scale=MS) or _mean_latency(values),
        )
    ]


def _kind(values: Mapping[str, Any]) -> str:
    if {"server_info", "total_throughput", "mean_e2e_latency_ms"} & set(values):
        return "sglang"
    if "user_throughput" in values or "request_goodput:" in values:
        return "trtllm"
    return "vllm"


def _failed(given: Fields, completed: int | None) -> int | None:
    """Said, or the requests that were sent and not answered, or those without an output."""
    said = given.whole("failed")
    if said is not None:
        return said
    sent = given.whole("num_prompts")
    if sent is not None and completed is not None:
        return max(0, sent - completed)
    lengths = given.values.get("output_lens")
    return sum(not length for length in lengths) if isinstance(lengths, list) else None


def _mean_latency(values: Mapping[str, Any]) -> float | None:
    """Of the answered requests; failed ones have a latency of 0. [s]"""
    latencies = values.get("latencies")
    if not isinstance(latencies, list):
        return None
    answered = [float(x) for x in latencies if isinstance(x, (int, float)) and x > 0]
    return sum(answered) / len(answered) if answered else None


def _date(text: str | None) -> str | None:
    """20261130-101500 as 2026-11-30."""
    if text and len(text) >= 8 and text[:8].isdigit():
        return f"{text[:4]}-{text[4:6]}-{text[6:8]}"
    return text


def _model(server: Mapping[str, Any]) -> str | None:
    for part in (server, *_workers(server, "decode"), *_workers(server, "prefill")):
        if part.get("model_path"):
            return str(part["model_path"])
    return None


def _workers(server: Mapping[str, Any], role: str) -> list[Mapping[str, Any]]:
    found = server.get(role)
    return [each for each in found if isinstance(each, Mapping)] if isinstance(found, list) else []


def _servers(where: str, server: Mapping[str, Any]) -> tuple[Launch | None, Launch | None, tuple[int, int]]:
    """Prefill and decode servers, and how many of each; a lone server is of decode."""
    prefill, decode = (_workers(server, role) for role in ("prefill", "decode"))
    if prefill and decode:
        return _sglang(where, prefill[0]), _sglang(where, decode[0]), (len(prefill), len(decode))
    return None, _sglang(where, server) if "tp_size" in server else None, (1, 1)


def _sglang(where: str, server: Mapping[str, Any]) -> Launch:
    """Resolved arguments of a server: chunks are those of a rank already; the requests at once count all ranks."""
    given = Fields(f"{where}, server_info", server)
    tp, pp = given.whole("tp_size") or 1, given.whole("pp_size") or 1
    data = given.whole("dp_size") or 1
    attention = given.whole("attn_dp_size") or 1
    if server.get("enable_dp_attention"):
        attention, data = max(attention, data), 1
    running = given.whole("max_running_requests")
    chunk = given.number("chunked_prefill_size") if server.get("chunked_prefill_size") != -1 else None
    algorithm = given.text("speculative_algorithm")
    return Launch(
        "SGLang",
        given.text("model_path"),
        gpus=tp * pp * data,
        tp=tp,
        pp=pp,
        attention_dp=attention,
        ep=given.whole("ep_size") or 1,
        context_ranks=given.whole("dcp_size") or 1,
        replicas=data,
        sequences=None if running is None else max(1, running // attention),
        prefill_chunk=None if chunk is None else int(chunk),
        memory_share=given.number("mem_fraction_static"),
        kv_dtype=given.text("kv_cache_dtype"),
        quantisation=given.text("quantization"),
        drafts=given.whole("speculative_num_steps") if algorithm else 0,
    )


def _metadata(given: Fields, engine: str | None) -> Launch | None:
    """What `--metadata KEY=VALUE` put beside the figures."""
    tp = given.whole("tensor_parallel_size", "tp_size", "tp")
    if tp is None:
        return None
    pp = given.whole("pipeline_parallel_size", "pp") or 1
    dp = given.whole("data_parallel_size", "dp_size", "dp") or 1
    ep = given.whole("expert_parallel_size", "ep_size", "ep") or 1
    return Launch(engine or "", gpus=tp * pp * dp, tp=tp, pp=pp, attention_dp=dp, ep=ep)

"""The report of `trtllm-bench throughput`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calibration.launch.launch import Launch
from calibration.results.documents import Fields
from calibration.results.result import BenchmarkResult

MS = 1e-3


def fits(values: Mapping[str, Any]) -> bool:
    return {"world_info", "performance", "request_info"} <= set(values)


def read(where: str, values: Mapping[str, Any]) -> list[BenchmarkResult]:
    """TTFT and TPOT are there with --streaming only. Whether attention ranks are data-parallel is not written."""
    given = Fields(where, values)
    tp, pp = given.whole("world_info.tp_size") or 1, given.whole("world_info.pp_size") or 1
    gpus = given.whole("world_info.world_size") or tp * pp
    server = Launch(
        "TensorRT-LLM",
        gpus=gpus,
        tp=tp,
        pp=pp,
        ep=given.whole("world_info.ep_size") or 1,
        sequences=given.whole("world_info.max_batch_size"),
        tokens_per_step=given.whole("world_info.max_num_tokens"),
        kv_dtype=given.text("engine.kv_cache_dtype"),
    )
    return [
        BenchmarkResult(
            where=where,
            tool="trtllm-bench",
            engine="TensorRT-LLM",
            model=given.text("engine.model"),
            gpu=given.text("machine.name"),
            n_gpu=gpus,
            precision=given.text("engine.quantization") or given.text("engine.dtype"),
            decode=server,
            completed=given.whole("request_info.num_requests"),
            mean_concurrency=given.number("request_info.avg_num_concurrent_requests"),
            duration_s=given.number("performance.total_latency_ms", scale=MS),
            mean_input_tokens=given.number("request_info.avg_input_length"),
            mean_output_tokens=given.number("request_info.avg_output_length"),
            requests_per_s=given.number("performance.request_throughput_req_s"),
            output_tokens_per_s=given.number("performance.system_output_throughput_tok_s"),
            total_tokens_per_s=given.number("performance.system_total_throughput_tok_s"),
            mean_ttft_s=given.number("streaming_metrics.avg_ttft_ms", scale=MS),
            median_ttft_s=given.number("streaming_metrics.ttft_percentiles.p50", scale=MS),
            p99_ttft_s=given.number("streaming_metrics.ttft_percentiles.p99", scale=MS),
            mean_tpot_s=given.number("streaming_metrics.avg_tpot_ms", scale=MS),
            median_tpot_s=given.number("streaming_metrics.tpot_percentiles.p50", scale=MS),
            mean_e2e_s=given.number("performance.avg_request_latency_ms", scale=MS),
        )
    ]

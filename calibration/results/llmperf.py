"""Summaries of llmperf: flat, in seconds. Its inter-token latency is whole latency over output tokens, no TPOT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calibration.results.documents import Fields
from calibration.results.result import BenchmarkResult, day_of


def fits(values: Mapping[str, Any]) -> bool:
    return "results_ttft_s_mean" in values or "results_inter_token_latency_s_mean" in values


def read(where: str, values: Mapping[str, Any]) -> list[BenchmarkResult]:
    """TPOT is (mean latency - mean TTFT) / (mean output - 1), which is a request's mean where lengths are alike."""
    given = Fields(where, values)
    ttft, latency = given.number("results_ttft_s_mean"), given.number("results_end_to_end_latency_s_mean")
    output = given.number("results_number_output_tokens_mean")
    tpot = None
    if ttft is not None and latency is not None and output is not None and output > 1:
        tpot = max(0.0, latency - ttft) / (output - 1)
    stamp = given.number("timestamp")
    per_minute = given.number("results_num_completed_requests_per_min")
    return [
        BenchmarkResult(
            where=where,
            tool="llmperf",
            model=given.text("model"),
            date=day_of(stamp),
            completed=given.whole("results_num_completed_requests"),
            failed=given.whole("results_number_errors"),
            concurrency_limit=given.number("num_concurrent_requests"),
            mean_input_tokens=given.number("results_number_input_tokens_mean"),
            mean_output_tokens=output,
            requests_per_s=None if per_minute is None else per_minute / 60,
            output_tokens_per_s=given.number("results_mean_output_throughput_token_per_s"),
            mean_ttft_s=ttft,
            median_ttft_s=given.number("results_ttft_s_quantiles_p50"),
            p99_ttft_s=given.number("results_ttft_s_quantiles_p99"),
            mean_tpot_s=tpot,
            mean_e2e_s=latency,
            mean_e2e_over_output_tokens_s=given.number("results_inter_token_latency_s_mean"),
        )
    ]

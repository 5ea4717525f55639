"""Results of guidellm: one benchmark a load level."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calibration.results.documents import Fields
from calibration.results.result import BenchmarkResult, ResultError, day_of

MS = 1e-3


def fits(values: Mapping[str, Any]) -> bool:
    runs = values.get("benchmarks")
    return isinstance(runs, list) and bool(runs) and isinstance(runs[0], Mapping) and "metrics" in runs[0]


def read(where: str, values: Mapping[str, Any]) -> list[BenchmarkResult]:
    """Figures are over answered requests. Request latency is in seconds, all others in milliseconds."""
    found = []
    for number, run in enumerate(values["benchmarks"], start=1):
        if not isinstance(run, Mapping):
            raise ResultError(f"{where}, benchmark {number}: {str(run)[:40]} is no object with metrics; remove it")
        given = Fields(f"{where}, benchmark {number}", run)

        def of(metric: str, statistic: str, scale: float = 1.0, given: Fields = given) -> float | None:
            return given.number(f"metrics.{metric}.successful.{statistic}", scale=scale)

        begin = given.number("scheduler_metrics.measure_start_time", "start_time")
        end = given.number("scheduler_metrics.measure_end_time", "end_time")
        found.append(
            BenchmarkResult(
                where=given.where,
                tool="guidellm",
                model=given.text("config.backend.model", "benchmarker.backend.model"),
                date=day_of(begin),
                completed=given.whole("metrics.request_totals.successful"),
                failed=given.whole("metrics.request_totals.errored"),
                concurrency_limit=given.number("config.strategy.streams", "config.strategy.max_concurrency"),
                mean_concurrency=of("request_concurrency", "mean"),
                duration_s=end - begin if begin is not None and end is not None and end > begin else None,
                input_tokens=of("prompt_token_count", "total_sum"),
                output_tokens=of("output_token_count", "total_sum"),
                mean_input_tokens=of("prompt_token_count", "mean"),
                mean_output_tokens=of("output_token_count", "mean"),
                requests_per_s=of("requests_per_second", "mean"),
                output_tokens_per_s=of("output_tokens_per_second", "mean"),
                total_tokens_per_s=of("tokens_per_second", "mean"),
                mean_ttft_s=of("time_to_first_token_ms", "mean", MS),
                median_ttft_s=of("time_to_first_token_ms", "median", MS),
                p99_ttft_s=of("time_to_first_token_ms", "percentiles.p99", MS),
                mean_tpot_s=of("inter_token_latency_ms", "mean", MS),  # one value a request
                median_tpot_s=of("inter_token_latency_ms", "median", MS),
                mean_e2e_s=of("request_latency", "mean"),
                mean_e2e_over_output_tokens_s=of("time_per_output_token_ms", "mean", MS),
            )
        )
    return found

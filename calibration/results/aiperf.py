"""Results of AIPerf and genai-perf: JSON and CSV summaries, and AIPerf's records of single requests."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from calibration.results.documents import Fields
from calibration.results.result import BenchmarkResult, ResultError

UNITS_S = {"s": 1.0, "sec": 1.0, "seconds": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
ROW = re.compile(r"(.*?)\s*(?:\(([^()]*)\))?")
# Titles of CSV rows -> keys of the JSON summary.
TITLES = {
    "time to first token": "time_to_first_token", "inter token latency": "inter_token_latency",
    "request latency": "request_latency", "input sequence length": "input_sequence_length",
    "output sequence length": "output_sequence_length", "benchmark duration": "benchmark_duration",
    "error request count": "error_request_count", "request count": "request_count",
    "request throughput": "request_throughput", "output token throughput": "output_token_throughput",
    "total token throughput": "total_token_throughput", "total input sequence length": "total_isl",
    "total output sequence length": "total_osl",
}  # fmt: skip


def fits(values: Mapping[str, Any]) -> bool:
    metric = values.get("time_to_first_token") or values.get("request_latency")
    return isinstance(metric, Mapping) and "unit" in metric


def is_record(values: Mapping[str, Any]) -> bool:
    metadata = values.get("metadata")
    return isinstance(metadata, Mapping) and "request_start_ns" in metadata and "metrics" in values


def is_table(tables: Sequence[Sequence[Sequence[str]]]) -> bool:
    return bool(tables) and tables[0][0][:2] == ["Metric", "avg"]


def read(where: str, values: Mapping[str, Any]) -> list[BenchmarkResult]:
    """A JSON summary. Each metric is an object with its unit; those that did not apply are absent."""
    given = Fields(where, values)
    said = values.get("input_config")
    config = Fields(where, said if isinstance(said, Mapping) else {})
    models = config.values.get("models") or config.values.get("model_names") or []
    phases = config.values.get("phases")
    limit = config.number("perf_analyzer.stimulus.concurrency")
    if isinstance(phases, list):
        measured = [p for p in phases if isinstance(p, Mapping) and p.get("name") != "warmup"]
        limit = next((Fields(where, p).number("concurrency") for p in measured), limit)

    def seconds(metric: str, statistic: str) -> float | None:
        value = given.number(f"{metric}.{statistic}")
        return None if value is None else value * _unit(given, metric)

    return [
        BenchmarkResult(
            where=where,
            tool="aiperf" if "aiperf_version" in values or "schema_version" in values else "genai-perf",
            model=_first(models),
            date=given.text("start_time"),
            gpu=_gpu(values.get("telemetry_data")),
            completed=given.whole("request_count.avg"),
            failed=given.whole("error_request_count.avg"),
            concurrency_limit=limit,
            duration_s=seconds("benchmark_duration", "avg"),
            input_tokens=given.number("total_isl.avg"),
            output_tokens=given.number("total_osl.avg"),
            mean_input_tokens=given.number("input_sequence_length.avg"),
            mean_output_tokens=given.number("output_sequence_length.avg"),
            requests_per_s=given.number("request_throughput.avg"),
            output_tokens_per_s=given.number("output_token_throughput.avg"),
            total_tokens_per_s=given.number("total_token_throughput.avg"),
            mean_ttft_s=seconds("time_to_first_token", "avg"),
            median_ttft_s=seconds("time_to_first_token", "p50"),
            p99_ttft_s=seconds("time_to_first_token", "p99"),
            mean_tpot_s=seconds("inter_token_latency", "avg"),  # one value a request, as others call TPOT
            median_tpot_s=seconds("inter_token_latency", "p50"),
            mean_e2e_s=seconds("request_latency", "avg"),
        )
    ]


def _first(names: Any) -> str | None:
    if isinstance(names, Mapping):
        names = names.get("items") or list(names.values())
    if isinstance(names, list) and names:
        name = names[0]
        return str(name.get("name")) if isinstance(name, Mapping) else str(name)
    return str(names) if isinstance(names, str) else None


def _unit(given: Fields, metric: str) -> float:
    unit = given.text(f"{metric}.unit") or "ms"
    if unit not in UNITS_S:
        raise ResultError(
            f"{given.where}, key {metric}.unit: '{unit}' is no unit of time; use one of {', '.join(UNITS_S)}"
        )
    return UNITS_S[unit]


def _gpu(telemetry: Any) -> str | None:
    """The first GPU that the telemetry names, however deep."""
    if isinstance(telemetry, Mapping):
        for key, value in telemetry.items():
            if key.lower() in ("gpu_name", "gpu_model_name", "model_name") and isinstance(value, str):
                return value
            if (found := _gpu(value)) is not None:
                return found
    if isinstance(telemetry, list):
        return next((found for each in telemetry if (found := _gpu(each)) is not None), None)
    return None


def read_tables(where: str, tables: Sequence[Sequence[Sequence[str]]]) -> list[BenchmarkResult]:
    """A CSV summary: statistics in the first table, single values in the second, telemetry after them. Columns come
    in any order; numbers may have thousands separators."""
    values: dict[str, Any] = {}
    telemetry: dict[str, Any] = {}
    for table in tables:
        header = [cell.strip() for cell in table[0]]
        if "GPU_Name" in header and len(table) > 1:
            telemetry["gpu_name"] = table[1][header.index("GPU_Name")]
            gpus = {row[header.index("GPU_UUID")] for row in table[1:]} if "GPU_UUID" in header else set()
            telemetry["count"] = len(gpus)
        if header[0] != "Metric":
            continue
        for number, row in enumerate(table[1:], start=2):
            found = ROW.fullmatch(row[0].strip())
            key = TITLES.get(found[1].strip().lower()) if found else None
            if key is None or found is None:
                continue
            if len(row) != len(header):
                raise ResultError(
                    f"{where}, row {number} of a table ('{row[0]}'): {len(row)} cells instead of {len(header)}"
                )
            cells = dict(zip(["avg" if name == "Value" else name for name in header[1:]], row[1:], strict=True))
            values[key] = {"unit": found[2] or "", **cells}
    values.pop("telemetry", None)
    result = read(where, {**values, "telemetry_data": telemetry})[0]
    from dataclasses import replace

    tool = "aiperf" if "benchmark_duration" in values else "genai-perf"
    return [replace(result, tool=tool, n_gpu=telemetry.get("count") or None)]


def read_records(where: str, records: Sequence[Mapping[str, Any]]) -> list[BenchmarkResult]:
    """A line a request: the run is made of all of them that were measured."""
    columns: dict[str, list[float]] = {}
    starts, ends, failed = [], [], 0
    for number, record in enumerate(records, start=1):
        given = Fields(f"{where}, record {number}", record)
        if given.text("metadata.benchmark_phase") == "warmup":
            continue
        if record.get("error") or record["metadata"].get("was_cancelled"):
            failed += 1
            continue
        starts.append(given.number("metadata.request_start_ns", scale=1e-9) or 0.0)
        ends.append(given.number("metadata.request_end_ns", scale=1e-9) or 0.0)
        for metric in ("time_to_first_token", "inter_token_latency", "request_latency"):
            value = given.number(f"metrics.{metric}.value")
            if value is not None:
                columns.setdefault(metric, []).append(value * _unit(given, f"metrics.{metric}"))
        for metric in ("input_sequence_length", "output_sequence_length"):
            value = given.number(f"metrics.{metric}.value")
            if value is not None:
                columns.setdefault(metric, []).append(value)
    if not starts:
        raise ResultError(f"{where} has no answered request; give records of a run that had some")

    def statistic(metric: str, q: float | None = None) -> float | None:
        found = columns.get(metric)
        if not found:
            return None
        return float(np.mean(found)) if q is None else float(np.percentile(found, q))

    duration = max(ends) - min(starts)
    return [
        BenchmarkResult(
            where=where,
            tool="aiperf records",
            completed=len(starts),
            failed=failed,
            duration_s=duration if duration > 0 else None,
            input_tokens=float(np.sum(columns.get("input_sequence_length", [0.0]))),
            output_tokens=float(np.sum(columns.get("output_sequence_length", [0.0]))),
            mean_ttft_s=statistic("time_to_first_token"),
            median_ttft_s=statistic("time_to_first_token", 50),
            p99_ttft_s=statistic("time_to_first_token", 99),
            mean_tpot_s=statistic("inter_token_latency"),
            median_tpot_s=statistic("inter_token_latency", 50),
            mean_e2e_s=statistic("request_latency"),
        )
    ]

"""Benchmark results of any known tool, told by their keys."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from calibration.launch.launch import LaunchError
from calibration.results import aiperf, bench_serving, guidellm, inferencex, llmperf, trtllm_bench
from calibration.results.documents import read_documents
from calibration.results.result import BenchmarkResult, ResultError

TOOLS = (aiperf, guidellm, trtllm_bench, inferencex, llmperf, bench_serving)
KNOWN = (
    "vllm bench serve, sglang.bench_serving, trtllm-bench, TensorRT-LLM's benchmark_serving, AIPerf, genai-perf, "
    "guidellm, InferenceX or llmperf"
)


@dataclass(frozen=True)
class ResultFile:
    """left_out: one sentence for each part of the file that holds no result that can be read."""

    results: tuple[BenchmarkResult, ...]
    left_out: tuple[str, ...]


def read_results(path: Path) -> ResultFile:
    """All runs in a file. Raises ResultError where there is none."""
    documents = read_documents(path)
    results: list[BenchmarkResult] = []
    left_out = list(documents.left_out)
    if documents.tables:
        if not aiperf.is_table(documents.tables):
            header = ",".join(documents.tables[0][0])[:60]
            raise ResultError(f"{path}: a table with the header '{header}' is no result of {KNOWN}")
        results += aiperf.read_tables(str(path), documents.tables)
    records = [values for _, values in documents.objects if aiperf.is_record(values)]
    if records:
        try:
            results += aiperf.read_records(str(path), records)
        except ResultError as error:
            left_out.append(str(error))
    for where, values in documents.objects:
        if aiperf.is_record(values):
            continue
        tool = next((each for each in TOOLS if each.fits(values)), None)
        if tool is None:
            keys = ", ".join(list(values)[:6]) or "none"
            left_out.append(f"{where}: keys {keys}... are no result of {KNOWN}; remove it")
            continue
        try:
            results += tool.read(where, values)
        except LaunchError as error:
            left_out.append(f"{where}: {error}")
        except ResultError as error:
            left_out.append(str(error))
    if not results:
        raise ResultError(left_out[0])
    return ResultFile(tuple(result.completed_by_others() for result in results), tuple(left_out))

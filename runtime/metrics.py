"""Counts and times of served requests in Prometheus' text format, under vLLM's names."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from runtime.backend import Load
from runtime.sequence import RequestOutput

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Edges of the histograms [s], [tokens]: chosen here to span a laptop's and a GPU's times.
TIME_EDGES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
TOKEN_EDGES = tuple(float(digit * 10**power) for power in range(7) for digit in (1, 2, 5))


@dataclass
class _Histogram:
    edges: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.edges) + 1)

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.edges, value)] += 1
        self.total += value

    def lines(self, name: str, label: str) -> Iterator[str]:
        seen = 0
        for edge, count in zip((*(str(e) for e in self.edges), "+Inf"), self.counts, strict=True):
            seen += count
            yield f'{name}_bucket{{{label},le="{edge}"}} {seen}'
        yield f"{name}_sum{{{label}}} {self.total}"
        yield f"{name}_count{{{label}}} {seen}"


class Metrics:
    """Filled by the thread of the backend, read by whoever scrapes."""

    def __init__(self, model_name: str, block_size: int | None, num_blocks: int | None) -> None:
        escaped = model_name.replace("\\", r"\\").replace('"', r"\"")
        self._label = f'engine="0",model_name="{escaped}"'
        self._pool = (block_size, num_blocks)
        self._lock = threading.Lock()
        self._finished: Counter[str] = Counter({"stop": 0, "length": 0, "abort": 0, "error": 0})
        self._counters: Counter[str] = Counter()
        self._histograms = {
            "vllm:request_prompt_tokens": _Histogram(TOKEN_EDGES),
            "vllm:request_generation_tokens": _Histogram(TOKEN_EDGES),
            "vllm:time_to_first_token_seconds": _Histogram(TIME_EDGES),
            "vllm:inter_token_latency_seconds": _Histogram(TIME_EDGES),
            "vllm:request_time_per_output_token_seconds": _Histogram(TIME_EDGES),
            "vllm:e2e_request_latency_seconds": _Histogram(TIME_EDGES),
            "vllm:request_queue_time_seconds": _Histogram(TIME_EDGES),
        }

    def aborted(self) -> None:
        """A caller went away, or had what it wanted."""
        with self._lock:
            self._finished["abort"] += 1

    def finished(self, output: RequestOutput) -> None:
        """Tokens count when their request ends."""
        timing, times = output.timing, output.timing.token_times_s
        with self._lock:
            self._finished[output.finish_reason] += 1
            if output.error is not None:
                return
            self._counters["vllm:prompt_tokens"] += output.num_prompt_tokens
            self._counters["vllm:prompt_tokens_cached"] += output.num_cached_tokens
            self._counters["vllm:prefix_cache_queries"] += output.num_prompt_tokens
            self._counters["vllm:prefix_cache_hits"] += output.num_cached_tokens
            self._counters["vllm:generation_tokens"] += len(output.token_ids)
            self._counters["vllm:num_preemptions"] += output.num_preemptions
            add = {name: histogram.add for name, histogram in self._histograms.items()}
            add["vllm:request_prompt_tokens"](output.num_prompt_tokens)
            add["vllm:request_generation_tokens"](len(output.token_ids))
            if timing.scheduled_s is not None:
                add["vllm:request_queue_time_seconds"](timing.scheduled_s - timing.arrival_s)
            if times:
                add["vllm:time_to_first_token_seconds"](times[0] - timing.arrival_s)
                add["vllm:e2e_request_latency_seconds"](times[-1] - timing.arrival_s)
            if len(times) > 1:
                add["vllm:request_time_per_output_token_seconds"]((times[-1] - times[0]) / (len(times) - 1))
            for before, after in pairwise(times):
                add["vllm:inter_token_latency_seconds"](after - before)

    def text(self, load: Load) -> str:
        """The page that a scrape gets."""
        lines: list[str] = []

        def put(name: str, kind: str, *samples: str) -> None:
            lines.extend((f"# TYPE {name} {kind}", *samples))

        label = self._label
        put("vllm:num_requests_running", "gauge", f"vllm:num_requests_running{{{label}}} {load.running}")
        put("vllm:num_requests_waiting", "gauge", f"vllm:num_requests_waiting{{{label}}} {load.waiting}")
        if load.kv_usage is not None:
            put("vllm:kv_cache_usage_perc", "gauge", f"vllm:kv_cache_usage_perc{{{label}}} {load.kv_usage}")
        size, blocks = self._pool
        if size is not None and blocks is not None:
            pool = f'block_size="{size}",num_gpu_blocks="{blocks}"'
            put("vllm:cache_config_info", "gauge", f"vllm:cache_config_info{{{pool},{label}}} 1")
        drafts = {"num_drafts": load.num_drafts, "num_draft_tokens": load.num_drafts}
        for stem, count in (drafts | {"num_accepted_tokens": load.num_accepted}).items():
            name = f"vllm:spec_decode_{stem}_total"
            put(name, "counter", f"{name}{{{label}}} {count}")
        with self._lock:
            for stem in (
                "prompt_tokens",
                "prompt_tokens_cached",
                "prefix_cache_queries",
                "prefix_cache_hits",
                "generation_tokens",
                "num_preemptions",
            ):
                name = f"vllm:{stem}"
                put(f"{name}_total", "counter", f"{name}_total{{{label}}} {self._counters[name]}")
            reasons = (
                f'vllm:request_success_total{{{label},finished_reason="{reason}"}} {count}'
                for reason, count in self._finished.items()
            )
            put("vllm:request_success_total", "counter", *reasons)
            for name, histogram in self._histograms.items():
                put(name, "histogram", *histogram.lines(name, label))
        return "\n".join(lines) + "\n"

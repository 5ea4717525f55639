"""The traffic that a vLLM or SGLang server saw, from its own metrics."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from app.errors import InputError
from app.imports.prometheus import Labels, Samples

HOUR_S = 3600.0
ONE_SIGMA = (0.1587, 0.8413)  # quantiles of a normal one standard deviation about its median
NARROWEST, WIDEST = 0.05, 3.0  # sigma of the log of lengths that are fitted [assumed]


@dataclass(frozen=True)
class EngineNames:
    """Names of counters and histograms. aborted: a counter of its own, or a label of `requests`."""

    engine: str
    requests: str
    prompt_tokens: str
    output_tokens: str
    hit_tokens: str
    prompt_lengths: str
    output_lengths: str
    aborted: tuple[str, dict[str, str]]


ENGINES = (
    EngineNames(
        "vllm", "vllm:request_success_total", "vllm:prompt_tokens_total", "vllm:generation_tokens_total",
        "vllm:prefix_cache_hits_total", "vllm:request_prompt_tokens", "vllm:request_generation_tokens",
        ("vllm:request_success_total", {"finished_reason": "abort"}),
    ),
    EngineNames(
        "sglang", "sglang:num_requests_total", "sglang:prompt_tokens_total", "sglang:generation_tokens_total",
        "sglang:cached_tokens_total", "sglang:prompt_tokens_histogram", "sglang:generation_tokens_histogram",
        ("sglang:num_aborted_requests_total", {}),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class SeenTraffic:
    """What came between the first sample and the last. Means are over all requests, aborted ones included.

    prompt_sigma, output_sigma: of the log of the lengths, by the histogram's buckets; 0 where all are alike.
    most_prompt_tokens, most_output_tokens: upper edge of the last bucket that is not empty; None without one.
    rate_by_hour: requests per second, where samples span hours. [1/s]
    """

    engine: str
    engines: int
    seconds: float
    requests: float
    aborted: float
    requests_per_s: float
    prompt_tokens: float
    output_tokens: float
    mean_prompt_tokens: float
    mean_output_tokens: float
    prompt_sigma: float
    output_sigma: float
    most_prompt_tokens: float | None
    most_output_tokens: float | None
    prefix_hit_rate: float
    rate_by_hour: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def seen_traffic(samples: Samples, seconds: float | None) -> SeenTraffic:
    """seconds: between the first scrape and the last, or since the server's start where there is one.

    Where prefill and decode servers are told apart, requests and prompts are those of prefill. Raises InputError
    where metrics or the time are missing.
    """
    names = next((e for e in ENGINES if samples.of(e.requests) or samples.of(e.prompt_tokens)), None)
    if names is None:
        wanted = " or ".join(e.requests for e in ENGINES)
        raise InputError(f"the samples have no {wanted}; give metrics of a vLLM or SGLang server (--enable-metrics)")
    most = max(len(v) for v in samples.series.values())
    span = _span(samples, seconds, most)
    single = most == 1
    entry = _kept(samples, names.requests, "prefill")
    exit_ = _kept(samples, names.output_tokens, "decode")

    def total(name: str, keep: Callable[[Labels], bool], **labels: str) -> float:
        found = {k: v for k, v in samples.of(name, **labels).items() if keep(k)}
        return sum(_increase(values, single) for values in found.values())

    requests = total(names.requests, entry)
    if requests <= 0:
        raise InputError(
            f"{names.requests} does not grow between the samples; take them while requests come, further apart"
        )
    aborted_name, aborted_labels = names.aborted
    prompt, output = total(names.prompt_tokens, entry), total(names.output_tokens, exit_)
    prompt_sigma, most_prompt = _spread(samples, names.prompt_lengths, entry, single)
    output_sigma, most_output = _spread(samples, names.output_lengths, exit_, single)
    engines = {dict(labels).get("engine", "") for labels in samples.of(names.requests)}
    return SeenTraffic(
        engine=names.engine,
        engines=len(engines),
        seconds=span,
        requests=requests,
        aborted=total(aborted_name, entry, **aborted_labels),
        requests_per_s=requests / span,
        prompt_tokens=prompt,
        output_tokens=output,
        mean_prompt_tokens=prompt / requests,
        mean_output_tokens=output / requests,
        prompt_sigma=prompt_sigma,
        output_sigma=output_sigma,
        most_prompt_tokens=most_prompt,
        most_output_tokens=most_output,
        prefix_hit_rate=total(names.hit_tokens, entry) / prompt if prompt else 0.0,
        rate_by_hour=_by_hour(samples, names.requests, entry),
    )


def _span(samples: Samples, seconds: float | None, most: int) -> float:
    if seconds is not None:
        return seconds
    if samples.span_s > 0:
        return samples.span_s
    if most == 1:
        raise InputError(
            "the samples hold every counter once; give a second scrape, or the seconds since the server's start "
            "(--seconds)"
        )
    raise InputError("the dumps name no times; give the seconds between the first and the last (--seconds)")


def _kept(samples: Samples, name: str, role: str) -> Callable[[Labels], bool]:
    """In a pair of prefill and decode servers each request counts on both sides: one is taken."""
    kinds = {dict(labels).get("engine_type") for labels in samples.of(name)}
    if not {"prefill", "decode"} <= kinds:
        return lambda labels: True
    return lambda labels: ("engine_type", role) in labels


def _increase(values: list[tuple[float, float]], from_zero: bool) -> float:
    """As Prometheus' increase(): where a counter falls, its server was started anew."""
    steps = [0.0, *(value for _, value in values)] if from_zero else [value for _, value in values]
    return sum(b - a if b >= a else b for a, b in itertools.pairwise(steps))


def _spread(samples: Samples, name: str, keep: Callable[[Labels], bool], single: bool) -> tuple[float, float | None]:
    """Standard deviation of the log of a histogram's values, from its quantiles, and the edge that none exceeds; 0 and
    None where it has no values."""
    by_edge: dict[float, float] = {}
    for labels, values in samples.of(f"{name}_bucket").items():
        edge = dict(labels).get("le", "")
        if keep(labels) and edge:
            upper = math.inf if edge in ("+Inf", "Inf") else float(edge)
            by_edge[upper] = by_edge.get(upper, 0.0) + _increase(values, single)
    edges = sorted(by_edge)
    finite = [edge for edge in edges if 0 < edge < math.inf]
    if not finite or by_edge[edges[-1]] <= 0:
        return 0.0, None
    shares = np.array([by_edge[edge] for edge in finite]) / by_edge[edges[-1]]
    most = next((edge for edge, share in zip(finite, shares, strict=True) if share >= 1), None)
    low, high = (float(np.interp(q, shares, np.log(finite))) for q in ONE_SIGMA)
    if high <= low:
        return 0.0, most
    return min(WIDEST, max(NARROWEST, (high - low) / 2)), most


def _by_hour(samples: Samples, name: str, keep: Callable[[Labels], bool]) -> tuple[float, ...]:
    """Requests per second in each hour of samples that span several; the last may be cut."""
    span = samples.span_s
    if span < 2 * HOUR_S:
        return ()
    begin = min(time for values in samples.series.values() for time, _ in values)
    hours = math.ceil(span / HOUR_S)
    counts = np.zeros(hours)
    for labels, values in samples.of(name).items():
        if keep(labels):
            for (_, a), (time, b) in itertools.pairwise(values):
                counts[min(hours - 1, int((time - begin) // HOUR_S))] += b - a if b >= a else b
    lasts = np.minimum(HOUR_S, span - HOUR_S * np.arange(hours))
    return tuple((counts / lasts).tolist())

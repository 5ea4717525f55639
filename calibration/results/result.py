"""One benchmark run, whatever tool wrote it: seconds, tokens, requests over the whole server."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from calibration.launch.launch import Launch

LAST_STAMP_S = 4e9  # of the year 2096: beyond it a stamp is in another unit


class ResultError(ValueError):
    """A result that cannot be read; one sentence naming the file, the place in it and the way out."""


def day_of(stamp_s: float | None) -> str | None:
    """Of seconds since 1970.

    >>> day_of(1796033700.0), day_of(1e300), day_of(None)
    ('2026-11-30', None, None)
    """
    if not stamp_s or stamp_s > LAST_STAMP_S:
        return None
    return datetime.fromtimestamp(stamp_s, UTC).date().isoformat()


@dataclass(frozen=True)
class BenchmarkResult:
    """What a run measured. None: the file does not say.

    where: file, and line or entry in it. tool: what wrote it. completed: requests with an answer; failed: without.
    concurrency_limit: requests that clients keep in flight; mean_concurrency: that were, on average.
    TPOT is of a request, over all its output tokens but the first; ITL is over all single gaps.
    mean_e2e_over_output_tokens_s: the whole latency over all output tokens, which is no TPOT.
    prefill, decode: the servers as far as the file knows them; of colocated serving `decode` alone.
    nominal: lengths are those that were asked for, and the true ones are shorter.
    """

    where: str
    tool: str
    engine: str | None = None
    model: str | None = None
    date: str | None = None
    gpu: str | None = None
    n_gpu: int | None = None
    precision: str | None = None
    spec_decode: str | None = None
    disaggregated: bool = False
    prefill: Launch | None = None
    decode: Launch | None = None
    prefill_workers: int = 1
    decode_workers: int = 1
    n_prefill_gpu: int | None = None
    n_decode_gpu: int | None = None
    nominal: bool = False
    completed: int | None = None
    failed: int | None = None
    concurrency_limit: float | None = None
    mean_concurrency: float | None = None
    duration_s: float | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None
    mean_input_tokens: float | None = None
    mean_output_tokens: float | None = None
    requests_per_s: float | None = None
    output_tokens_per_s: float | None = None
    total_tokens_per_s: float | None = None
    mean_ttft_s: float | None = None
    median_ttft_s: float | None = None
    p99_ttft_s: float | None = None
    mean_tpot_s: float | None = None
    median_tpot_s: float | None = None
    mean_itl_s: float | None = None
    mean_e2e_s: float | None = None
    mean_e2e_over_output_tokens_s: float | None = None

    def completed_by_others(self) -> BenchmarkResult:
        """With what follows from other figures: totals from means, rates from the duration, the requests in flight
        from rate x latency (Little's law)."""

        def either(given: float | None, *factors: float | None) -> float | None:
            if given is not None:
                return given
            if any(factor is None for factor in factors):
                return None
            return math.prod(factor for factor in factors if factor is not None)

        count = None if self.completed is None else float(self.completed)
        per_request = 1 / count if count else None
        per_second = 1 / self.duration_s if self.duration_s else None
        inputs = either(self.input_tokens, self.mean_input_tokens, count)
        outputs = either(self.output_tokens, self.mean_output_tokens, count)
        rate = either(self.requests_per_s, count, per_second)
        output_rate = either(self.output_tokens_per_s, outputs, per_second)
        mean_output = either(self.mean_output_tokens, outputs, per_request)
        rate = either(rate, output_rate, 1 / mean_output if mean_output else None)
        mean_input = either(self.mean_input_tokens, inputs, per_request)
        total = self.total_tokens_per_s
        if total is None and output_rate is not None and rate is not None and mean_input is not None:
            total = output_rate + rate * mean_input
        duration = either(self.duration_s, count, 1 / rate if rate else None)
        return replace(
            self,
            input_tokens=inputs,
            output_tokens=outputs,
            mean_input_tokens=mean_input,
            mean_output_tokens=mean_output,
            requests_per_s=rate,
            output_tokens_per_s=output_rate,
            total_tokens_per_s=total,
            duration_s=duration,
            mean_concurrency=either(self.mean_concurrency, rate, self.mean_e2e_s),
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

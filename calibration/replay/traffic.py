"""Requests for engine and simulator alike."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from calibration.microbench.preset import Preset
from simulator.des.workload.requests import Requests
from simulator.model.arrays import Floats

if TYPE_CHECKING:
    from runtime.trace import TraceRequest


SHORTEST_PROMPT = 8  # tokens (assumed)


@dataclass(frozen=True)
class ReplayTraffic:
    """Requests in order of arrival, from 0 s on."""

    arrival_s: Floats
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]

    @property
    def requests(self) -> Requests:
        return Requests(self.prompt_tokens, self.output_tokens, arrival_s=self.arrival_s)


def draw_traffic(preset: Preset, requests: int, seed: int) -> ReplayTraffic:
    """Poisson arrivals of one a second, log-uniform prompts, uniform outputs; `at_rate` sets the pace."""
    rng = np.random.default_rng(seed)
    log_prompts = rng.uniform(np.log(SHORTEST_PROMPT), np.log(preset.longest_prompt), requests)
    prompts = np.rint(np.exp(log_prompts)).astype(np.int64)
    outputs = rng.integers(preset.longest_output // 2, preset.longest_output, requests, endpoint=True)
    arrivals = np.cumsum(rng.exponential(1.0, requests))
    return ReplayTraffic(arrivals - arrivals[0], prompts, outputs)


def read_traffic(path: Path, requests: int, length_scale: float) -> ReplayTraffic:
    """The first requests of an Azure or Mooncake trace, its token counts scaled."""
    from runtime.trace import load_trace

    rows = load_trace(path, max_requests=requests, length_scale=length_scale)
    columns = zip(*((row.arrival_s, row.input_tokens, row.output_tokens) for row in rows), strict=True)
    arrival, prompt, output = (np.array(column) for column in columns)
    return ReplayTraffic(arrival, prompt, np.maximum(output, 1))


def at_rate(traffic: ReplayTraffic, rate: float) -> ReplayTraffic:
    """The same requests at `rate` a second on average. [1/s]"""
    span = float(traffic.arrival_s[-1])
    if span == 0.0:  # one request, or all at once
        return traffic
    return replace(traffic, arrival_s=traffic.arrival_s * ((len(traffic.arrival_s) - 1) / (span * rate)))


def trace_of(traffic: ReplayTraffic) -> list[TraceRequest]:
    from runtime.trace import TraceRequest

    columns = (traffic.arrival_s.tolist(), traffic.prompt_tokens.tolist(), traffic.output_tokens.tolist())
    return [TraceRequest(*row) for row in zip(*columns, strict=True)]

"""What a finished run is summed up in: frozen records, which `to_json` turns into JSON. Metric and unit in the name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.des.results.cost import Cost
from simulator.des.results.energy import EnergyReport

PERCENTILES = (50, 90, 95, 99)  # those that serving benchmarks report


@dataclass(frozen=True)
class Percentiles:
    """Mean and percentiles of one metric over requests; None where it is defined for none."""

    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None


def percentiles_of(values: NDArray[np.float64]) -> Percentiles:
    """Of the defined values."""
    values = values[~np.isnan(values)]
    if not len(values):
        return Percentiles()
    return Percentiles(float(np.mean(values)), *np.percentile(values, PERCENTILES).tolist())


@dataclass(frozen=True)
class RequestCounts:
    """How requests ended."""

    total: int
    finished: int
    failed: int
    rejected: int


@dataclass(frozen=True)
class Rates:
    """Over a window of departures; per second."""

    input_tok_s: float
    output_tok_s: float
    requests_per_s: float
    goodput_requests_per_s: float  # requests that met every limit


@dataclass(frozen=True)
class Throughput:
    """Rates over the window; per GPU means over all accelerators of all groups that are paid for in it."""

    total_tok_s_per_gpu: float
    output_tok_s_per_gpu: float
    input_tok_s: float
    output_tok_s: float
    requests_per_s: float
    goodput_requests_per_s: float
    attainment: float
    window_start_s: float
    window_end_s: float


@dataclass(frozen=True)
class LimitReport:
    """One limit: the value at the wanted percentile of those that finished, and the share of all that keep it."""

    limit: float
    at_percentile: float | None
    attainment: float | None


@dataclass(frozen=True)
class SloReport:
    """attainment: share of the measured requests that finished inside every limit. limits: by metric."""

    percentile: float | None
    attainment: float | None
    meets_slo: bool
    limits: Mapping[str, LimitReport]


@dataclass(frozen=True)
class TenantReport:
    """What one of several tenants got; rates over the window of the whole run."""

    priority: int
    offline: bool
    requests: RequestCounts
    metrics: Mapping[str, Percentiles]
    throughput: Rates
    slo: SloReport


@dataclass(frozen=True)
class Utilization:
    """Of one group: means over the instances that are paid for and over time."""

    instances: float
    gpus: float
    busy_fraction: float
    batch_mean: float
    kv_occupancy: float
    link_fraction: float
    steps: int


@dataclass(frozen=True)
class Lifecycle:
    """Of one group over the whole run: what was paid for, how much of it served, what broke."""

    gpu_hours: float
    instances_least: int
    instances_most: int
    availability: float
    faults: Mapping[str, int]


@dataclass(frozen=True)
class GroupReport:
    """What one of several groups of a pool served; None where the pool does none of it."""

    pool: str
    requests: int
    request_share: float
    input_tok_s: float | None
    output_tok_s: float | None
    tok_s_per_gpu: float
    usd_per_mtok: float | None
    ttft_s: Percentiles | None
    tpot_s: Percentiles | None


@dataclass(frozen=True)
class Summary:
    """A whole run. metrics: by metric; tenants, utilization, groups, lifecycle: by name."""

    requests: RequestCounts
    rejections: Mapping[str, int]
    preemptions: int
    retries: int
    cached_tokens: int
    tokens_in: int
    tokens_out: int
    duration_s: float
    warmup_requests: int
    gpus_total: int
    metrics: Mapping[str, Percentiles]
    throughput: Throughput
    slo: SloReport
    tenants: Mapping[str, TenantReport]
    utilization: Mapping[str, Utilization]
    groups: Mapping[str, GroupReport]
    lifecycle: Mapping[str, Lifecycle]
    cost: Cost | None
    energy: EnergyReport | None
    assumptions: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        cost = None if self.cost is None else self.cost.to_json()
        return asdict(self) | {"cost": cost, "assumptions": list(self.assumptions)}

"""Metrics of a run, as the public serving benchmarks define them.

TTFT = first token - arrival. TPOT = (end - first token) / (output tokens - 1), undefined for one output token.
e2e = end - arrival. tok/s/user = 1 / TPOT. Goodput = requests/s that meet every limit; attainment = their share.

The first `warmup` requests to be sent are left out of latency and attainment; offline work, which waits from the start,
is neither counted among them nor left out. Throughput is counted over a window of departures, so that neither the
filling nor the draining of the cluster enters: it opens when the warm-up share of all departures is over and closes
when the last request arrives, or with the last departure where most come later; offline work has no say in it where
there is other.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from simulator.des.cluster.cluster import Run
from simulator.des.cluster.spec import ClusterSpec
from simulator.des.records.request_log import Status
from simulator.des.results.cost import Cost, PoolCost, cost_of
from simulator.des.results.energy import EnergyReport, energy_report
from simulator.des.results.group_usage import GroupUsage
from simulator.des.results.reports import (
    Lifecycle,
    Percentiles,
    Rates,
    RequestCounts,
    SloReport,
    TenantReport,
    Throughput,
    Utilization,
    percentiles_of,
)
from simulator.des.results.tenants import TenantRequests
from simulator.model.arrays import Floats, Mask
from simulator.scenario import Costs, Slo

METRICS = ("ttft_s", "tpot_s", "e2e_s", "tok_s_per_user")


@dataclass(frozen=True)
class GroupPrice:
    """What one accelerator of a group costs and draws."""

    usd_per_gpu_hour: float
    all_in_w: float | None = None
    costs: Costs = field(default_factory=Costs)


@dataclass(frozen=True)
class Window:
    """The span over which throughput is counted, and what left in it."""

    start_s: float
    end_s: float
    requests: int
    tokens_in: int
    tokens_out: int
    good: int  # requests that met every limit

    def rate(self, amount: float) -> float:
        span = self.end_s - self.start_s
        return amount / span if span > 0 else 0.0


class Measured:
    """Every request of a finished run as columns, which of them count, and the rates and times of their groups."""

    def __init__(
        self,
        spec: ClusterSpec,
        run: Run,
        slo: Slo | Sequence[Slo],
        prices: dict[str, GroupPrice] | None = None,
        assumptions: tuple[str, ...] = (),
    ) -> None:
        """slo: of all requests, or of each tenant."""
        self.spec = spec
        self.run = run
        self.slos = (slo,) * len(run.streams) if isinstance(slo, Slo) else tuple(slo)
        self.warmup = run.warmup
        self.prices = prices
        self.assumptions = assumptions
        self.rejections: Counter[str] = run.rejections
        log = run.log
        self.prompt_tokens = np.array(log.prompt_tokens)
        self.output_tokens = np.array(log.output_tokens)
        self.arrival_s = np.array(log.arrival_s)
        self.finish_s = np.array(log.finish_s)
        self.finished = np.frombuffer(log.status, dtype=np.uint8) == Status.FINISHED
        first = np.array(log.first_token_s)
        ended = np.where(self.finished, self.finish_s, np.nan)
        self.ttft_s: Floats = first - self.arrival_s
        self.e2e_s: Floats = ended - self.arrival_s
        steps = np.where(self.output_tokens > 1, self.output_tokens - 1.0, np.nan)
        self.tpot_s: Floats = (ended - first) / steps
        with np.errstate(divide="ignore"):
            self.tok_s_per_user: Floats = 1.0 / self.tpot_s
        self.tok_s_per_user[np.isinf(self.tok_s_per_user)] = np.nan

    @cached_property
    def offline(self) -> Mask:
        mask = np.zeros(len(self.finished), dtype=np.bool_)
        offline = self.run.log.offline
        mask[offline.start : offline.stop] = True
        return mask

    @cached_property
    def measured(self) -> Mask:
        """Requests behind the warm-up."""
        mask = np.ones(len(self.finished), dtype=np.bool_)
        online = np.flatnonzero(~self.offline)
        mask[online[np.argsort(self.arrival_s[online], kind="stable")[: self.warmup]]] = False
        return mask

    @cached_property
    def shares(self) -> tuple[TenantRequests, ...]:
        """Each tenant's part of the requests, in the order of their numbers."""
        shares = []
        first = 0
        for stream, slo in zip(self.run.streams, self.slos, strict=True):
            rows = slice(first, first + len(stream))
            first += len(stream)
            values = {name: getattr(self, name)[rows] for name in METRICS}
            shares.append(
                TenantRequests(
                    stream.tenant,
                    stream.priority,
                    stream.offline,
                    slo,
                    rows,
                    values,
                    self.finished[rows],
                    self.measured[rows],
                )
            )
        return tuple(shares)

    @cached_property
    def good(self) -> Mask:
        """Requests that finished and kept every limit of their tenant."""
        return np.concatenate([share.good for share in self.shares])

    @property
    def attainment(self) -> float:
        """Share of the measured requests that finished inside every limit; refused ones count as missed."""
        return float(np.mean(self.good[self.measured]))

    @property
    def meets_slo(self) -> bool:
        return all(share.meets_slo for share in self.shares)

    @cached_property
    def _timed(self) -> Mask:
        """Finished requests whose departures say when throughput is counted."""
        timed = self.finished & ~self.offline
        return timed if timed.any() else self.finished

    @cached_property
    def _closed_early(self) -> bool:
        """Whether most departures come before the last arrival: then that is where the cluster starts to drain."""
        departures = self.finish_s[self._timed]
        return bool(len(departures)) and float(np.median(departures)) <= self.run.closed.time_s

    @cached_property
    def window(self) -> Window:
        return self.window_of(slice(None))

    def window_of(self, rows: slice | Mask) -> Window:
        """The span over which throughput is counted, the same for all requests, and what left in it of `rows`."""
        start, end, inside = self._departures
        chosen = np.zeros(len(self.finished), dtype=np.bool_)
        chosen[rows] = True
        inside = inside[chosen[inside]]
        return Window(
            start,
            end,
            len(inside),
            int(self.prompt_tokens[inside].sum()),
            int(self.output_tokens[inside].sum()),
            int(self.good[inside].sum()),
        )

    @cached_property
    def _departures(self) -> tuple[float, float, NDArray[np.intp]]:
        """Start and end of the window, and the requests that left in it.

        What an open loop drains after its last arrival says nothing of a steady state: its window ends there. In it no
        more leave than have come: a surplus is of what came before, and left out.
        """
        order = np.argsort(self.finish_s, kind="stable")
        order = order[self.finished[order]]
        if not len(order):
            return 0.0, 0.0, order
        if self._is_open:
            return self._open_departures(order)
        timed = np.flatnonzero(self._timed[order])  # places in the order
        skipped = min(round(self.warmup / max(1, int((~self.offline).sum())) * len(timed)), len(timed) - 1)
        first = int(timed[skipped - 1]) + 1 if skipped else 0
        start = float(self.finish_s[order[first - 1]]) if skipped else float(np.nanmin(self.arrival_s))
        last = float(self.finish_s[order[timed[-1]]])
        end = self.run.closed.time_s if self._closed_early else last
        if end <= start:
            end = last
        inside = order[first:]
        return start, end, inside[self.finish_s[inside] <= end]

    @cached_property
    def _is_open(self) -> bool:
        """Whether all requests with a say in the window come at times of their own."""
        timed = [stream for stream in self.run.streams if not stream.offline]
        return bool(timed) and all(stream.arrival_s is not None for stream in timed)

    def _open_departures(self, order: NDArray[np.intp]) -> tuple[float, float, NDArray[np.intp]]:
        """order: finished requests in the order of their ends."""
        if self.too_short is not None:
            begun = float(np.nanmin(self.arrival_s[order]))
            return begun, max(self.run.closed.time_s, float(self.finish_s[order[-1]])), order
        start, end = self.run.opened.time_s, self.run.closed.time_s
        left = order[(self.finish_s[order] > start) & (self.finish_s[order] <= end)]
        came = int(((self.arrival_s > start) & (self.arrival_s <= end) & ~self.offline).sum())
        online = left[~self.offline[left]]
        surplus = online[: max(0, len(online) - came)]
        return start, end, left[~np.isin(left, surplus)]

    @cached_property
    def too_short(self) -> str | None:
        """Why the rates of an open loop are of the whole run, its filling and draining included; None where they are of
        a window that is longer than a request takes."""
        if not self._is_open:
            return None
        served = self.finished & self.measured & ~self.offline
        if not served.any():
            return None
        span_s = self.run.closed.time_s - self.run.opened.time_s
        lifetime_s = float(np.mean(self.e2e_s[served]))
        if span_s >= lifetime_s:
            return None
        return (
            f"requests came for {span_s:.3g} s and took {lifetime_s:.3g} s on average: rates and costs are of the "
            "whole run, its filling and draining included; send more requests for those of a steady state"
        )

    @cached_property
    def groups(self) -> dict[str, GroupUsage]:
        """By name; means run from the first measured arrival to the end of the measurement."""
        first = self.run.opened
        last = self.run.closed if self._closed_early else self.run.end
        if last.time_s <= first.time_s:
            last = self.run.end
        return {group.name: GroupUsage(group, self.run, first, last) for group in self.spec.groups}

    def mean_gpus(self, group: str) -> float:
        """Accelerators of a group that are paid for, on average over the window of throughput."""
        usage = self.groups[group]
        return usage.mean_instances(self.window.start_s, self.window.end_s) * usage.group.instance.gpus

    def lifecycle(self) -> dict[str, Lifecycle]:
        return {name: usage.lifecycle() for name, usage in self.groups.items()}

    def utilization(self) -> dict[str, Utilization]:
        return {name: usage.utilization() for name, usage in self.groups.items()}

    def cost(self) -> Cost | None:
        """Cost and energy at the achieved load; None where prices are not given."""
        if self.prices is None:
            return None
        pools = []
        for name, usage in self.groups.items():
            price = self.prices[name]
            prefill = float(self.spec.is_entry(usage.group)) if self.spec.decode else usage.prefill_share
            gpus, drawn = self.mean_gpus(name), usage.energy()
            power = price.costs.electricity_usd_per_hour(drawn.watts / gpus) if drawn is not None else 0.0
            pools.append(PoolCost(gpus, price.usd_per_gpu_hour + power, prefill, price.all_in_w))
        w = self.window
        rates = (w.rate(w.tokens_in), w.rate(w.tokens_out), w.rate(w.requests))
        return cost_of(tuple(pools), *rates, utilisation=min(p.costs.utilisation for p in self.prices.values()))

    def energy(self) -> EnergyReport | None:
        """Energy of the accelerators alone, by the time that they idle and are in steps; None where no TDP is known."""
        pools = [energy for usage in self.groups.values() if (energy := usage.energy()) is not None]
        if len(pools) < len(self.groups):
            return None
        w = self.window
        return energy_report(pools, w.rate(w.tokens_in), w.rate(w.tokens_out), w.rate(w.requests))

    def throughput(self) -> Throughput:
        w = self.window
        gpus = sum(map(self.mean_gpus, self.groups))
        return Throughput(
            w.rate(w.tokens_in + w.tokens_out) / gpus,
            w.rate(w.tokens_out) / gpus,
            w.rate(w.tokens_in),
            w.rate(w.tokens_out),
            w.rate(w.requests),
            w.rate(w.good),
            self.attainment,
            w.start_s,
            w.end_s,
        )

    def metrics(self) -> dict[str, Percentiles]:
        return {name: percentiles_of(getattr(self, name)[self.measured & self.finished]) for name in METRICS}

    def slo_report(self) -> SloReport:
        """Several tenants have limits of their own, which `tenants` reports; only the attainment of all is here."""
        if len(self.shares) == 1:
            return self.shares[0].slo_report()
        return SloReport(None, self.attainment, self.meets_slo, {})

    def tenants(self) -> dict[str, TenantReport]:
        """Of several; empty where there is one."""
        return {share.tenant: self._tenant(share) for share in self.shares} if len(self.shares) > 1 else {}

    def _tenant(self, share: TenantRequests) -> TenantReport:
        w = self.window_of(share.rows)
        return TenantReport(
            share.priority,
            share.offline,
            counts_of(self.run.log.status[share.rows]),
            share.metrics(),
            Rates(w.rate(w.tokens_in), w.rate(w.tokens_out), w.rate(w.requests), w.rate(w.good)),
            share.slo_report(),
        )


def counts_of(status: bytearray) -> RequestCounts:
    return RequestCounts(len(status), *(status.count(end) for end in (Status.FINISHED, Status.FAILED, Status.REJECTED)))


def warmup_count(fraction: float, requests: int) -> int:
    """Requests left out at the start; at least one stays.

    >>> warmup_count(0.1, 2000), warmup_count(0.9, 1)
    (200, 0)
    """
    return min(math.ceil(fraction * requests), requests - 1)

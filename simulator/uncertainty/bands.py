"""How sure the figures of a deployment are: p10-p90 bands, and the chance that a limit holds.

A band joins two independent errors in quadrature, on logarithms: that of the model against measurements
(`simulator.uncertainty.spreads`), and the noise of the run or runs that gave the figure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from hw_profiles.catalog import load
from simulator.des.replicate import Replications, headline
from simulator.des.results.measured import METRICS
from simulator.des.results.noise import relative_error, student
from simulator.des.results.reports import PERCENTILES
from simulator.des.results.result import SimulationResult
from simulator.des.results.tenants import TenantRequests
from simulator.model.architecture import ModelSpec
from simulator.model.arrays import Floats
from simulator.model.presets import load_model
from simulator.scenario import Deployment, Pool, Scenario, Workload
from simulator.uncertainty.spreads import Metric, Role, Spread, Uncertainty, uncertainty_of, widest

RATE: Metric = "total_tok_s_per_gpu"
TINY = 1e-12  # load, against a logarithm of nothing
# By figure the metric whose error it shares, and whether it is its reciprocal. Rates and costs are those at the same
# number of requests in flight; end to end is mostly decode.
ERROR_OF: dict[str, tuple[Metric, bool]] = {
    "ttft_s": ("ttft_s", False),
    "tpot_s": ("tpot_s", False),
    "e2e_s": ("tpot_s", False),
    "tok_s_per_user": ("tpot_s", True),
    "total_tok_s_per_gpu": ("total_tok_s_per_gpu", False),
    "output_tok_s_per_gpu": ("total_tok_s_per_gpu", False),
    "usd_per_mtok_input": ("total_tok_s_per_gpu", True),
    "usd_per_mtok_output": ("total_tok_s_per_gpu", True),
    "usd_per_mtok_blended": ("total_tok_s_per_gpu", True),
}


@dataclass(frozen=True)
class Bands:
    """What is known of the pool that computes prompts and of the one that decodes."""

    entry: Uncertainty
    decode: Uncertainty

    @property
    def whole(self) -> Uncertainty:
        """What rates of the whole deployment rest on."""
        return widest((self.entry, self.decode))

    def spread(self, figure: str, noise: float = 0.0) -> Spread:
        """Of a key of ERROR_OF. noise: relative standard error of the prediction."""
        metric, inverse = ERROR_OF[figure]
        pool = {"ttft_s": self.entry, "tpot_s": self.decode}.get(metric, self.whole)
        found = pool.spreads[metric].with_noise(noise)
        return found.inverse if inverse else found

    def offered(self, figure: str, value: float, noise: float = 0.0, load: float = 1.0) -> dict[str, float]:
        """p10, p50 and p90 where requests come at a rate that does not depend on the answers. Rates are then those that
        were offered, less what engines that are slower than predicted leave behind: with a load u of their capacity
        and a speed s they carry min(1, s / u) of it. load: of the busiest pool, 1 where it is not known."""
        spread = self.spread(figure, noise)
        if ERROR_OF[figure][0] != RATE:
            return spread.band(value)
        inverse = ERROR_OF[figure][1]
        slowest = spread.p90 if inverse else -spread.p10
        left = math.exp(max(0.0, slowest + math.log(max(load, TINY))))
        low, high = (value, value * left) if inverse else (value / left, value)
        return {"p10": low, "p50": value, "p90": high}

    def chance(self, figure: str, value: float, limit: float, noise: float = 0.0) -> float:
        """Chance that a measurement is inside `limit` where `value` is predicted."""
        return self.spread(figure, noise).chance_below(math.log(limit / value))

    def grounds(self) -> dict[str, Any]:
        """For JSON: kind of knowledge, and the reasons in words by accelerator."""
        pools = (self.entry, self.decode)
        return {"kind": self.whole.kind, "reasons": {pool.accelerator: pool.reason for pool in pools}}


def bands_of(deployment: Deployment, model: ModelSpec) -> Bands:
    """What is known of a deployment's pools. Raises CatalogError, ParallelismError."""

    def known(role: str, pool: Pool) -> Uncertainty:
        return uncertainty_of(load(pool.gpu, pool.stack), model, pool.parallelism, pool.draft_tokens, cast(Role, role))

    # Of a pool of several groups the least certain speaks for all. Prefill comes before decode.
    pools = [widest(known(role, group) for group in groups) for role, groups in deployment.pools.items()]
    return Bands(pools[0], pools[-1])


def _model(scenario: Scenario) -> ModelSpec:
    return load_model(scenario.model)


def of_run(result: SimulationResult, scenario: Scenario) -> dict[str, Any]:
    """Bands of one run, for JSON: {"kind", "reasons", "bands": {dotted key: {"p10", "p50", "p90"}}, "limits"}.

    A limit of one of several tenants is named "tenant.limit".
    """
    assert scenario.deployment is not None  # it was simulated
    bands = bands_of(scenario.deployment, _model(scenario))
    limits = {}
    for share in result.shares:
        noise = noise_at_limits(share)
        for name, seen in share.slo_report().limits.items():
            if seen.at_percentile:
                chance = bands.chance(name, seen.at_percentile, seen.limit, noise[name])
                key = f"{share.tenant}.{name}" if len(result.shares) > 1 else name
                limits[key] = {"limit": seen.limit, "chance": chance}
    kept = result.measured & result.finished
    noises = {
        f"metrics.{name}.{key}": error
        for name in METRICS
        for key, error in _noises(getattr(result, name)[kept]).items()
    }
    return {**bands.grounds(), "bands": _table(bands, headline(result), noises, scenario), "limits": limits}


def of_runs(seen: Replications, scenario: Scenario) -> dict[str, Any]:
    """Bands of the means over several runs, for JSON: as of one run, without limits."""
    assert scenario.deployment is not None  # it was simulated
    bands = bands_of(scenario.deployment, _model(scenario))
    means = {key: found.mean for key, found in seen.estimates.items()}
    errors = {
        key: found.relative / student(found.runs, seen.confidence)
        for key, found in seen.estimates.items()
        if found.mean
    }
    return {**bands.grounds(), "bands": _table(bands, means, errors, scenario)}


def noise_at_limits(share: TenantRequests) -> dict[str, float]:
    """Relative standard error of each latency at the percentile of the limits."""
    at = f"p{share.slo.percentile:g}"
    kept = share.measured & share.finished
    return {name: _noises(values[kept], (share.slo.percentile,))[at] for name, values in share.values.items()}


def _noises(values: Floats, percentiles: Sequence[float] = PERCENTILES) -> dict[str, float]:
    """Relative standard error of one latency, by statistic of the summary."""
    found = {"mean": relative_error(values, lambda v: float(np.mean(v)))}
    for p in percentiles:
        found[f"p{p:g}"] = relative_error(values, lambda v, p=p: float(np.percentile(v, p)))  # type: ignore[misc]
    return found


ANSWERED = ("closed_loop", "offline")  # kinds of workloads whose rate follows the answers


def _table(
    bands: Bands, figures: Mapping[str, float], noises: Mapping[str, float], scenario: Scenario
) -> dict[str, dict[str, float]]:
    """Bands of those figures that have one, by dotted key such as "metrics.ttft_s.p90"."""
    streams: list[Workload | None] = [tenant.workload for tenant in scenario.tenants]
    answered = all(stream is not None and stream.kind in ANSWERED for stream in streams or [scenario.workload])
    table = {}
    for key, value in figures.items():
        section, _, rest = key.partition(".")
        figure = rest.partition(".")[0]
        if figure in ERROR_OF and section in ("metrics", "throughput", "cost"):
            noise = noises.get(key, 0.0)
            table[key] = bands.spread(figure, noise).band(value) if answered else bands.offered(figure, value, noise)
    return table

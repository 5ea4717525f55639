"""How sure a design is: bands of its figures, the chance that each limit holds, and what a demanded chance asks for.

A limit holds if the latency is inside it and the pool that answers for it keeps up with the traffic: a pool that is
predicted to be loaded to u falls behind where the accelerators are slower than u times their prediction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from simulator.des.results.cost import Cost
from simulator.model.architecture import ModelSpec
from simulator.scenario import Deployment, Slo
from simulator.uncertainty.bands import RATE, Bands, bands_of
from simulator.uncertainty.spreads import Spread, Uncertainty

POOL = {"ttft_s": "prefill", "tpot_s": "decode", "e2e_s": "decode"}  # whose load endangers a limit
COSTS = ("usd_per_mtok_input", "usd_per_mtok_output", "usd_per_mtok_blended")


@dataclass(frozen=True)
class Demand:
    """What a pool is sized for."""

    slo: Slo
    load: float  # share of its capacity at most


def demand(slo: Slo, most_load: float, known: Uncertainty, confidence: float | None) -> Demand:
    """Limits and load that a prediction must keep for the limits to hold with a chance of `confidence`.

    Never looser than without it.
    """
    if confidence is None:
        return Demand(slo, most_load)
    bands = Bands(known, known)
    limits = {name: limit / _margin(bands, name, confidence) for name, limit in slo.limits.items()}
    return Demand(slo.model_copy(update=limits), min(most_load, _bearable_load(bands, "decode", confidence)))


@dataclass(frozen=True)
class Certainty:
    """What one design's figures are worth.

    values: latency at the percentile of the limits, and rates; noise: relative standard errors of the latencies where
    a run gave them; load: predicted utilisation of the pools.
    """

    bands: Bands
    slo: Slo
    values: Mapping[str, float | None]
    noise: Mapping[str, float]
    load: Mapping[str, float]

    def chance(self, limit: str) -> float:
        """Chance that a limit holds."""
        value, allowed = self.values[limit], self.slo.limits[limit]
        if value is None:  # no request has this latency: all keep the limit
            return 1.0
        if not math.isfinite(value):
            return 0.0
        inside = self.bands.chance(limit, value, allowed, self.noise.get(limit, 0.0))
        return min(inside, self.keeps_up(POOL[limit]))

    def keeps_up(self, pool: str) -> float:
        """Chance that the pool carries the traffic."""
        load = self.load[pool]
        return 1 - _rate(self.bands, pool).chance_below(math.log(load)) if load > 0 else 1.0

    def holds(self, confidence: float | None) -> bool:
        """Whether every limit holds with that chance; always where none is demanded."""
        return confidence is None or all(self.chance(limit) >= confidence for limit in self.slo.limits)

    def misses(self, confidence: float | None) -> dict[str, float]:
        """By limit, how many times too slow or too loaded the design is for it, where it is above 1."""
        ratios = {}
        for name, allowed in self.slo.limits.items():
            value = self.values[name]
            if value is None:
                continue
            ratios[name] = value / allowed
            if confidence is not None:
                slower = ratios[name] * _margin(self.bands, name, confidence, self.noise.get(name, 0.0))
                ratios[name] = max(slower, self.load[POOL[name]] / _bearable_load(self.bands, POOL[name], confidence))
        return {name: ratio for name, ratio in ratios.items() if ratio > 1}

    def to_json(self, cost: Cost | None) -> dict[str, Any]:
        """Kind of knowledge, p10-p90 of every figure, chance of every limit."""
        figures = dict(self.values) | ({name: getattr(cost, name) for name in COSTS} if cost else {})
        return {
            **self.bands.grounds(),
            "bands": {
                name: self.bands.offered(name, value, self.noise.get(name, 0.0), max(self.load.values()))
                for name, value in figures.items()
                if value is not None and math.isfinite(value)
            },
            "limits": {name: {"limit": at, "chance": self.chance(name)} for name, at in self.slo.limits.items()},
            "keeps_up": {pool: self.keeps_up(pool) for pool in self.load},
        }


def certainty(
    deployment: Deployment,
    model: ModelSpec,
    slo: Slo,
    metrics: Mapping[str, Any],
    load: Mapping[str, float],
    noise: Mapping[str, float] | None = None,
) -> Certainty:
    """What the figures of a design are worth.

    metrics: latencies with `mean` and the percentile of the limits, and rates. load, noise: as of Certainty.
    """
    at = f"p{slo.percentile:g}"
    values = {name: metrics[name].get(at, metrics[name]["mean"]) for name in ("ttft_s", "tpot_s", "e2e_s")}
    values["tok_s_per_user"] = metrics["tok_s_per_user"]["mean"]
    values |= {name: metrics[name] for name in ("total_tok_s_per_gpu", "output_tok_s_per_gpu")}
    return Certainty(bands_of(deployment, model), slo, values, noise or {}, load)


def _margin(bands: Bands, limit: str, confidence: float, noise: float = 0.0) -> float:
    """How many times below its limit a prediction must be."""
    return max(1.0, math.exp(bands.spread(limit, noise).quantile(confidence)))


def _bearable_load(bands: Bands, pool: str, confidence: float) -> float:
    """Predicted load at which a pool still keeps up with that chance."""
    return math.exp(_rate(bands, pool).quantile(1 - confidence))


def _rate(bands: Bands, pool: str) -> Spread:
    """Of log(measured / predicted) capacity of a pool."""
    return (bands.entry if pool == "prefill" else bands.decode).spreads[RATE]

"""What the planner answers with: designs, why others were turned down, and the plan that holds both."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from simulator.des.results.cost import Cost
from simulator.scenario import Deployment, Pool, Slo
from simulator.uncertainty.chances import Certainty


@dataclass(frozen=True)
class SteadyState:
    """What a cluster is estimated to do in equilibrium; latencies are infinite where a pool is overloaded.

    percentile: that of the limits, in percent. Rates are per accelerator of all pools, sequences those that run on one
    instance on average; utilisation is the share of a pool's capacity that the traffic takes.
    """

    percentile: float
    ttft_mean_s: float
    ttft_percentile_s: float
    tpot_mean_s: float
    tpot_percentile_s: float
    e2e_mean_s: float
    total_tok_s_per_gpu: float
    output_tok_s_per_gpu: float
    sequences_per_instance: float
    prefill_utilisation: float
    decode_utilisation: float

    @property
    def load(self) -> dict[str, float]:
        """Utilisation by what is done: a colocated pool has that of its two."""
        return {"prefill": self.prefill_utilisation, "decode": self.decode_utilisation}

    def to_json(self) -> dict[str, Any]:
        """The keys of a simulation's metrics: each carries its unit, each latency `mean` and the percentile (`p90`)."""
        at = f"p{self.percentile:g}"
        return {
            "ttft_s": {"mean": self.ttft_mean_s, at: self.ttft_percentile_s},
            "tpot_s": {"mean": self.tpot_mean_s, at: self.tpot_percentile_s},
            "e2e_s": {"mean": self.e2e_mean_s},
            "tok_s_per_user": {"mean": 1 / self.tpot_mean_s},
            "total_tok_s_per_gpu": self.total_tok_s_per_gpu,
            "output_tok_s_per_gpu": self.output_tok_s_per_gpu,
            "sequences_per_instance": self.sequences_per_instance,
            "utilization": self.load,
        }


@dataclass(frozen=True)
class Design:
    """One cluster that serves the traffic, as estimated and, if it was among the best, as simulated.

    simulated: metrics under the keys of `SteadyState.to_json`, latencies with more statistics.
    """

    deployment: Deployment
    steady_state: SteadyState
    simulated: dict[str, Any] | None
    cost: Cost | None  # None where an accelerator has no price
    meets_slo: bool
    assumptions: tuple[str, ...]
    certainty: Certainty

    @property
    def form(self) -> str:
        return "colocated" if self.deployment.colocated else "disaggregated"

    @property
    def cost_rank(self) -> tuple[float, int]:
        """Order by USD per hour; designs without a price come after, by accelerators."""
        return (self.cost.usd_per_hour if self.cost else float("inf"), self.deployment.gpus)

    def to_json(self) -> dict[str, Any]:
        cost = self.cost.to_json() if self.cost else {}
        pools = {role: pool_json(pool) for role, pool in self.deployment.lone_pools.items()}
        return {
            "form": self.form,
            **pools,
            "gpus_total": self.deployment.gpus,
            "steady_state": self.steady_state.to_json(),
            "simulated": self.simulated,
            "usd_per_hour": cost.get("usd_per_hour"),
            "usd_per_mtok_input": cost.get("usd_per_mtok_input"),
            "usd_per_mtok_output": cost.get("usd_per_mtok_output"),
            "usd_per_mtok_blended": cost.get("usd_per_mtok_blended"),
            "cost": cost or None,
            "meets_slo": self.meets_slo,
            "checked_by": "simulation" if self.simulated else "steady state only",
            "uncertainty": self.certainty.to_json(self.cost),
            "assumptions": list(self.assumptions),
        }


def pool_json(pool: Pool) -> dict[str, Any]:
    return {
        **pool.model_dump(exclude={"name"}),
        "max_sequences": pool.sequence_limit,
        "gpus_per_instance": pool.gpus_per_instance,
        "gpus": pool.gpus,
    }


@dataclass(frozen=True)
class Sight:
    """A latency that some design has on an idle cluster."""

    value: float
    allowed: float  # the limit, or what must be predicted for it to hold with the chance demanded
    design: str

    @property
    def closeness(self) -> tuple[float, float]:
        return (self.value / self.allowed, self.value)


@dataclass
class Rejections:
    """Why cuts were turned down, and the best value seen against each limit."""

    counts: Counter[str] = field(default_factory=Counter)
    best: dict[str, Sight] = field(default_factory=dict)  # by limit, what comes closest
    gpus: dict[str, int] = field(default_factory=dict)  # role -> accelerators of the smallest pool that would do
    memory: str = ""  # what the last cut that did not fit would need

    def add(self, reason: str) -> None:
        self.counts[reason] += 1

    def sized(self, role: str, gpus: int) -> None:
        self.gpus[role] = min(gpus, self.gpus.get(role, gpus))

    @property
    def least_gpus(self) -> int | None:
        """Accelerators of the smallest cluster that would do, were there no max_gpus."""
        whole = [self.gpus["colocated"]] if "colocated" in self.gpus else []
        if "prefill" in self.gpus and "decode" in self.gpus:
            whole.append(self.gpus["prefill"] + self.gpus["decode"])
        return min(whole, default=None)

    def saw(self, limit: str, value: float, allowed: float | None, design: str) -> None:
        """Note a value of a latency and what it may be predicted to be."""
        seen = Sight(value, allowed or math.inf, design)
        if limit not in self.best or seen.closeness < self.best[limit].closeness:
            self.best[limit] = seen


@dataclass(frozen=True)
class Plan:
    """Ranked designs for one scenario."""

    model: str
    traffic: str
    slo: Slo
    confidence: float | None  # chance with which each limit has to hold
    price_convention: str
    designs: tuple[Design, ...]
    frontier: tuple[dict[str, Any], ...]  # operating points: tok/s/user against tok/s/GPU and USD/Mtok
    rejected: dict[str, int]
    binding: str | None  # which limit nothing meets, and by how much
    assumptions: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "traffic": self.traffic,
            "slo": self.slo.model_dump(),
            "confidence": self.confidence,
            "price_convention": self.price_convention,
            "designs": [design.to_json() for design in self.designs],
            "frontier": list(self.frontier),
            "rejected": self.rejected,
            "binding": self.binding,
            "assumptions": list(self.assumptions),
        }


def binding_limit(rejections: Rejections, slo: Slo, max_gpus: int) -> str:
    """Say which limit stops every design, and by how much."""
    if not rejections.best:
        return (
            rejections.memory or "no cut of the model fits the accelerators offered; add accelerators with more memory"
        )
    sentences = []
    for name, limit in slo.limits.items():
        best = rejections.best.get(name)
        if best is None or best.value <= best.allowed:
            continue
        sure = "" if best.allowed == limit else f", of which it may take {best.allowed:.4g} s for the chance demanded,"
        sentences.append(
            f"{name}: the limit is {limit:g} s{sure} and the fastest design found ({best.design}) takes "
            f"{best.value:.4g} s on an idle cluster, {best.value / best.allowed:,.2f} times the limit"
        )
    if sentences:
        return "; ".join(sentences) + "; relax the limit or offer a faster accelerator"
    if rejections.least_gpus is not None:
        return (
            f"max_gpus: at most {max_gpus} accelerators are allowed and this traffic needs about "
            f"{rejections.least_gpus}; raise search.max_gpus (--max-gpus), or relax the limits"
        )
    return (
        "each limit can be met alone on an idle cluster, but no batch keeps both under this traffic; "
        "relax one of them or offer a faster accelerator"
    )

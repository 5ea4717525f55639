"""What the planner answers with: designs, operating points, and the plan that holds both."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from simulator.des.results.cost import Cost
from simulator.planner.offers import LeftOut
from simulator.scenario import Deployment, Pool, Scenario, Slo
from simulator.uncertainty.chances import Certainty

NAMES = {"ttft_s": "TTFT", "tpot_s": "TPOT", "e2e_s": "end to end"}


@dataclass(frozen=True)
class SteadyState:
    """What a cluster is estimated to do in equilibrium; latencies are infinite where a pool is overloaded.

    percentile: that of the limits, in percent. Rates are per accelerator of all pools, sequences those that run on one
    instance on average, decode_full their share of what fits. Utilisation is the share of a pool's capacity that the
    traffic takes. TPOT is None where no request has a second token.
    """

    percentile: float
    ttft_mean_s: float
    ttft_percentile_s: float
    tpot_mean_s: float | None
    tpot_percentile_s: float | None
    e2e_mean_s: float
    total_tok_s_per_gpu: float
    output_tok_s_per_gpu: float
    sequences_per_instance: float
    prefill_utilisation: float
    decode_utilisation: float
    decode_full: float

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
            "tok_s_per_user": {"mean": 1 / self.tpot_mean_s if self.tpot_mean_s else None},
            "total_tok_s_per_gpu": self.total_tok_s_per_gpu,
            "output_tok_s_per_gpu": self.output_tok_s_per_gpu,
            "sequences_per_instance": self.sequences_per_instance,
            "utilization": self.load,
        }


@dataclass(frozen=True)
class Design:
    """One cluster that serves the traffic, as estimated and, if it was among the best, as simulated.

    simulated: metrics under the keys of `SteadyState.to_json`, latencies with more statistics.
    concurrency: requests under way, by Little's law.
    """

    deployment: Deployment
    steady_state: SteadyState
    simulated: dict[str, Any] | None
    cost: Cost | None  # None where an accelerator has no price
    meets_slo: bool
    assumptions: tuple[str, ...]
    certainty: Certainty
    concurrency: float

    @property
    def form(self) -> str:
        return "colocated" if self.deployment.colocated else "disaggregated"

    @property
    def price(self) -> float:
        """USD per hour; accelerators where one has no price."""
        return self.cost.usd_per_hour if self.cost else float(self.deployment.gpus)

    @property
    def rank(self) -> tuple[float, int, float]:
        """Order by USD per hour, then by latency; designs without a price come after, by accelerators."""
        usd = self.cost.usd_per_hour if self.cost else math.inf
        return (round(usd, 6), self.deployment.gpus, self.violation)

    @property
    def at_limits(self) -> dict[str, float]:
        """Each latency over its limit; those that no request has left out."""
        values = {name: self.certainty.values[name] for name in self.certainty.slo.limits}
        return {name: value / self.certainty.slo.limits[name] for name, value in values.items() if value is not None}

    @property
    def violation(self) -> float:
        """The largest of them."""
        return max(self.at_limits.values(), default=0.0)

    @property
    def binds(self) -> dict[str, Any]:
        """What is nearest to its bound, and how near: a latency to its limit, a pool to its capacity, running sequences
        to what is allowed or fits."""
        near = {NAMES[name]: ratio for name, ratio in self.at_limits.items()}
        state = self.steady_state
        if self.deployment.colocated:
            near["load"] = max(state.prefill_utilisation, state.decode_utilisation)
        else:
            near |= {"prefill load": state.prefill_utilisation, "decode load": state.decode_utilisation}
        near["running sequences"] = state.decode_full
        what = max(near, key=lambda name: near[name] if math.isfinite(near[name]) else math.inf)
        return {"what": what, "share": near[what] if math.isfinite(near[what]) else None}

    @property
    def cuts(self) -> tuple[object, ...]:
        """What all pools are made of, without their sizes."""
        return tuple((pool.gpu, pool.stack, pool.parallelism, pool.batching) for pool in self.deployment.groups)

    @property
    def sizes(self) -> tuple[object, ...]:
        """All but the bounds on running sequences."""
        return (*self.cuts, *((pool.instances, pool.max_tokens_per_step) for pool in self.deployment.groups))

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
            "stack": ", ".join(dict.fromkeys(pool.stack for pool in self.deployment.groups)),
            "concurrency": self.concurrency,
            "sequences_per_instance": self.steady_state.sequences_per_instance,
            "binds": self.binds,
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
class OperatingPoint:
    """One cut of the model on one accelerator at one batch, pools rate-matched, latency limits not applied."""

    form: str
    gpu: str
    cut: str
    sequences_per_instance: int
    tok_s_per_user: float
    total_tok_s_per_gpu: float
    output_tok_s_per_gpu: float
    usd_per_mtok_blended: float | None  # None where the accelerator has no price


@dataclass(frozen=True)
class Plan:
    """Ranked designs for one scenario."""

    model: str
    traffic: str
    slo: Slo
    confidence: float | None  # chance with which each limit has to hold
    price_convention: str
    designs: tuple[Design, ...]
    frontier: tuple[OperatingPoint, ...]  # tok/s/user against tok/s/GPU and USD/Mtok
    rejected: dict[str, int]
    binding: str | None  # which limit nothing meets, and by how much
    assumptions: tuple[str, ...]
    own_stacks: tuple[str, ...] = ()  # accelerators with stacks of one's own, which come before those that ship
    sure: Design | None = None  # the cheapest that keeps each limit with a chance of 80%, as estimated
    cheaper: tuple[LeftOut, ...] = ()  # accelerators of the same vendor that were not offered
    idle: str | None = None  # why accelerators of a budget are not used
    scenarios: tuple[Scenario, ...] = ()  # of each design, to simulate

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "traffic": self.traffic,
            "slo": self.slo.model_dump(),
            "confidence": self.confidence,
            "price_convention": self.price_convention,
            "designs": [design.to_json() for design in self.designs],
            "frontier": [asdict(point) for point in self.frontier],
            "rejected": self.rejected,
            "binding": self.binding,
            "assumptions": list(self.assumptions),
            "own_stacks": list(self.own_stacks),
            "idle": self.idle,
            "sure": self.sure.to_json() if self.sure else None,
            "cheaper": [asdict(one) for one in self.cheaper],
        }

"""One design played request by request by the discrete-event model."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from simulator.des.simulate import simulate
from simulator.model.architecture import ModelSpec
from simulator.planner.design import Design
from simulator.scenario import Deployment, OpenLoop, Scenario
from simulator.uncertainty.bands import noise_at_limits
from simulator.uncertainty.chances import certainty

# Of a simulation. [requests; assumed: 300,000 are 10 to 20 CPU s, and three lifetimes at 2,000 requests a second]
MIN_REQUESTS, MAX_REQUESTS = 1000, 300_000
LIFETIMES = 4.0  # simulated time in mean request lifetimes, of which the first 1.25 are warm-up [assumed]
WARMUP_LIFETIMES = 1.25
MOST_WARMUP = 0.5  # of the requests [share; assumed]


@dataclass(frozen=True)
class Played:
    """What a simulation of a design needs and nothing else, for another process. lifetime_s: of a request."""

    scenario: Scenario
    model: ModelSpec
    design: Design
    lifetime_s: float


def played(task: Played) -> Design:
    """The design with what the simulation measured, cost at the load it carried.

    Inside the limits if the share of requests that meet all of them reaches the percentile, requests refused or
    failed counted as misses, and if every limit holds with the chance that is demanded.
    """
    scenario, design = task.scenario, task.design
    run = simulate(as_scenario(scenario, design.deployment, task.lifetime_s))
    result = run.summary().to_json()
    p = f"p{scenario.slo.percentile:g}"
    metrics = {key: dict(values) for key, values in result["metrics"].items()}
    for key, limit in result["slo"]["limits"].items():
        metrics[key][p] = limit["at_percentile"]
    simulated: dict[str, Any] = metrics | result["throughput"]
    simulated |= {key: result[key] for key in ("requests", "slo", "utilization")}
    load = design.steady_state.load
    sure = certainty(design.deployment, task.model, scenario.slo, simulated, load, noise_at_limits(run.shares[0]))
    return replace(
        design,
        simulated=simulated,
        cost=run.cost(),
        meets_slo=result["slo"]["meets_slo"] and sure.holds(scenario.search.confidence),
        certainty=sure,
        concurrency=result["throughput"]["requests_per_s"] * simulated["e2e_s"]["mean"]
        if simulated["e2e_s"]["mean"] is not None
        else design.concurrency,
    )


def as_scenario(scenario: Scenario, deployment: Deployment, lifetime_s: float) -> Scenario:
    """A design as a scenario that `simulate` runs. Open-loop traffic runs for a few request lifetimes at its highest
    rate, which the design is sized for; traces run whole."""
    changes: dict[str, Any] = {"deployment": deployment}
    if isinstance(scenario.workload, OpenLoop):
        wanted = math.ceil(scenario.workload.rate * lifetime_s * LIFETIMES)
        requests = min(MAX_REQUESTS, max(MIN_REQUESTS, wanted))
        warm = min(MOST_WARMUP, WARMUP_LIFETIMES * lifetime_s * scenario.workload.rate / requests)
        changes["workload"] = scenario.workload.model_copy(
            update={"requests": requests, "duration_s": None, "diurnal": None, "bursts": None}
        )
        changes["warmup_fraction"] = warm
    return scenario.model_copy(update=changes)

"""Run the best designs through the discrete-event model, and mend those that miss a limit."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from simulator.des.simulate import simulate
from simulator.model.architecture import ModelSpec
from simulator.planner.design import Design
from simulator.planner.estimate import estimate
from simulator.planner.executor import run_all
from simulator.planner.traffic import Traffic
from simulator.progress import Progress
from simulator.scenario import Deployment, OpenLoop, Pool, Scenario
from simulator.uncertainty.bands import noise_at_limits
from simulator.uncertainty.chances import certainty

MAX_ROUNDS = 4  # simulations spent on one design [assumed]
MAX_BATCHES = 3  # groups of `simulate_top` designs tried [assumed]
# Of a simulation. [requests; assumed: 300,000 are 10 to 20 CPU s, and three lifetimes at 2,000 requests a second]
MIN_REQUESTS, MAX_REQUESTS = 1000, 300_000
LIFETIMES = 6.0  # simulated time in mean request lifetimes, of which the first 1.5 are warm-up [assumed]
WARMUP_LIFETIMES = 1.5
MOST_WARMUP = 0.5  # of the requests [share; assumed]
MOST_GROWTH = 0.25  # of a pool between two simulations [share; assumed]
GROWTH_PER_MISS = 0.5  # of a pool, per share by which its limit is missed [assumed]


@dataclass(frozen=True)
class _Task:
    scenario: Scenario
    model: ModelSpec
    traffic: Traffic
    design: Design


def check_designs(
    scenario: Scenario, model: ModelSpec, traffic: Traffic, designs: list[Design], report: Progress
) -> list[Design]:
    """The given designs, the first `search.simulate_top` of them simulated; recommended ones first.

    While none of those simulated meets the limits, or an estimate is cheaper than those that do, further ones are
    tried. Cheapest first, simulated before estimated at equal cost; simulated and outside the limits last.
    """
    top = scenario.search.simulate_top
    done: list[Design] = []
    rest = list(designs)
    while top and rest and len(done) < MAX_BATCHES * top and not _settled(done, rest):
        batch, rest = rest[:top], rest[top:]
        report("simulating the best designs", len(done), len(done) + len(batch))
        done += run_all(_check, [_Task(scenario, model, traffic, design) for design in batch])
    kept = [d for d in done if d.meets_slo] + rest
    failed = sorted((d for d in done if not d.meets_slo), key=lambda d: d.cost_rank)
    return sorted(kept, key=lambda d: (not d.meets_slo, d.cost_rank, d.simulated is None)) + failed


def _settled(done: list[Design], rest: list[Design]) -> bool:
    """A design has passed that no estimate undercuts."""
    passed = [d.cost_rank for d in done if d.meets_slo]
    return bool(passed) and min(passed) <= rest[0].cost_rank


def _check(task: _Task) -> Design:
    """Simulate; where a limit is missed, add instances to the pool that misses it and simulate again."""
    design = _simulated(task, task.design)
    for _ in range(MAX_ROUNDS - 1):
        if design.meets_slo:
            break
        wider = _widen(design, task.scenario)
        if wider is None:
            break
        design = _simulated(task, estimate(task.scenario, task.model, task.traffic, wider))
    return design


def _simulated(task: _Task, design: Design) -> Design:
    """The design with what the simulation measured, cost at the load it carried.

    Inside the limits if the share of requests that meet all of them reaches the percentile, requests refused or
    failed counted as misses, and if every limit holds with the chance that is demanded.
    """
    run = simulate(_scenario(task.scenario, design))
    result = run.summary().to_json()
    p = f"p{task.scenario.slo.percentile:g}"
    metrics = {key: dict(values) for key, values in result["metrics"].items()}
    for key, limit in result["slo"]["limits"].items():
        metrics[key][p] = limit["at_percentile"]
    simulated = metrics | result["throughput"]
    simulated |= {key: result[key] for key in ("requests", "slo", "utilization")}
    load = design.steady_state.load
    noise = noise_at_limits(run.shares[0])
    sure = certainty(design.deployment, task.model.name, task.scenario.slo, simulated, load, noise)
    return replace(
        design,
        simulated=simulated,
        cost=run.cost(),
        meets_slo=result["slo"]["meets_slo"] and sure.holds(task.scenario.search.confidence),
        certainty=sure,
    )


def _scenario(scenario: Scenario, design: Design) -> Scenario:
    """The design as a scenario. Open-loop traffic runs for a few request lifetimes at its highest rate, which the
    design is sized for; traces run whole."""
    changes: dict[str, Any] = {"deployment": design.deployment}
    if isinstance(scenario.workload, OpenLoop):
        lifetime = design.steady_state.e2e_mean_s
        wanted = math.ceil(scenario.workload.rate * lifetime * LIFETIMES)
        requests = min(MAX_REQUESTS, max(MIN_REQUESTS, wanted))
        warm = min(MOST_WARMUP, WARMUP_LIFETIMES * lifetime * scenario.workload.rate / requests)
        changes["workload"] = scenario.workload.model_copy(
            update={"requests": requests, "duration_s": None, "diurnal": None, "bursts": None}
        )
        changes["warmup_fraction"] = warm
    return scenario.model_copy(update=changes)


def _widen(design: Design, scenario: Scenario) -> Deployment | None:
    """More instances where a limit is missed, in proportion to the miss and at least one; None if at max_gpus."""
    missed = design.certainty.misses(scenario.search.confidence)
    deployment = design.deployment
    changes: dict[str, Pool] = {}
    pools = deployment.lone_pools
    if "colocated" in pools:
        changes["colocated"] = _grown(pools["colocated"], max(missed.values(), default=1.0))
    else:
        if "ttft_s" in missed:
            changes["prefill"] = _grown(pools["prefill"], missed["ttft_s"])
        if "tpot_s" in missed or not changes:
            changes["decode"] = _grown(pools["decode"], missed.get("tpot_s", 1.0))
    wider = deployment.model_copy(update=changes)
    return wider if wider.gpus <= scenario.search.max_gpus else None


def _grown(pool: Pool, miss: float) -> Pool:
    """One more instance, or up to a quarter more where the limit is missed by far."""
    more = max(1, math.ceil(pool.instances * min(MOST_GROWTH, GROWTH_PER_MISS * (miss - 1))))
    return pool.model_copy(update={"instances": pool.instances + more})

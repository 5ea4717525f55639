"""Spare instances: how many more than the traffic needs, so that enough of them are up in spite of faults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from simulator.des.cluster.group import Moment
from simulator.questions.trial import Trial, deployed, run
from simulator.scenario import Deployment, Faults, Lengths, OpenLoop, Outages, Scenario, ScenarioError

HOURS = 3600.0  # [s]
# 419 unplanned interruptions of a job on 16,384 H100 in 54 days: one in 50,700 GPU-hours (Grattafiori et al., "The
# Llama 3 herd of models", 2024, section 3.3.4). The instance that holds the GPU is down with it.
GPU_HOURS_A_FAULT = 16_384 * 54 * 24 / 419
REPAIR_S = 4 * HOURS  # until the instance starts again [s; assumed]
LONGEST_S = 9e8  # of a run, 28 years [s]: scenario keys go up to 1e9 s
FAULTS = 2000  # of a pool, after which a run is long enough: the share of time is then right to some percent [assumed]
FEWEST_REQUESTS = 20  # of a run, which has to last as long as its arrivals
RUNS = 2  # [assumed]
REQUEST_RATE = 2e-6  # of the runs, which look at faults alone [requests/s]
MOST_SPARE = 64  # instances of a pool, beyond which the target is out of reach [assumed]


@dataclass(frozen=True)
class Headroom:
    """Spare instances by pool, and the share of time in which enough of all pools are up. source: of the faults."""

    spare: dict[str, int]
    availability: float
    without_spare: float
    source: str


def faults_of(scenario: Scenario) -> tuple[Faults | None, str]:
    """The scenario's random faults of instances and nodes; None where it has none, which then are assumed."""
    deployment = scenario.deployment
    faults = deployment.faults if deployment is not None else None
    if faults is not None and (faults.instance is not None or faults.node is not None):
        return faults, "faults of the scenario"
    return None, (
        f"assumed faults: one in {GPU_HOURS_A_FAULT:,.0f} GPU-hours (Llama 3 training, 2024), repaired in "
        f"{REPAIR_S / HOURS:g} h"
    )


def headroom(scenario: Scenario, target: float) -> Headroom:
    """Fewest spare instances of each pool with which enough are up for `target` of the time, by simulated faults.

    The deployment has what the traffic needs. Each pool is given the same share of what may be missed. Raises
    ScenarioError where no number of spares does.
    """
    if not 0 < target < 1:
        raise ScenarioError(f"availability={target:g} is not between 0 and 1; give for example 0.999")
    deployment, (faults, source) = deployed(scenario), faults_of(scenario)
    pools = deployment.lone_pools
    each = 1 - (1 - target) / len(pools)
    spare, reached, bare = {}, 1.0, 1.0
    for name, pool in pools.items():
        for more in range(MOST_SPARE + 1):
            up = share_up(scenario, name, pool.instances, more, faults)
            bare *= up if not more else 1.0
            if up >= each:
                spare[name], reached = more, reached * up
                break
        else:
            raise ScenarioError(
                f"{MOST_SPARE} spare instances of the {name} pool do not make it available {each:.4%} of the time; "
                "lower the target, or repair faster"
            )
    return Headroom(spare, reached, bare, source)


def share_up(scenario: Scenario, name: str, needed: int, spare: int, faults: Faults | None) -> float:
    """Share of time in which at least `needed` of needed + spare instances of a pool serve."""
    deployment = deployed(scenario)
    pool = deployment.lone_pools[name]
    given = faults or Faults(
        instance=Outages(mtbf_s=GPU_HOURS_A_FAULT / pool.gpus_per_instance * HOURS, mttr_s=REPAIR_S)
    )
    given = given.model_copy(update={"link": None, "slow": None, "events": ()})
    return _share_up(scenario.model, deployment.model_dump_json(), name, needed, spare, given.model_dump_json())


@lru_cache(maxsize=4096)
def _share_up(model: str, deployment: str, name: str, needed: int, spare: int, faults: str) -> float:
    """One pool alone is simulated, under next to no traffic."""
    whole = Deployment.model_validate_json(deployment)
    given = Faults.model_validate_json(faults)
    pools = {
        pool: group.model_copy(update={"instances": needed + spare if pool == name else 1, "autoscale": None})
        for pool, group in whole.lone_pools.items()
    }
    often = min(outages.mtbf_s for outages in (given.instance, given.node) if outages is not None)
    span_s = min(LONGEST_S, FAULTS * often / (needed + spare))
    count = max(FEWEST_REQUESTS, round(span_s * REQUEST_RATE))
    work = OpenLoop(rate=count / span_s, requests=count, prompt=Lengths(value=16), output=Lengths(value=2))
    scenario = Scenario(
        name="faults",
        model=model,
        workload=work,
        deployment=whole.model_copy(update={**pools, "faults": given, "prefix_cache": None, "router": "round_robin"}),
    )
    played = [run(Trial(scenario, seed)).run for seed in range(RUNS)]
    return sum(time_with(one.sizes[name], needed, one.end.time_s) for one in played) / RUNS


def time_with(sizes: Sequence[Moment], needed: int, end_s: float) -> float:
    """Share of the time up to `end_s` in which at least so many instances serve.

    >>> time_with([Moment(0, 3, 3, 0), Moment(6, 3, 2, 1), Moment(8, 3, 3, 0)], 3, 10.0)
    0.8
    """
    up = 0.0
    for moment, until in zip(sizes, [*(later.time_s for later in sizes[1:]), end_s], strict=True):
        if moment.serving >= needed:
            up += max(0.0, min(until, end_s) - moment.time_s)
    return up / end_s

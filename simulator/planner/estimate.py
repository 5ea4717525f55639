"""Steady-state estimates of deployments: latency, throughput, cost, what binds, and what was assumed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from hw_profiles.catalog import CatalogError
from hw_profiles.profile import HardwareProfile
from simulator.des.cluster.power import PowerDraw
from simulator.des.results.cost import PoolCost, cost_of
from simulator.model.architecture import ModelSpec
from simulator.model.arrays import Floats
from simulator.planner.design import Design, SteadyState
from simulator.planner.engines import Choice, ServingEngine
from simulator.planner.pools import ENDLESS, PoolTable, Pricing, column, layout
from simulator.scenario import Deployment, Pool, PowerKeys, Scenario
from simulator.steady_state.arrays import Place
from simulator.steady_state.closed_loop import closed_loop
from simulator.steady_state.cluster import ClusterArrays, Equilibrium
from simulator.steady_state.open_loop import open_loop
from simulator.steady_state.stations import steps_of
from simulator.uncertainty.chances import certainty


def pool_cost(
    pool: Pool, hardware: HardwareProfile, scenario: Scenario, prefill_share: float, drawn_w: float
) -> PoolCost | None:
    """What the pool costs, or None where the accelerator has no price. drawn_w: mean draw of an accelerator. [W]"""
    try:
        price = hardware.usd_per_hour(scenario.price_convention).usd_per_hour.value
    except CatalogError:
        return None
    price += scenario.costs.electricity_usd_per_hour(drawn_w)
    return PoolCost(pool.gpus, price, prefill_share, hardware.all_in_w)


def drawn_w(engine: ServingEngine, busy: float, sequences: float, prefill_share: float) -> float:
    """Mean draw of an accelerator of a pool, 0 where its TDP is not known. [W]

    busy: share of the time in steps; sequences: decoding on an instance; prefill_share: of the time in steps.
    """
    levels = PowerDraw.of(engine.hardware, PowerKeys())
    if levels is None:
        return 0.0
    levels = levels.at(sequences * (1 + engine.offer.draft_tokens) / engine.gpus)
    return float(levels.joules(1.0, busy * prefill_share, busy * (1 - prefill_share)))


@dataclass(frozen=True)
class _Side:
    """Pools of one role of several deployments."""

    table: PoolTable
    instances: Floats
    sequences: Floats

    @classmethod
    def of(cls, pricing: Pricing, role: str, pools: Sequence[Pool]) -> _Side:
        table = pricing.table([pricing.choice_of(role, pool) for pool in pools])
        limits = column([pool.sequence_limit for pool in pools])
        return cls(table, column([pool.instances for pool in pools]), np.minimum(limits, table.most))


def estimates(scenario: Scenario, pricing: Pricing, deployments: Sequence[Deployment]) -> list[Design]:
    """Of each deployment in its order."""
    found: dict[int, Design] = {}
    for rows in _alike(pricing, deployments):
        several = [deployments[row] for row in rows]
        found |= zip(rows, _estimated(scenario, pricing, several), strict=True)
    return [found[row] for row in range(len(deployments))]


def estimate(scenario: Scenario, pricing: Pricing, deployment: Deployment) -> Design:
    """Of one deployment."""
    return estimates(scenario, pricing, [deployment])[0]


def _alike(pricing: Pricing, deployments: Sequence[Deployment]) -> Iterable[list[int]]:
    """Places of deployments whose pools fit into one table."""
    groups: dict[object, list[int]] = {}
    for row, deployment in enumerate(deployments):
        key = tuple(layout(pricing.choice_of(role, pool)) for role, pool in deployment.lone_pools.items())
        groups.setdefault(key, []).append(row)
    return groups.values()


def _estimated(scenario: Scenario, pricing: Pricing, deployments: Sequence[Deployment]) -> list[Design]:
    roles = list(deployments[0].lone_pools)
    sides = [_Side.of(pricing, role, [d.lone_pools[role] for d in deployments]) for role in roles]
    entry, last = sides[0], sides[-1]
    if len(sides) == 1:
        cluster = pricing.alone(entry.table, entry.instances, entry.sequences)
    else:
        cluster = pricing.joined(entry.table, entry.instances, last.table, last.instances, last.sequences)
    rate = np.full((len(deployments), 1), pricing.traffic.rate)
    found = open_loop(cluster, rate, scenario.slo.percentile)
    loads = _loads(pricing, cluster, found, rate)
    share = _prefill_share(entry, rate) if len(sides) == 1 else None
    return [
        _design(scenario, pricing, deployment, found, row, loads, [side.table.choices[row] for side in sides], share)
        for row, deployment in enumerate(deployments)
    ]


def _loads(pricing: Pricing, cluster: ClusterArrays, found: Equilibrium, rate: Floats) -> dict[str, Floats]:
    """Share of each pool's capacity that the traffic takes; a colocated pool has one for both. [deployments, 1]"""
    if cluster.decode is None:
        both = rate / closed_loop(cluster, np.full_like(rate, ENDLESS)).rate
        return {"prefill": both, "decode": both}
    decode, demand = cluster.decode, pricing.demand
    most = decode.sequences
    step = Place.on(decode.steps.batches, most).of(decode.steps.decode_s)
    steps = demand.several * steps_of(demand.further, cluster.acceptance)
    sustained = most * decode.instances / np.maximum(steps * step, 1e-12)
    return {
        "prefill": rate * cluster.entry.steps.full_s[:, :, 0] / cluster.entry.instances,
        "decode": rate / sustained,
    }


def _prefill_share(entry: _Side, rate: Floats) -> Floats:
    """Of a colocated pool's time, what its prompts take alone."""
    return np.asarray(np.minimum(1.0, rate * entry.table.steps.full_s[:, :, 0] / entry.instances))


def _design(
    scenario: Scenario,
    pricing: Pricing,
    deployment: Deployment,
    found: Equilibrium,
    row: int,
    loads: dict[str, Floats],
    choices: Sequence[Choice],
    share: Floats | None,
) -> Design:
    slo, traffic = scenario.slo, pricing.traffic
    tokens_in, tokens_out = traffic.rate * traffic.mean_prompt, traffic.rate * traffic.mean_output

    def of(values: Floats) -> float:
        return float(values[row, 0])

    several = bool(pricing.demand.several.item() > 0)
    mean_ttft, mean_tpot = of(found.mean_ttft_s), of(found.mean_tpot_s) if several else None
    state = SteadyState(
        percentile=slo.percentile,
        ttft_mean_s=mean_ttft,
        ttft_percentile_s=of(found.ttft_s),
        tpot_mean_s=mean_tpot,
        tpot_percentile_s=of(found.tpot_s) if several else None,
        e2e_mean_s=mean_ttft + (traffic.mean_output - 1) * (mean_tpot or 0.0),
        total_tok_s_per_gpu=(tokens_in + tokens_out) / deployment.gpus,
        output_tok_s_per_gpu=tokens_out / deployment.gpus,
        sequences_per_instance=of(found.running),
        prefill_utilisation=of(loads["prefill"]),
        decode_utilisation=of(loads["decode"]),
        decode_full=of(found.decode_full),
    )
    pools = deployment.lone_pools
    shares = [1.0, 0.0] if share is None else [of(share)]
    # Pools that decode are in steps nearly all of the time: a lone sequence keeps them there.
    busy = [min(1.0, of(loads["prefill"])), 1.0] if share is None else [1.0]
    decoding = [0.0, of(found.running)] if share is None else [of(found.running)]
    watts = [drawn_w(choice.engine, *drawn) for choice, *drawn in zip(choices, busy, decoding, shares, strict=True)]
    costs = [
        pool_cost(pool, choice.engine.hardware, scenario, part, drawn)
        for pool, choice, part, drawn in zip(pools.values(), choices, shares, watts, strict=True)
    ]
    known = tuple(cost for cost in costs if cost is not None)
    sure = certainty(deployment, pricing.model, slo, state.to_json(), state.load)
    return Design(
        deployment=deployment,
        steady_state=state,
        simulated=None,
        cost=cost_of(known, tokens_in, tokens_out, traffic.rate, scenario.costs.utilisation)
        if len(known) == len(costs)
        else None,
        meets_slo=not sure.misses(scenario.search.confidence),
        assumptions=assumptions(pricing.model, [choice.engine.hardware for choice in choices]),
        certainty=sure,
        concurrency=traffic.rate * state.e2e_mean_s,
    )


def assumptions(model: ModelSpec, hardware: Sequence[HardwareProfile]) -> tuple[str, ...]:
    """What is assumed about the model and the accelerators, each sentence once."""
    return tuple(dict.fromkeys((*model.assumptions, *(text for h in hardware for text in h.assumptions))))

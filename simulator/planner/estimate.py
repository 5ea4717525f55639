"""The steady-state estimate of one deployment: latency, throughput, cost, and what was assumed."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from hw_profiles.catalog import CatalogError
from hw_profiles.profile import HardwareProfile
from hw_profiles.schema import Convention
from simulator.des.results.cost import PoolCost, cost_of
from simulator.model.architecture import ModelSpec
from simulator.model.kv import transfer_bytes
from simulator.model.parallelism import Parallelism
from simulator.planner.design import Design, SteadyState
from simulator.planner.priced_instance import PricedInstance, price_instance
from simulator.planner.steady_state import (
    ColocatedState,
    DecodeState,
    PrefillState,
    colocated_state,
    decode_state,
    mixed_point,
    prefill_state,
    prefill_times,
)
from simulator.planner.traffic import Traffic
from simulator.scenario import Deployment, Pool, Scenario, Transfer
from simulator.uncertainty.chances import certainty


def pool_cost(pool: Pool, hardware: HardwareProfile, convention: Convention, prefill_share: float) -> PoolCost | None:
    """What the pool costs, or None where the accelerator has no price."""
    try:
        price = hardware.usd_per_hour(convention).usd_per_hour.value
    except CatalogError:
        return None
    return PoolCost(pool.gpus, price, prefill_share, hardware.all_in_w)


def handover_s(model: ModelSpec, tokens: int, hardware: HardwareProfile, cut: Parallelism, transfer: Transfer) -> float:
    """Seconds to move the KV of `tokens` tokens over the links of one attention rank, nobody else transferring."""
    bandwidth = transfer.bandwidth(hardware) * cut.gpus / cut.dp
    size = transfer_bytes(model, tokens) + transfer.half_rate_bytes
    return transfer.handshake_s + size / (transfer.achieved * bandwidth)


def estimate(scenario: Scenario, model: ModelSpec, traffic: Traffic, deployment: Deployment) -> Design:
    """Mean-field estimate of `deployment` under `traffic`."""
    percentile = scenario.slo.percentile
    first: PrefillState | ColocatedState
    then: DecodeState | ColocatedState
    convention = scenario.price_convention
    pools = deployment.lone_pools
    if "colocated" in pools:
        pool = pools["colocated"]
        priced = price_instance(model, pool, "colocated")
        point = functools.cache(lambda n: mixed_point(priced, traffic, pool.max_tokens_per_step, n))
        state = colocated_state(traffic, priced, pool.instances, pool.sequence_limit, percentile, point)
        first = then = state
        costs = [pool_cost(pool, priced.hardware, convention, state.prefill_share)]
        instances = [priced]
    else:
        prefill, decode = pools["prefill"], pools["decode"]
        p, d = (price_instance(model, pool, "disaggregated") for pool in (prefill, decode))
        times = prefill_times(p, traffic, prefill.max_tokens_per_step)
        first = prefill_state(p, traffic, times, prefill.instances, percentile)
        stall = handover_s(model, round(traffic.mean_prompt), p.hardware, p.parallelism, deployment.transfer)
        then = decode_state(d, traffic, decode.instances, decode.sequence_limit, stall, percentile)
        costs = [pool_cost(prefill, p.hardware, convention, 1.0), pool_cost(decode, d.hardware, convention, 0.0)]
        instances = [p, d]
    return _design(scenario, model, traffic, deployment, first, then, costs, instances)


def _design(
    scenario: Scenario,
    model: ModelSpec,
    traffic: Traffic,
    deployment: Deployment,
    first: PrefillState | ColocatedState,
    then: DecodeState | ColocatedState,
    costs: Sequence[PoolCost | None],
    instances: Sequence[PricedInstance],
) -> Design:
    slo = scenario.slo
    tokens_in, tokens_out = traffic.rate * traffic.mean_prompt, traffic.rate * traffic.mean_output
    state = SteadyState(
        percentile=slo.percentile,
        ttft_mean_s=first.ttft_mean_s,
        ttft_percentile_s=first.ttft_percentile_s,
        tpot_mean_s=then.tpot_mean_s,
        tpot_percentile_s=then.tpot_percentile_s,
        e2e_mean_s=first.ttft_mean_s + (traffic.mean_output - 1) * then.tpot_mean_s,
        total_tok_s_per_gpu=(tokens_in + tokens_out) / deployment.gpus,
        output_tok_s_per_gpu=tokens_out / deployment.gpus,
        sequences_per_instance=then.sequences,
        prefill_utilisation=first.utilisation,
        decode_utilisation=then.utilisation,
    )
    known = tuple(cost for cost in costs if cost is not None)
    sure = certainty(deployment, model.name, slo, state.to_json(), state.load)
    return Design(
        deployment=deployment,
        steady_state=state,
        simulated=None,
        cost=cost_of(known, tokens_in, tokens_out, traffic.rate) if len(known) == len(costs) else None,
        meets_slo=not sure.misses(scenario.search.confidence),
        assumptions=assumptions(instances[0].model, [one.hardware for one in instances]),
        certainty=sure,
    )


def assumptions(model: ModelSpec, hardware: Sequence[HardwareProfile]) -> tuple[str, ...]:
    """What is assumed about the model and the accelerators, each sentence once."""
    return tuple(dict.fromkeys((*model.assumptions, *(text for h in hardware for text in h.assumptions))))

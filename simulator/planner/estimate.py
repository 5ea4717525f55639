"""The steady-state estimate of one deployment: latency, throughput, cost, and what was assumed."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hw_profiles.catalog import CatalogError, load
from hw_profiles.profile import HardwareProfile
from hw_profiles.schema import Convention
from simulator.des.results.cost import PoolCost, cost_of
from simulator.model.architecture import ModelSpec
from simulator.model.engine import Form, in_service
from simulator.model.expert_load import ExpertSkew
from simulator.model.kv import transfer_bytes
from simulator.model.latency import StepLatency
from simulator.model.memory import plan_memory
from simulator.model.parallelism import Parallelism
from simulator.planner.design import Design
from simulator.planner.steady_state import (
    ColocatedState,
    DecodeState,
    Engine,
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


def engine_of(model: ModelSpec, pool: Pool, form: Form) -> Engine:
    """The priced engine of a pool. Raises DoesNotFitError, ParallelismError or CatalogError."""
    cut = pool.parallelism
    hardware = in_service(load(pool.gpu, pool.stack), model, cut, pool.draft_tokens, form)
    memory = plan_memory(model, hardware, cut, pool.max_tokens_per_step, pool.draft_tokens, pool.redundant_experts)
    latency = _latency(model, hardware, cut, pool.draft_tokens, pool.skew)
    return Engine(model, hardware, cut, latency, memory, pool.acceptance_length)


def in_form(engine: Engine, form: Form) -> Engine:
    """The engine of a search as it runs in that form of serving."""
    drafts = engine.latency.draft_tokens
    plain = load(engine.hardware.name, engine.hardware.stack)
    hardware = in_service(plain, engine.model, engine.parallelism, drafts, form)
    return replace(
        engine, hardware=hardware, latency=_latency(engine.model, hardware, engine.parallelism, drafts, None)
    )


@functools.lru_cache(maxsize=512)
def _latency(
    model: ModelSpec, hardware: HardwareProfile, cut: Parallelism, draft_tokens: int, skew: ExpertSkew | None
) -> StepLatency:
    """Step times are remembered inside, so pools that differ only in size share them."""
    return StepLatency(model, hardware, cut, draft_tokens, skew)


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
        engine = engine_of(model, pool, "colocated")
        point = functools.cache(lambda n: mixed_point(engine, traffic, pool.max_tokens_per_step, n))
        state = colocated_state(traffic, engine, pool.instances, pool.sequence_limit, percentile, point)
        first = then = state
        costs = [pool_cost(pool, engine.hardware, convention, state.prefill_share)]
        engines = [engine]
    else:
        prefill, decode = pools["prefill"], pools["decode"]
        p, d = (engine_of(model, pool, "disaggregated") for pool in (prefill, decode))
        times = prefill_times(p, traffic, prefill.max_tokens_per_step)
        first = prefill_state(p, traffic, times, prefill.instances, percentile)
        stall = handover_s(model, round(traffic.mean_prompt), p.hardware, p.parallelism, deployment.transfer)
        then = decode_state(d, traffic, decode.instances, decode.sequence_limit, stall, percentile)
        costs = [pool_cost(prefill, p.hardware, convention, 1.0), pool_cost(decode, d.hardware, convention, 0.0)]
        engines = [p, d]
    return _design(scenario, model, traffic, deployment, first, then, costs, engines)


def _design(
    scenario: Scenario,
    model: ModelSpec,
    traffic: Traffic,
    deployment: Deployment,
    first: PrefillState | ColocatedState,
    then: DecodeState | ColocatedState,
    costs: Sequence[PoolCost | None],
    engines: Sequence[Engine],
) -> Design:
    slo, p = scenario.slo, f"p{scenario.slo.percentile:g}"
    tokens_in, tokens_out = traffic.rate * traffic.mean_prompt, traffic.rate * traffic.mean_output
    e2e = first.ttft_mean_s + (traffic.mean_output - 1) * then.tpot_mean_s
    state: dict[str, Any] = {
        "ttft_s": {"mean": first.ttft_mean_s, p: first.ttft_percentile_s},
        "tpot_s": {"mean": then.tpot_mean_s, p: then.tpot_percentile_s},
        "e2e_s": {"mean": e2e},
        "tok_s_per_user": {"mean": 1 / then.tpot_mean_s},
        "total_tok_s_per_gpu": (tokens_in + tokens_out) / deployment.gpus,
        "output_tok_s_per_gpu": tokens_out / deployment.gpus,
        "sequences_per_instance": then.sequences,
        "utilization": {"prefill": first.utilisation, "decode": then.utilisation},
    }
    known = tuple(cost for cost in costs if cost is not None)
    sure = certainty(deployment, model.name, slo, state, state["utilization"])
    return Design(
        deployment=deployment,
        steady_state=state,
        simulated=None,
        cost=cost_of(known, tokens_in, tokens_out, traffic.rate) if len(known) == len(costs) else None,
        meets_slo=not sure.misses(scenario.search.confidence),
        assumptions=assumptions(engines[0].model, [e.hardware for e in engines]),
        certainty=sure,
    )


def assumptions(model: ModelSpec, hardware: Sequence[HardwareProfile]) -> tuple[str, ...]:
    """What is assumed about the model and the accelerators, each sentence once."""
    return tuple(dict.fromkeys((*model.assumptions, *(text for h in hardware for text in h.assumptions))))

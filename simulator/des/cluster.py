"""From a scenario to a finished simulation: prices every instance by the op model and plays the requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hw_profiles.catalog import CatalogError, load
from hw_profiles.profile import HardwareProfile
from simulator.des.energy import PowerDraw
from simulator.des.faults import nodes_of
from simulator.des.kv_cache import KvSpace
from simulator.des.metrics import Price, SimulationResult, warmup_count
from simulator.des.prefix_cache import BLOCK_TOKENS, Loss, StatePolicy, Tier
from simulator.des.recorder import Recorder
from simulator.des.run import Cluster, Progress
from simulator.des.scenario import Deployment, Pool, Power, PrefixCacheKeys, Scenario, ScenarioError, Slo, Startup
from simulator.des.spec import ClusterSpec, InstanceSpec, PoolSpec
from simulator.des.workload import Requests, make_streams
from simulator.model.architecture import ModelSpec
from simulator.model.kv import transfer_bytes
from simulator.model.latency import StepLatency
from simulator.model.memory import plan_memory
from simulator.model.presets import load_model


def simulate(
    scenario: Scenario,
    *,
    seed: int | None = None,
    progress: Progress | None = None,
    recorder: Recorder | None = None,
) -> SimulationResult:
    """Play the scenario's workload on its deployment.

    seed: overrides the scenario's; the same seed gives the same result bit for bit.
    progress: called with (requests ended, requests in all) about a hundred times.
    recorder: is told of every step.
    Raises ScenarioError, or another ValueError of one sentence, for what cannot be simulated.
    """
    deployment = scenario.deployment
    if deployment is None:
        raise ScenarioError(
            f"scenario '{scenario.name}' has no [deployment] to simulate; "
            "add pools to it, or use `plan` to search for them"
        )
    model = load_model(scenario.model)
    profiles = {pool.gpu + "@" + pool.stack: load(pool.gpu, pool.stack) for pool in deployment.pools}
    seeds = np.random.SeedSequence(scenario.seed if seed is None else seed)
    workload_seed, router_seed = seeds.spawn(2)
    requests = make_streams(scenario.traffic(), workload_seed)
    rng = np.random.default_rng(router_seed)
    return play(scenario, deployment, model, profiles, requests, rng, progress, recorder)


def play(
    scenario: Scenario,
    deployment: Deployment,
    model: ModelSpec,
    profiles: dict[str, HardwareProfile],
    requests: Requests | Sequence[Requests],
    rng: np.random.Generator,
    progress: Progress | None = None,
    recorder: Recorder | None = None,
) -> SimulationResult:
    """Run prepared requests of one or several tenants on a deployment; `profiles` are keyed "gpu@stack"."""
    streams = (requests,) if isinstance(requests, Requests) else tuple(requests)
    if deployment.prefix_cache is not None and all(stream.blocks is None for stream in streams):
        raise ScenarioError(
            f"[deployment.prefix_cache] of '{scenario.name}' has nothing to match: the workload names no prompt "
            "blocks; replay a Mooncake trace with hash_ids, send sessions, or give an open loop a shared_prefix"
        )
    if deployment.router == "session_affinity" and all(stream.sessions is None for stream in streams):
        raise ScenarioError(
            f"router=session_affinity of '{scenario.name}' has no sessions to keep together; "
            "send a workload of kind 'sessions', or choose another router"
        )
    named = {
        name: pool
        for name, pool in (
            ("prefill", deployment.prefill),
            ("decode", deployment.decode),
            ("colocated", deployment.colocated),
        )
        if pool is not None
    }
    if deployment.transfer.network == "scale_up":
        _check_domain(deployment, profiles)
    pools: dict[str, PoolSpec] = {}
    prices: dict[str, Price] = {}
    assumptions: list[str] = list(model.assumptions)
    for name, pool in named.items():
        profile = profiles[pool.gpu + "@" + pool.stack]
        cache = None if name == "decode" else deployment.prefix_cache
        bandwidth = deployment.transfer.bandwidth(profile)
        pools[name] = PoolSpec(
            name,
            replace(instance_spec(pool, model, profile, cache), nic_bandwidth=bandwidth),
            pool.most_instances,
            pool.instances,
            startup_s(deployment.startup, pool, model, profile),
            (deployment.faults.node_gpus if deployment.faults else None) or profile.scale_up_domain,
            pool.autoscale,
            PowerDraw.of(profile, deployment.power),
        )
        assumptions += profile.assumptions
        try:
            price = profile.usd_per_hour(scenario.price_convention).usd_per_hour
        except CatalogError as error:
            assumptions.append(f"no cost is given: {error}")
            continue
        prices[name] = Price(price.value, profile.all_in_w)
        if price.assumed:
            assumptions.append(f"{profile.display_name}: price: {price.note}")
    spec = ClusterSpec(
        entry=pools["colocated"] if "colocated" in pools else pools["prefill"],
        decode=pools.get("decode"),
        router=deployment.router,
        decode_router=deployment.decode_router,
        max_queue=deployment.max_queue,
        transfer=deployment.transfer,
        transfer_bytes=lambda tokens: transfer_bytes(model, tokens),
        max_positions=model.max_positions,
        layers=len(model.layers),
        faults=deployment.faults,
        slos=tuple(_slo(scenario, stream) for stream in streams),
    )
    power = deployment.power
    if power == Power():
        assumptions.append(
            f"energy: accelerators draw {power.idle:.0%} of their TDP idle, {power.prefill:.0%} in prefill and "
            f"{power.decode:.0%} in decode"
        )
    assumptions += _lifecycle(deployment, spec)
    warmup = warmup_count(scenario.warmup_fraction, sum(len(stream) for stream in streams if not stream.offline))
    run = Cluster(spec, streams, rng, warmup, progress, recorder).run()
    priced = prices if len(prices) == len(pools) else None
    return SimulationResult(spec, run, spec.slos, priced, tuple(dict.fromkeys(assumptions)))


def _slo(scenario: Scenario, stream: Requests) -> Slo:
    """The limits of a tenant: its own, or the scenario's; offline work has none but its own."""
    own = next((tenant.slo for tenant in scenario.tenants if tenant.name == stream.tenant), None)
    if own is not None:
        return own
    return Slo() if stream.offline and scenario.tenants else scenario.slo


def _check_domain(deployment: Deployment, profiles: dict[str, HardwareProfile]) -> None:
    """Refuse pools that do not share one scale-up domain."""
    names = [pool.gpu for pool in deployment.pools]
    domain = min(profile.scale_up_domain for profile in profiles.values())
    if len(set(names)) > 1 or deployment.gpus > domain:
        raise ScenarioError(
            f"transfer.network='scale_up' needs all pools in one scale-up domain, and {deployment.gpus} accelerators "
            f"({', '.join(dict.fromkeys(names))}) do not share one of {domain}; use network='scale_out', or simulate "
            "one domain with its part of the traffic"
        )


def cache_tiers(
    keys: PrefixCacheKeys, room: KvSpace, ranks: int, profile: HardwareProfile
) -> tuple[tuple[Tier, ...], StatePolicy, float]:
    """Prefix cache of one instance whose ranks have `room` each, and the bytes of a block on one accelerator.

    A block takes BLOCK_TOKENS tokens of KV and, as the policy keeps them, windows and state; ranks pool their room.
    """
    state_blocks = {"keep_all": 1.0, "checkpoint": BLOCK_TOKENS / keys.state_interval, "recompute": 0.0}[keys.state]
    block_bytes = BLOCK_TOKENS * room.bytes_per_token + state_blocks * room.bytes_per_sequence
    if not room.bytes_per_sequence:  # nothing beside entries: any block is a point to resume at
        policy = StatePolicy()
    elif keys.state == "checkpoint":
        policy = StatePolicy(interval=keys.state_interval)
    else:
        policy = StatePolicy(tail_tokens=keys.tail_tokens if keys.state == "recompute" else 0)
    tiers = [Tier(int(keys.share * room.capacity_bytes * ranks / block_bytes))]
    for size, bandwidth, lost_by in (
        (keys.host_bytes, profile.host_bandwidth, Loss.NODE),
        (keys.storage_bytes, keys.storage_bandwidth, Loss.RELEASE),
    ):
        if size:
            tiers.append(Tier(int(size * ranks / block_bytes), block_bytes / bandwidth, lost_by))
    return tuple(tiers), policy, block_bytes


def startup_s(keys: Startup, pool: Pool, model: ModelSpec, profile: HardwareProfile) -> float:
    """Seconds until a new instance serves: its start, then an accelerator's weights over the slower of two links."""
    if keys.load_s is not None:
        return keys.start_s + keys.load_s
    memory = plan_memory(model, profile, pool.parallelism, pool.max_tokens_per_step, pool.draft_tokens)
    return keys.start_s + memory.weight_bytes / min(keys.weight_bandwidth, profile.host_bandwidth)


def _lifecycle(deployment: Deployment, spec: ClusterSpec) -> list[str]:
    """What a run with faults or autoscaling rests on; refuses what the finished pools cannot do."""
    if deployment.faults is None and not any(pool.autoscale for pool in spec.pools):
        return []
    events = () if deployment.faults is None else deployment.faults.events
    said = []
    for pool in spec.pools:
        nodes = len(nodes_of(pool.count, pool.instance.gpus, pool.node_gpus))
        beyond = [event.index for event in events if (event.kind, event.pool) == ("node", pool.name)]
        if any(index >= nodes for index in beyond):
            raise ScenarioError(
                f"[deployment.faults] names node {max(beyond)} of the {pool.name} pool, which fills {nodes} nodes of "
                f"{pool.node_gpus} accelerators; count from 0, or set node_gpus"
            )
        if pool.autoscale is not None and pool.autoscale.metric == "attainment" and not any(spec.limits_of(pool)):
            raise ScenarioError(
                f"the {pool.name} pool scales by attainment, but [slo] has no limit that it answers for; "
                f"set {'tpot_s' if pool is spec.decode else 'ttft_s'}"
            )
        said.append(f"{pool.name}: an instance serves {pool.startup_s:.0f} s after it is added or repaired")
    return said


def instance_spec(
    pool: Pool, model: ModelSpec, profile: HardwareProfile, cache: PrefixCacheKeys | None = None
) -> InstanceSpec:
    """Step times, memory and limits of one instance of a pool."""
    cut = pool.parallelism
    cut.check(model)
    memory = plan_memory(model, profile, cut, pool.max_tokens_per_step, pool.draft_tokens, pool.redundant_experts)
    room = KvSpace(memory.kv_capacity_bytes, memory.kv_bytes_per_token, memory.kv_bytes_per_sequence)
    tiers, policy, block_bytes = cache_tiers(cache, room, cut.dp, profile) if cache else ((), StatePolicy(), 0.0)
    return InstanceSpec(
        times=StepLatency(model, profile, cut, pool.draft_tokens, pool.skew),
        kv=room,
        ranks=cut.dp,
        gpus=cut.gpus,
        max_tokens_per_step=pool.max_tokens_per_step,
        max_sequences=pool.sequence_limit,
        draft_tokens=pool.draft_tokens,
        acceptance_length=pool.acceptance_length,
        acceptance_spread=pool.acceptance_spread,
        batching=pool.batching,
        long_prefill_token_threshold=pool.long_prefill_token_threshold,
        max_long_partial_prefills=pool.max_long_partial_prefills,
        cache_tiers=tiers,
        cache_block_bytes=block_bytes,
        cache_policy=policy,
    )

"""What a deployment is made of: every group of instances, priced by the op model."""

from __future__ import annotations

from dataclasses import replace

from hw_profiles.profile import HardwareProfile
from simulator.des.cluster.faults import nodes_of
from simulator.des.cluster.power import PowerDraw
from simulator.des.cluster.predicted_speed import predicted_speed
from simulator.des.cluster.spec import ClusterSpec, GroupSpec, InstanceSpec
from simulator.des.instance.kv_room import KvRoom
from simulator.des.instance.prefix_cache import Loss, StatePolicy, Tier
from simulator.model.architecture import ModelSpec
from simulator.model.engine import Form, form_of, in_service
from simulator.model.kv import transfer_bytes
from simulator.model.latency import StepLatency
from simulator.model.memory import plan_memory, weight_bytes_per_gpu
from simulator.model.sharding import Cut
from simulator.scenario import Deployment, Pool, PrefixCacheKeys, ScenarioError, Slo, Startup, profile_key
from simulator.traces.columns import BLOCK_TOKENS

Profiles = dict[str, HardwareProfile]  # by `profile_key`


def cluster_spec(
    deployment: Deployment,
    model: ModelSpec,
    profiles: Profiles,
    slos: tuple[Slo, ...],
    lengths: tuple[float, float],
    block_tokens: int = BLOCK_TOKENS,
) -> ClusterSpec:
    """lengths: mean prompt and output of the traffic, by which the speeds of unlike groups are compared. [tokens]
    block_tokens: of the blocks that its prompts are named by.
    """
    if deployment.transfer.network == "scale_up":
        _check_domain(deployment, profiles)
    pools = {
        name: _groups(name, groups, deployment, model, profiles, lengths, block_tokens)
        for name, groups in deployment.pools.items()
    }
    spec = ClusterSpec(
        entry=pools["colocated"] if "colocated" in pools else pools["prefill"],
        decode=pools.get("decode", ()),
        router=deployment.router,
        decode_router=deployment.decode_router,
        first_token=deployment.first_token_from,
        max_queue=deployment.max_queue,
        transfer=deployment.transfer,
        transfer_bytes=lambda tokens: transfer_bytes(model, tokens),
        max_positions=model.max_positions,
        layers=len(model.layers),
        faults=deployment.faults,
        slos=slos,
    )
    _check_lifecycle(deployment, spec)
    return spec


def _groups(
    name: str,
    pools: tuple[Pool, ...],
    deployment: Deployment,
    model: ModelSpec,
    profiles: Profiles,
    lengths: tuple[float, float],
    block_tokens: int,
) -> tuple[GroupSpec, ...]:
    """The groups of one pool."""
    cache = None if name == "decode" else deployment.prefix_cache
    form = form_of(name != "colocated")
    groups = []
    for pool in pools:
        profile = profiles[profile_key(pool)]
        bandwidth = deployment.transfer.bandwidth(profile)
        groups.append(
            GroupSpec(
                name,
                replace(instance_spec(pool, model, profile, form, cache, block_tokens), nic_bandwidth=bandwidth),
                pool.most_instances,
                pool.instances,
                startup_s(deployment.startup, pool, model, profile),
                (deployment.faults.node_gpus if deployment.faults else None) or profile.scale_up_domain,
                pool.autoscale,
                PowerDraw.of(profile, deployment.power),
                (pool.name or pool.gpu) if len(pools) > 1 else "",
            )
        )
    if len(groups) == 1:
        return tuple(groups)
    return tuple(
        replace(group, instance=replace(group.instance, speed=predicted_speed(group.instance, name, *lengths)))
        for group in groups
    )


def _check_domain(deployment: Deployment, profiles: Profiles) -> None:
    """Refuse pools that do not share one scale-up domain."""
    names = [group.gpu for group in deployment.groups]
    domain = min(profile.scale_up_domain for profile in profiles.values())
    if len(set(names)) > 1 or deployment.gpus > domain:
        raise ScenarioError(
            f"transfer.network='scale_up' needs all pools in one scale-up domain, and {deployment.gpus} accelerators "
            f"({', '.join(dict.fromkeys(names))}) do not share one of {domain}; use network='scale_out', or simulate "
            "one domain with its part of the traffic"
        )


def cache_tiers(
    keys: PrefixCacheKeys, room: KvRoom, ranks: int, profile: HardwareProfile, block_tokens: int = BLOCK_TOKENS
) -> tuple[tuple[Tier, ...], StatePolicy, float]:
    """Prefix cache of one instance whose ranks have `room` each, and the bytes of a block on one accelerator.

    A block takes `block_tokens` of KV and, as the policy keeps them, windows and state; ranks pool their room.
    """
    state_blocks = {"keep_all": 1.0, "checkpoint": block_tokens / keys.state_interval, "recompute": 0.0}[keys.state]
    block_bytes = block_tokens * room.bytes_per_token + state_blocks * room.bytes_per_sequence
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
    cut = Cut.of(pool.parallelism, profile)
    weights = weight_bytes_per_gpu(model, cut, pool.draft_tokens > 0)
    return keys.start_s + weights / min(keys.weight_bandwidth, profile.host_bandwidth)


def _check_lifecycle(deployment: Deployment, spec: ClusterSpec) -> None:
    """Refuse faults and autoscaling that the finished groups cannot have."""
    events = () if deployment.faults is None else deployment.faults.events
    for pool in spec.pools:
        name = pool[0].pool
        nodes = sum(len(nodes_of(group.count, group.instance.gpus, group.node_gpus)) for group in pool)
        beyond = [event.index for event in events if (event.kind, event.pool) == ("node", name)]
        if any(index >= nodes for index in beyond):
            sizes = " and ".join(dict.fromkeys(str(group.node_gpus) for group in pool))
            raise ScenarioError(
                f"[deployment.faults] names node {max(beyond)} of the {name} pool, which fills {nodes} nodes of "
                f"{sizes} accelerators; count from 0, or set node_gpus"
            )
    for group in spec.groups:
        if group.autoscale is not None and group.autoscale.metric == "attainment" and not any(spec.limits_of(group)):
            raise ScenarioError(
                f"the {group.name} pool scales by attainment, but neither [slo] nor any tenant's own has a limit that "
                f"it answers for; set {'ttft_s' if spec.is_entry(group) else 'tpot_s'}"
            )


def instance_spec(
    pool: Pool,
    model: ModelSpec,
    profile: HardwareProfile,
    form: Form,
    cache: PrefixCacheKeys | None = None,
    block_tokens: int = BLOCK_TOKENS,
) -> InstanceSpec:
    """Step times, memory and limits of one instance of a pool."""
    cut = pool.parallelism
    cut.check(model)
    profile = in_service(profile, model, form)
    memory = plan_memory(
        model,
        profile,
        cut,
        pool.max_tokens_per_step,
        pool.draft_tokens,
        pool.redundant_experts,
        max_sequences=pool.sequences_per_rank,
    )
    room = KvRoom(memory.kv_capacity_bytes, memory.kv_bytes_per_token, memory.kv_bytes_per_sequence)
    tiers, policy, block_bytes = (
        cache_tiers(cache, room, cut.dp, profile, block_tokens) if cache else ((), StatePolicy(), 0.0)
    )
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
        cache_block_tokens=block_tokens,
        cache_policy=policy,
    )

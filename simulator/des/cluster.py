"""From a scenario to a finished simulation: prices every instance by the op model and plays the requests."""

from __future__ import annotations

import numpy as np

from hw_profiles.catalog import CatalogError, load
from hw_profiles.profile import HardwareProfile
from simulator.des.instance import InstanceSpec
from simulator.des.kv_cache import KvSpace
from simulator.des.metrics import Price, SimulationResult, warmup_count
from simulator.des.run import Cluster, ClusterSpec, PoolSpec, Progress
from simulator.des.scenario import Deployment, Pool, Scenario, ScenarioError
from simulator.des.workload import Requests, make_requests
from simulator.model.architecture import ModelSpec
from simulator.model.kv import transfer_bytes
from simulator.model.latency import StepLatency
from simulator.model.memory import plan_memory
from simulator.model.presets import load_model


def simulate(scenario: Scenario, *, seed: int | None = None, progress: Progress | None = None) -> SimulationResult:
    """Play the scenario's workload on its deployment.

    seed: overrides the scenario's; the same seed gives the same result bit for bit.
    progress: called with (requests ended, requests in all) about a hundred times.
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
    requests = make_requests(scenario.workload, workload_seed)
    return play(scenario, deployment, model, profiles, requests, np.random.default_rng(router_seed), progress)


def play(
    scenario: Scenario,
    deployment: Deployment,
    model: ModelSpec,
    profiles: dict[str, HardwareProfile],
    requests: Requests,
    rng: np.random.Generator,
    progress: Progress | None = None,
) -> SimulationResult:
    """Run prepared requests on a deployment; `profiles` are keyed "gpu@stack"."""
    named = {
        name: pool
        for name, pool in (
            ("prefill", deployment.prefill),
            ("decode", deployment.decode),
            ("colocated", deployment.colocated),
        )
        if pool is not None
    }
    pools: dict[str, PoolSpec] = {}
    prices: dict[str, Price] = {}
    assumptions: list[str] = list(model.assumptions)
    for name, pool in named.items():
        profile = profiles[pool.gpu + "@" + pool.stack]
        pools[name] = PoolSpec(name, instance_spec(pool, model, profile), pool.instances)
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
        transfer=deployment.transfer,
        transfer_bytes=lambda tokens: transfer_bytes(model, tokens),
        max_positions=model.max_positions,
    )
    warmup = warmup_count(scenario.warmup_fraction, len(requests))
    run = Cluster(spec, requests, rng, warmup, progress).run()
    priced = prices if len(prices) == len(pools) else None
    return SimulationResult(spec, run, scenario.slo, priced, tuple(dict.fromkeys(assumptions)))


def instance_spec(pool: Pool, model: ModelSpec, profile: HardwareProfile) -> InstanceSpec:
    """Step times, memory and limits of one instance of a pool."""
    cut = pool.parallelism
    cut.check(model)
    memory = plan_memory(model, profile, cut, pool.max_tokens_per_step, pool.draft_tokens)
    return InstanceSpec(
        times=StepLatency(model, profile, cut, pool.draft_tokens),
        kv=KvSpace(memory.kv_capacity_bytes, memory.kv_bytes_per_token, memory.kv_bytes_per_sequence),
        ranks=cut.dp,
        gpus=cut.gpus,
        max_tokens_per_step=pool.max_tokens_per_step,
        max_sequences=pool.max_sequences,
        draft_tokens=pool.draft_tokens,
        acceptance_length=pool.acceptance_length,
        nic_bandwidth=profile.scale_out_bandwidth,
        batching=pool.batching,
    )

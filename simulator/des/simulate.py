"""From a scenario to a finished simulation: prices every instance by the op model and plays the requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hw_profiles.catalog import CatalogError
from simulator.des.cluster.build import Profiles, cluster_spec
from simulator.des.cluster.cluster import Cluster, RequestProgress, Run
from simulator.des.cluster.recorder import Recorder
from simulator.des.cluster.spec import ClusterSpec
from simulator.des.primitives.clock import Environment
from simulator.des.results.measured import GroupPrice, warmup_count
from simulator.des.results.result import SimulationResult
from simulator.des.workload.requests import Requests, make_streams
from simulator.model.architecture import ModelSpec
from simulator.scenario import (
    Deployment,
    PowerKeys,
    Scenario,
    ScenarioError,
    Slo,
    hardware_of,
    model_of,
    profile_key,
)


@dataclass(frozen=True)
class ReadyCluster:
    """A cluster that is ready to run, and what makes a result of its run."""

    cluster: Cluster
    result: Callable[[Run], SimulationResult]


def simulate(
    scenario: Scenario,
    *,
    seed: int | None = None,
    progress: RequestProgress | None = None,
    recorder: Recorder | None = None,
) -> SimulationResult:
    """Play the scenario's workload on its deployment.

    seed: overrides the scenario's; the same seed gives the same result bit for bit.
    progress: called with (requests ended, requests in all) about a hundred times.
    recorder: is told of every step.
    Raises ScenarioError, or another ValueError of one sentence, for what cannot be simulated.
    """
    ready = prepare(scenario, scenario.seed if seed is None else seed, progress, recorder)
    return ready.result(ready.cluster.run())


def prepare(
    scenario: Scenario,
    seed: int,
    progress: RequestProgress | None = None,
    recorder: Recorder | None = None,
    env: Environment | None = None,
) -> ReadyCluster:
    """As `simulate`, up to the run; env: a clock that other clusters share."""
    deployment = scenario.deployment
    if deployment is None:
        raise ScenarioError(
            f"scenario '{scenario.name}' has no [deployment] to simulate; "
            "add pools to it, or use `plan` to search for them"
        )
    model = model_of(scenario.model, deployment)
    profiles = {profile_key(group): hardware_of(group, scenario.costs) for group in deployment.groups}
    workload_seed, router_seed = np.random.SeedSequence(seed).spawn(2)
    requests = make_streams(scenario.traffic(), workload_seed)
    rng = np.random.default_rng(router_seed)
    return _prepare(scenario, deployment, model, profiles, tuple(requests), rng, progress, recorder, env)


def play(
    scenario: Scenario,
    deployment: Deployment,
    model: ModelSpec,
    profiles: Profiles,
    requests: Requests | Sequence[Requests],
    rng: np.random.Generator,
    progress: RequestProgress | None = None,
    recorder: Recorder | None = None,
) -> SimulationResult:
    """Run prepared requests of one or several tenants on a deployment; `profiles` by `profile_key`."""
    streams = (requests,) if isinstance(requests, Requests) else tuple(requests)
    ready = _prepare(scenario, deployment, model, profiles, streams, rng, progress, recorder)
    return ready.result(ready.cluster.run())


def _prepare(
    scenario: Scenario,
    deployment: Deployment,
    model: ModelSpec,
    profiles: Profiles,
    streams: tuple[Requests, ...],
    rng: np.random.Generator,
    progress: RequestProgress | None = None,
    recorder: Recorder | None = None,
    env: Environment | None = None,
) -> ReadyCluster:
    _check_traffic(scenario.name, deployment, streams)
    slos = tuple(_slo(scenario, stream) for stream in streams)
    spec = cluster_spec(deployment, model, profiles, slos, _mean_lengths(streams), streams[0].block_tokens)
    warmup = warmup_count(scenario.warmup_fraction, sum(len(stream) for stream in streams if not stream.offline))
    prices, assumptions = _prices(scenario, deployment, profiles, spec)
    unread = _not_of_pools(scenario, deployment)
    assumed = (*model.assumptions, *assumptions, *_said_of(streams), *_assumptions(deployment, spec), *unread)
    said = tuple(dict.fromkeys(assumed))
    cluster = Cluster(spec, streams, rng, warmup, progress, recorder, env)
    return ReadyCluster(cluster, lambda run: SimulationResult(spec, run, spec.slos, prices, said))


def _check_traffic(name: str, deployment: Deployment, streams: Sequence[Requests]) -> None:
    """Refuse a deployment that looks at what its traffic does not have."""
    if deployment.prefix_cache is not None and all(stream.blocks is None for stream in streams):
        raise ScenarioError(
            f"[deployment.prefix_cache] of '{name}' has nothing to match: the workload names no prompt "
            "blocks; replay a trace with hash_ids, send sessions, or give an open loop a shared_prefix"
        )
    if deployment.router == "session_affinity" and all(stream.sessions is None for stream in streams):
        raise ScenarioError(
            f"router=session_affinity of '{name}' has no sessions to keep together; "
            "send a workload of kind 'sessions', or choose another router"
        )


def _slo(scenario: Scenario, stream: Requests) -> Slo:
    """The limits of a tenant: its own, or the scenario's; offline work has none but its own."""
    own = next((tenant.slo for tenant in scenario.tenants if tenant.name == stream.tenant), None)
    if own is not None:
        return own
    return Slo() if stream.offline and scenario.tenants else scenario.slo


def _mean_lengths(streams: Sequence[Requests]) -> tuple[float, float]:
    """Of prompts and outputs. [tokens]"""
    prompts, outputs = (
        np.concatenate([getattr(stream, name) for stream in streams]) for name in ("prompt_tokens", "output_tokens")
    )
    return float(prompts.mean()), float(outputs.mean())


def _prices(
    scenario: Scenario, deployment: Deployment, profiles: Profiles, spec: ClusterSpec
) -> tuple[dict[str, GroupPrice] | None, list[str]]:
    """What an accelerator of each group costs, None where one has no price; and what is assumed of accelerators."""
    prices: dict[str, GroupPrice] = {}
    assumptions: list[str] = []
    for keys, group in zip(deployment.groups, spec.groups, strict=True):
        profile = profiles[profile_key(keys)]
        assumptions += profile.assumptions
        try:
            price = profile.usd_per_hour(scenario.price_convention).usd_per_hour
        except CatalogError as error:
            assumptions.append(f"no cost is given: {error}")
            continue
        prices[group.name] = GroupPrice(price.value, profile.all_in_w, scenario.costs)
        if price.assumed:
            assumptions.append(f"{profile.display_name}: price: {price.note}")
    assumptions += scenario.costs.said
    return (prices if len(prices) == len(spec.groups) else None), assumptions


def _not_of_pools(scenario: Scenario, deployment: Deployment) -> list[str]:
    """Settings of [search] that the pools do not have."""
    lone = [name for name in scenario.search.knobs if any(name not in group.knobs for group in deployment.groups)]
    if not lone:
        return []
    return [f"search.{', search.'.join(lone)}: for `plan` alone; pools that are simulated have settings of their own"]


def _said_of(streams: Sequence[Requests]) -> tuple[str, ...]:
    """What was told of traces, and left out of them."""
    return tuple(note for stream in streams for note in stream.notes)


def _assumptions(deployment: Deployment, spec: ClusterSpec) -> list[str]:
    """What energy, and a run with faults or autoscaling, rest on."""
    said = []
    power = deployment.power
    if power == PowerKeys():
        said.append(
            f"energy: accelerators draw {power.idle:.0%} of their TDP idle and {power.prefill:.0%} in prefill; in "
            "decode by the rows of a step, as fitted to measured joules per token"
        )
    if deployment.faults is not None or any(group.autoscale for group in spec.groups):
        said += [
            f"{group.name}: an instance serves {group.startup_s:.0f} s after it is added or repaired"
            for group in spec.groups
        ]
    return said

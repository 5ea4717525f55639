"""Several models on one cluster by static partition: on one clock, each with accelerators to itself.

What they may share is the spine between prefill and decode; without one, each model's run is that of its part alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

from hw_profiles.catalog import CatalogError, load
from hw_profiles.profile import HardwareProfile
from simulator.des.cluster.cluster import RequestProgress, play_together
from simulator.des.cluster.power import PowerDraw
from simulator.des.cluster.recorder import Recorder
from simulator.des.cluster.spines import make_spines
from simulator.des.primitives.clock import Environment
from simulator.des.replicate import seeds_of
from simulator.des.results.cost import SECONDS_PER_HOUR, usd_per_mtok
from simulator.des.results.reports import Rates, Summary
from simulator.des.results.result import SimulationResult
from simulator.des.simulate import prepare
from simulator.scenario import Deployment, Knobs, PowerKeys, Scenario, ScenarioError, SharedCluster, with_knobs


@dataclass(frozen=True)
class ModelResult:
    """One model: its scenario, as it could run by itself, and what came of it beside the others."""

    scenario: Scenario
    result: SimulationResult

    @cached_property
    def accelerators(self) -> dict[str, str]:
        """Catalogue name of the accelerator of each group of instances."""
        assert self.scenario.deployment is not None  # it was simulated
        keys = self.scenario.deployment.groups
        groups = self.result.spec.groups
        return {group.name: load(key.gpu, key.stack).name for key, group in zip(keys, groups, strict=True)}

    def gpu_hours(self, accelerator: str) -> float:
        """Paid for up to the end of this model's run."""
        lifecycle = self.result.lifecycle()
        return sum(lifecycle[group].gpu_hours for group, own in self.accelerators.items() if own == accelerator)

    def mean_gpus(self, accelerator: str) -> float:
        """Paid for, on average over the measured span."""
        usage = self.result.utilization()
        return sum(usage[group].gpus for group, own in self.accelerators.items() if own == accelerator)


def simulate_shared(
    asked: SharedCluster,
    *,
    seed: int | None = None,
    progress: RequestProgress | None = None,
    recorders: Mapping[str, Recorder] | None = None,
) -> SharedResult:
    """Play all models of a cluster at once. recorders: by a model's name, told of its steps; the rest as `simulate`.

    Models draw from independent seeds; the first has the scenario's own.
    """
    sizes, parts = _partition(asked)
    seeds = seeds_of(asked.seed if seed is None else seed, len(asked.models))
    scenarios = [asked.scenario(served, own) for served, own in zip(asked.models, seeds, strict=True)]
    env = Environment()
    ended = _Sum(progress)
    recorders = recorders or {}
    ready = [prepare(each, each.seed, ended.part(), recorders.get(each.name), env) for each in scenarios]
    clusters = [each.cluster for each in ready]
    hardware = asked.cluster
    if hardware.oversubscription is not None:
        rates = {instance: rate for cluster in clusters for instance, rate in cluster.serving.link_rates.items()}
        spines = make_spines(rates, hardware.oversubscription, hardware.rails)
        for cluster in clusters:
            cluster.serving.share_spines(spines)
    runs = play_together(clusters)
    results = [each.result(run) for each, run in zip(ready, runs, strict=True)]
    done = {s.name: ModelResult(s, result) for s, result in zip(scenarios, results, strict=True)}
    return SharedResult(asked, sizes, parts, done)


def _partition(asked: SharedCluster) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
    """Accelerators by catalogue name: of the cluster, and of each model at most. Refuses what is more than there is."""
    sizes: dict[str, int] = {}
    for name, count in asked.cluster.gpus.items():
        accelerator = load(name).name
        if accelerator in sizes:
            raise ScenarioError(f"cluster.gpus names {accelerator} twice, once as '{name}'; add the numbers up")
        sizes[accelerator] = count
    parts = {served.name: _most_gpus(served.deployment) for served in asked.models if served.deployment is not None}
    for accelerator in dict.fromkeys(name for part in parts.values() for name in part):
        wanted = {model: part[accelerator] for model, part in parts.items() if accelerator in part}
        total, size = sum(wanted.values()), sizes.get(accelerator, 0)
        if total > size:
            each = ", ".join(f"{model} {count}" for model, count in wanted.items())
            raise ScenarioError(
                f"cluster.gpus has {size} {accelerator} and the models ask for {total} at most ({each}); "
                "give it more of them, or a model fewer instances"
            )
    return sizes, parts


def _most_gpus(deployment: Deployment) -> dict[str, int]:
    """Accelerators that a deployment may come to have, by catalogue name."""
    most: dict[str, int] = {}
    for group in deployment.groups:
        name = load(group.gpu, group.stack).name
        most[name] = most.get(name, 0) + group.most_instances * group.gpus_per_instance
    return most


class _Sum:
    """Requests ended over all models, for one report of progress."""

    def __init__(self, report: RequestProgress | None) -> None:
        self._report = report
        self._seen: list[tuple[int, int]] = []

    def part(self) -> RequestProgress | None:
        """What one model tells its progress."""
        if self._report is None:
            return None
        report, place = self._report, len(self._seen)
        self._seen.append((0, 0))

        def tell(done: int, total: int) -> None:
            self._seen[place] = (done, total)
            report(*(sum(column) for column in zip(*self._seen, strict=True)))

        return tell


@dataclass(frozen=True)
class ClusterCost:
    """USD of every accelerator of the cluster, in a model's part or free."""

    usd_per_hour: float
    usd_per_mtok_blended: float | None
    usd_per_request: float | None


@dataclass(frozen=True)
class ClusterEnergy:
    """Energy of the models, and of the accelerators that no model has at the time, which idle. kWh of the whole run;
    mean power and J per token of the models' measured spans."""

    kwh: float
    power_kw: float
    joule_per_token: float | None
    joule_per_request: float | None


@dataclass(frozen=True)
class AcceleratorShares:
    """Of one kind of accelerator, how many each model has at most."""

    total: int
    models: dict[str, int]
    free: int


@dataclass(frozen=True)
class ClusterSummary:
    """The whole cluster. gpus: by accelerator; seeds: by model."""

    name: str
    gpus: dict[str, AcceleratorShares]
    seeds: dict[str, int]
    gpus_total: int
    duration_s: float
    gpu_hours: float
    throughput: Rates
    cost: ClusterCost | None
    energy: ClusterEnergy | None


@dataclass(frozen=True)
class SharedSummary:
    """The cluster, and each model as its own simulation would have it."""

    cluster: ClusterSummary
    models: dict[str, Summary]

    def to_json(self) -> dict[str, Any]:
        return {
            "cluster": asdict(self.cluster),
            "models": {name: summary.to_json() for name, summary in self.models.items()},
        }


@dataclass(frozen=True)
class SharedResult:
    """Results by model, and what they add up to.

    sizes: accelerators of the cluster by catalogue name. partition: of each model, at most.
    """

    asked: SharedCluster
    sizes: dict[str, int]
    partition: dict[str, dict[str, int]]
    models: dict[str, ModelResult]

    @property
    def duration_s(self) -> float:
        """Until the last model's last request has ended."""
        return max(part.result.run.end.time_s for part in self.models.values())

    def throughput(self) -> Rates:
        """Sums of the rates of the models, each over its own window."""
        own = [part.result.throughput() for part in self.models.values()]
        return Rates(*(sum(getattr(rates, field.name) for rates in own) for field in fields(Rates)))

    @cached_property
    def _profiles(self) -> dict[str, HardwareProfile]:
        return {name: with_knobs(load(name), Knobs(), self.asked.costs) for name in self.sizes}

    def cost(self) -> ClusterCost | None:
        """None where an accelerator has no price."""
        try:
            prices = {
                name: profile.usd_per_hour(self.asked.price_convention).usd_per_hour.value
                for name, profile in self._profiles.items()
            }
        except CatalogError:
            return None
        usd = sum(prices[name] * count for name, count in self.sizes.items())
        drawn, costs = self.energy(), self.asked.costs
        usd += costs.electricity_usd_per_hour(drawn.power_kw * 1e3) if drawn is not None else 0.0
        paid = usd / costs.utilisation
        rates = self.throughput()
        tokens, requests = rates.input_tok_s + rates.output_tok_s, rates.requests_per_s
        return ClusterCost(
            usd,
            usd_per_mtok(paid, tokens) if tokens else None,
            paid / SECONDS_PER_HOUR / requests if requests else None,
        )

    def energy(self) -> ClusterEnergy | None:
        """None where a TDP is not known."""
        draws = {name: PowerDraw.of(profile, PowerKeys()) for name, profile in self._profiles.items()}
        own = [part.result.energy() for part in self.models.values()]
        kwh, power_kw = 0.0, 0.0
        for seen in own:
            if seen is None:
                return None
            kwh += seen.kwh
            power_kw += seen.power_kw
        hours = self.duration_s / SECONDS_PER_HOUR
        for name, draw in draws.items():
            if draw is None:
                return None
            parts = self.models.values()
            kwh += draw.idle_w / 1e3 * (self.sizes[name] * hours - sum(part.gpu_hours(name) for part in parts))
            power_kw += draw.idle_w / 1e3 * (self.sizes[name] - sum(part.mean_gpus(name) for part in parts))
        rates = self.throughput()
        tokens = rates.input_tok_s + rates.output_tok_s
        return ClusterEnergy(
            kwh,
            power_kw,
            power_kw * 1e3 / tokens if tokens else None,
            power_kw * 1e3 / rates.requests_per_s if rates.requests_per_s else None,
        )

    def _shares(self) -> dict[str, AcceleratorShares]:
        return {
            name: AcceleratorShares(
                size,
                {model: part[name] for model, part in self.partition.items() if name in part},
                size - sum(part.get(name, 0) for part in self.partition.values()),
            )
            for name, size in self.sizes.items()
        }

    def summary(self) -> SharedSummary:
        total = sum(self.sizes.values())
        cluster = ClusterSummary(
            self.asked.name,
            self._shares(),
            {name: part.scenario.seed for name, part in self.models.items()},
            total,
            self.duration_s,
            total * self.duration_s / SECONDS_PER_HOUR,
            self.throughput(),
            self.cost(),
            self.energy(),
        )
        return SharedSummary(cluster, {name: part.result.summary() for name, part in self.models.items()})

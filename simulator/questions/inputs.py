"""What a question's answer may depend on: inputs, the range in which each lies, and how one changes a trial."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from hw_profiles.catalog import load
from hw_profiles.efficiency import Situation
from hw_profiles.profile import HardwareProfile
from simulator.des.cluster.build import profile_key
from simulator.questions.trial import deployed
from simulator.scenario import Deployment, Lengths, OpenLoop, Pool, Scenario, ScenarioError


@dataclass(frozen=True)
class Input:
    """An input is multiplied by a factor between `low` and `high`, log-uniform; 1 is the scenario as it is."""

    name: str
    low: float
    high: float

    def at(self, share: float) -> float:
        """Factor at a share of the range in logarithms.

        >>> Input("rate", 0.5, 2.0).at(0.5)
        1.0
        """
        return math.exp(math.log(self.low) + share * math.log(self.high / self.low))


# Ranges that stand where none is given; all assumed. Prices: the four conventions of an accelerator lie further apart;
# rate and lengths: of next month's traffic; bandwidths: of a part to the next and of a network to the next; rates and
# host times of a stack: as far as published points lie from what the fit says (docs/validation.md).
USUAL = {
    "price": (0.7, 1.4),
    "rate": (0.7, 1.4),
    "prompt": (0.8, 1.25),
    "output": (0.8, 1.25),
    "shared_prefix": (0.5, 1.0),
    "acceptance": (0.8, 1.1),
    "expert_skew": (0.8, 1.25),
    "memory_bandwidth": (0.95, 1.05),
    "scale_up_bandwidth": (0.8, 1.1),
    "scale_out_bandwidth": (0.7, 1.1),
    "fit.matrix": (0.8, 1.25),
    "fit.memory": (0.8, 1.25),
    "fit.network": (0.7, 1.4),
    "fit.attention": (0.8, 1.25),
    "fit.experts": (0.8, 1.25),
    "fit.kernel_overhead_s": (0.6, 1.6),
    "fit.sequence_overhead_s": (0.6, 1.6),
    "fit.exit_latency_s": (0.6, 1.6),
    "fit.request_overhead_s": (0.5, 2.0),
}
BANDWIDTHS = ("memory_bandwidth", "scale_up_bandwidth", "scale_out_bandwidth")
FIT = "fit."


def inputs_of(scenario: Scenario, given: Mapping[str, tuple[float, float]] | None = None) -> tuple[Input, ...]:
    """The inputs that the scenario has, in the usual ranges or in those given. Raises ScenarioError."""
    deployment, workload = deployed(scenario), scenario.one_workload()
    if not isinstance(workload, OpenLoop):
        raise ScenarioError(f"workload.kind='{workload.kind}' has no rate to vary; use 'open_loop'")
    absent = set()
    if workload.shared_prefix is None or deployment.prefix_cache is None:
        absent.add("shared_prefix")
    if not any(group.draft_tokens for group in deployment.groups):
        absent.add("acceptance")
    if all(group.expert_skew is None or group.expert_skew.kind == "uniform" for group in deployment.groups):
        absent.add("expert_skew")
    for name, (low, high) in (given or {}).items():
        if name not in USUAL:
            raise ScenarioError(f"--vary {name}: there is no such input; use one of {', '.join(USUAL)}")
        if name in absent:
            raise ScenarioError(f"--vary {name}: the scenario has no such thing to vary; add it to the deployment")
        if not 0 < low < high < math.inf:
            raise ScenarioError(f"--vary {name}={low:g}:{high:g} is not a range of factors; write it as 0.8:1.25")
    ranges = USUAL | dict(given or {})
    return tuple(Input(name, *ranges[name]) for name in USUAL if name not in absent)


def changed(scenario: Scenario, factors: Mapping[str, float]) -> tuple[Scenario, dict[str, HardwareProfile]]:
    """The scenario and its accelerators with each input multiplied. Prices are left to who counts the money."""
    workload, deployment = scenario.one_workload(), deployed(scenario)
    assert isinstance(workload, OpenLoop)
    update = {
        "rate": workload.rate * factors.get("rate", 1.0),
        "prompt": scaled(workload.prompt, factors.get("prompt", 1.0)),
        "output": scaled(workload.output, factors.get("output", 1.0)),
    }
    if workload.shared_prefix is not None:
        tokens = max(1, round(workload.shared_prefix.tokens * factors.get("shared_prefix", 1.0)))
        update["shared_prefix"] = workload.shared_prefix.model_copy(update={"tokens": tokens})
    profiles = {profile_key(group): _profile(load(group.gpu, group.stack), factors) for group in deployment.groups}
    placed = _each_pool(deployment, lambda pool: _pool(pool, factors))
    return scenario.model_copy(update={"workload": workload.model_copy(update=update), "deployment": placed}), profiles


def scaled(lengths: Lengths, factor: float) -> Lengths:
    """A distribution of lengths stretched by a factor; all of it keeps at least one token."""

    def whole(value: int | None) -> int | None:
        return None if value is None else max(1, round(value * factor))

    return lengths.model_copy(
        update={
            **{name: whole(getattr(lengths, name)) for name in ("value", "low", "high", "maximum")},
            **{name: value * factor for name in ("mean", "median") if (value := getattr(lengths, name)) is not None},
        }
    )


def _profile(profile: HardwareProfile, factors: Mapping[str, float]) -> HardwareProfile:
    fit = {name.removeprefix(FIT): factor for name, factor in factors.items() if name.startswith(FIT)}
    links = {name: getattr(profile, name) * factors[name] for name in BANDWIDTHS if name in factors}
    situations = (*profile.efficiency.situations, *([Situation(when={}, factors=fit)] if fit else []))
    return replace(profile, efficiency=profile.efficiency.model_copy(update={"situations": situations}), **links)


def _pool(pool: Pool, factors: Mapping[str, float]) -> Pool:
    update: dict[str, object] = {}
    if pool.draft_tokens:
        length = 1 + (pool.acceptance_length - 1) * factors.get("acceptance", 1.0)
        update["acceptance_length"] = min(float(1 + pool.draft_tokens), length)
    skew, factor = pool.expert_skew, factors.get("expert_skew", 1.0)
    if skew is not None:  # a larger factor is more skew
        update["expert_skew"] = skew.model_copy(
            update={"alpha": 1 + (skew.alpha - 1) * factor, "concentration": max(0.05, skew.concentration / factor)}
        )
    return pool.model_copy(update=update)


def _each_pool(deployment: Deployment, change: Callable[[Pool], Pool]) -> Deployment:
    return deployment.model_copy(
        update={
            name: change(groups[0]) if len(groups) == 1 else tuple(map(change, groups))
            for name, groups in deployment.pools.items()
        }
    )

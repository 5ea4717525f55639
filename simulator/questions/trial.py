"""One run of a deployment under a load, as a task for a worker, and the figures that the questions look at."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hw_profiles.catalog import load
from hw_profiles.profile import HardwareProfile
from simulator.des.cluster.build import profile_key
from simulator.des.results.reports import Summary
from simulator.des.results.result import SimulationResult
from simulator.des.simulate import play
from simulator.des.workload.requests import make_streams
from simulator.model.presets import load_model
from simulator.questions.token_cost import TokenCost, cached_weight, token_cost
from simulator.scenario import ClosedLoop, Deployment, OpenLoop, Scenario, ScenarioError, Sessions, Trace, Workload

FEWEST_REQUESTS = 2_000  # of a run at an open loop's rate: the share inside limits is then sure to 0.7% [assumed]
MOST_REQUESTS = 100_000  # of a run [assumed: 3 to 6 CPU s]
LIFETIMES = 6.0  # that arrivals last, of which the first 1.5 are warm-up, as when a plan is checked [assumed]
WARMUP_LIFETIMES = 1.5
MOST_WARMUP = 0.5  # of the requests [share; assumed]
WAVES = 4  # requests of each client of a closed loop, of which the first is warm-up [assumed]
FEWEST_WAVES = 2  # where they would be too many
FEWEST_OF_CLIENTS = 64  # requests of a closed loop [assumed]
MOST_OF_CLIENTS = 20_000  # of which more than the fewest waves are cut [assumed: a CPU second]


@dataclass(frozen=True)
class Trial:
    """A scenario with its deployment, to be played once.

    profiles: accelerators other than the catalogue's, by "gpu@stack" as the deployment names them.
    """

    scenario: Scenario
    seed: int
    profiles: Mapping[str, HardwareProfile] = field(default_factory=dict)


@dataclass(frozen=True)
class RunFigures:
    """What one run says; latencies at the percentile of the limits, None where no request has one.

    attainment: share of the requests inside every limit; inside: of each limit alone. came_per_s: arrivals while the
    rate was counted. busy, kv: shares by group. gpus_by_group: that are paid for. joule_per_token: of the accelerators.
    """

    offered_per_s: float
    requests_per_s: float
    came_per_s: float
    attainment: float
    inside: Mapping[str, float]
    ttft_s: float | None
    tpot_s: float | None
    e2e_s: float | None
    tok_s_per_user: float | None
    total_tok_s_per_gpu: float
    output_tok_s_per_gpu: float
    gpus: float
    busy: Mapping[str, float]
    kv: Mapping[str, float]
    batch: Mapping[str, float]
    refused: int
    cost: TokenCost | None
    joule_per_token: float | None
    too_short: str | None

    def to_json(self) -> dict[str, Any]:
        cost = None if self.cost is None else self.cost.to_json()
        return {**{name: getattr(self, name) for name in self.__dataclass_fields__}, "cost": cost}


def run(trial: Trial) -> SimulationResult:
    """As `simulate`, on the trial's profiles."""
    scenario = trial.scenario
    deployment = deployed(scenario)
    model = load_model(scenario.model)
    profiles = {
        key: trial.profiles[key] if key in trial.profiles else load(group.gpu, group.stack)
        for group in deployment.groups
        for key in (profile_key(group),)
    }
    workload_seed, router_seed = np.random.SeedSequence(trial.seed).spawn(2)
    requests = make_streams(scenario.traffic(), workload_seed)
    return play(scenario, deployment, model, profiles, requests, np.random.default_rng(router_seed))


def measure(trial: Trial) -> RunFigures:
    """Play the trial and keep what the questions look at."""
    result = run(trial)
    summary = result.summary()
    throughput, window = summary.throughput, result.window
    at = f"p{trial.scenario.slo.percentile:g}"
    kept = result.measured & result.finished

    def tail(values: Any) -> float | None:
        found = values[kept]
        found = found[~np.isnan(found)]
        return float(np.percentile(found, float(at[1:]))) if len(found) else None

    came = (result.arrival_s > window.start_s) & (result.arrival_s <= window.end_s)
    span = window.end_s - window.start_s
    offered = result.arrival_s[~np.isnan(result.arrival_s)]
    length = float(offered.max() - offered.min()) if len(offered) > 1 else 0.0
    energy = summary.energy
    return RunFigures(
        offered_per_s=(len(offered) - 1) / length if length > 0 else 0.0,
        requests_per_s=throughput.requests_per_s,
        came_per_s=float(came.sum()) / span if span > 0 else 0.0,
        attainment=throughput.attainment,
        inside={name: limit.attainment or 0.0 for name, limit in summary.slo.limits.items()},
        ttft_s=tail(result.ttft_s),
        tpot_s=tail(result.tpot_s),
        e2e_s=tail(result.e2e_s),
        tok_s_per_user=summary.metrics["tok_s_per_user"].mean,
        total_tok_s_per_gpu=throughput.total_tok_s_per_gpu,
        output_tok_s_per_gpu=throughput.output_tok_s_per_gpu,
        gpus=sum(map(result.mean_gpus, result.groups)),
        busy={name: use.busy_fraction for name, use in summary.utilization.items()},
        kv={name: use.kv_occupancy for name, use in summary.utilization.items()},
        batch={name: use.batch_mean for name, use in summary.utilization.items()},
        refused=summary.requests.rejected + summary.requests.failed,
        cost=_token_cost(result, summary),
        joule_per_token=None if energy is None else energy.joule_per_token,
        too_short=result.too_short,
    )


def _token_cost(result: SimulationResult, summary: Summary) -> TokenCost | None:
    """Of all prompt tokens of the run, the cached ones; the first entry group says what they take."""
    prompts = max(1, int(result.finished.sum()))
    entry = result.spec.entry[0].instance
    cached = min(summary.cached_tokens, summary.tokens_in)
    weight = cached_weight(entry.times, summary.tokens_in / prompts, cached / prompts, entry.ranks)
    return token_cost(summary.cost, summary.throughput, cached / max(1, summary.tokens_in), weight)


def deployed(scenario: Scenario) -> Deployment:
    """The scenario's deployment; raises ScenarioError for none."""
    if scenario.deployment is None:
        raise ScenarioError(
            f"scenario '{scenario.name}' has no [deployment] to play; add pools to it, or give a design of a plan"
        )
    return scenario.deployment


def at_rate(scenario: Scenario, rate: float, lifetime_s: float | None) -> Scenario:
    """The scenario at so many requests (sessions) per second, arrivals lasting several lifetimes of a request.

    An open loop's day curve and bursts are left out: `rate` is what they peak at. lifetime_s: of a request; None:
    as long a run as the scenario has. Raises ScenarioError for a workload that has no rate.
    """
    workload = scenario.one_workload()
    changed: Workload
    if isinstance(workload, OpenLoop):
        requests, warm = workload.requests, scenario.warmup_fraction
        if lifetime_s is not None:
            wanted = math.ceil(rate * lifetime_s * LIFETIMES)
            requests = min(MOST_REQUESTS, max(FEWEST_REQUESTS, wanted))
            warm = min(MOST_WARMUP, WARMUP_LIFETIMES * lifetime_s * rate / requests)
        changed = workload.model_copy(
            update={"rate": rate, "requests": requests, "duration_s": None, "diurnal": None, "bursts": None}
        )
        return scenario.model_copy(update={"workload": changed, "warmup_fraction": warm})
    if isinstance(workload, Trace):
        changed = workload.model_copy(update={"rate": rate, "speed": 1.0})
    elif isinstance(workload, Sessions) and workload.rate is not None:
        changed = workload.model_copy(update={"rate": rate})
    else:
        raise ScenarioError(
            f"workload.kind='{workload.kind}' of '{scenario.name}' has no rate to change; use 'open_loop', 'trace' or "
            "'sessions' with a rate"
        )
    return scenario.model_copy(update={"workload": changed})


def rate_of(workload: Workload) -> float | None:
    """Requests (sessions) per second that the workload names; None where it names none."""
    if isinstance(workload, (OpenLoop, Trace, Sessions)):
        return workload.rate
    return None


def with_clients(scenario: Scenario, clients: int) -> Scenario:
    """The scenario's lengths as a closed loop of so many clients, the first wave left out."""
    workload = scenario.one_workload()
    if not isinstance(workload, (OpenLoop, ClosedLoop)):
        raise ScenarioError(
            f"workload.kind='{workload.kind}' of '{scenario.name}' has no lengths to compare designs at; use "
            "'open_loop' or 'closed_loop'"
        )
    requests = max(FEWEST_OF_CLIENTS, FEWEST_WAVES * clients, min(WAVES * clients, MOST_OF_CLIENTS))
    loop = ClosedLoop(concurrency=clients, requests=requests, prompt=workload.prompt, output=workload.output)
    warm = min(MOST_WARMUP, max(0.1, clients / requests))
    return scenario.model_copy(update={"workload": loop, "warmup_fraction": warm})

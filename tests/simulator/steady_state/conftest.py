"""One deployment under both models: the steady state and the discrete-event model that judges it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from benchmarks.agreement import cluster_of
from hw_profiles.catalog import load
from simulator.des.cluster.build import profile_key
from simulator.des.simulate import play
from simulator.des.workload.requests import make_requests
from simulator.model.presets import load_model
from simulator.scenario import parse_scenario
from simulator.steady_state.closed_loop import closed_loop
from simulator.steady_state.cluster import ClusterArrays, Equilibrium
from simulator.steady_state.open_loop import open_loop

WARM_UP = 0.3


@dataclass(frozen=True)
class Both:
    """Medians of both models; throughput of a closed loop by Little's law, clients / mean time of a request."""

    cluster: ClusterArrays
    steady: Equilibrium
    des: dict[str, float]

    def error(self, metric: str) -> float:
        """steady / des - 1"""
        value = {
            "throughput": self.steady.rate,
            "tpot": self.steady.tpot_s,
            "ttft": self.steady.ttft_s,
            "mean_ttft": self.steady.mean_ttft_s,
        }[metric]
        return float(value.item() / self.des[metric] - 1)

    def agree(self, throughput: float, tpot: float, ttft: float) -> bool:
        """Within so much of each other; says what is not."""
        limits = {"throughput": throughput, "tpot": tpot, "ttft": ttft}
        beyond = {name: self.error(name) for name, limit in limits.items() if abs(self.error(name)) > limit}
        assert not beyond, f"{beyond}, des: {self.des}"
        return True


def _both(
    deployment: dict[str, Any],
    prompt: Any,
    output: Any,
    clients: int | None = None,
    load_share: float | None = None,
    requests: int = 1500,
    model: str = "qwen3-30b-a3b",
    warm_up: float = WARM_UP,
) -> Both:
    """A closed loop of `clients`, or an open loop at a share of what the steady state sustains. Without warm-up the
    first wave counts."""
    kind: dict[str, Any] = {"kind": "closed_loop", "concurrency": clients}
    if clients is None:
        kind = {"kind": "open_loop", "rate": 1.0}
    keys: dict[str, Any] = {
        "model": model,
        "workload": {**kind, "requests": requests, "prompt": prompt, "output": output},
        "deployment": deployment,
        "warmup_fraction": warm_up,
    }
    scenario = parse_scenario(keys)
    traffic, router = np.random.SeedSequence(1).spawn(2)
    cluster = cluster_of(scenario, make_requests(scenario.one_workload(), np.random.SeedSequence(2)))
    if clients is not None:
        ages = max(1.0, (1 + warm_up) / 2 * requests / clients)
        wave = 0.0 if warm_up else clients / requests
        steady = closed_loop(cluster, np.array([[float(clients)]]), wave, ages)
    else:
        assert load_share is not None
        rate = load_share * closed_loop(cluster, np.array([[1e5]])).rate
        keys["workload"]["rate"] = rate.item()
        scenario = parse_scenario(keys)
        steady = open_loop(cluster, rate)
    played = scenario.deployment
    assert played is not None
    profiles = {profile_key(group): load(group.gpu, group.stack) for group in played.groups}
    drawn = make_requests(scenario.one_workload(), traffic)
    result = play(scenario, played, load_model(model), profiles, drawn, np.random.default_rng(router))
    metrics = result.metrics()
    e2e, tpot, ttft = metrics["e2e_s"].mean, metrics["tpot_s"].p50, metrics["ttft_s"].p50
    assert e2e is not None
    assert ttft is not None
    assert tpot is not None
    rate_of = result.throughput().requests_per_s if clients is None else clients / e2e
    mean = metrics["ttft_s"].mean
    assert mean is not None
    return Both(cluster, steady, {"throughput": rate_of, "tpot": tpot, "ttft": ttft, "mean_ttft": mean})


@pytest.fixture
def both() -> Callable[..., Both]:
    return _both

"""A decode pool measured alone: prompts are there at once, so that nothing but decode steps takes time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from calibration.serving.by_des.benchmark import Benchmark
from simulator.des.cluster.build import cluster_spec
from simulator.des.cluster.cluster import Cluster
from simulator.des.cluster.spec import GroupSpec
from simulator.des.instance.kv_room import KvRoom
from simulator.des.instance.spec import InstanceSpec
from simulator.des.results.result import SimulationResult
from simulator.des.workload.requests import make_requests
from simulator.model.latency import Chunk, DecodeLoad
from simulator.scenario import Slo


@dataclass(frozen=True)
class NoTime:
    """Step times of an instance whose prompts cost nothing."""

    caps: tuple[int, ...] = ()
    first_token_extra_s: float = 0.0

    def decode_s(self, load: DecodeLoad) -> float:
        return 0.0

    def prefill_s(self, chunks: Sequence[Chunk], total_tokens: int | None = None) -> float:
        return 0.0

    def mixed_s(self, chunks: Sequence[Chunk], load: DecodeLoad, total_tokens: int | None = None) -> float:
        return 0.0


def decoded(benchmark: Benchmark) -> SimulationResult:
    """Play a benchmark with all of its prompts computed in no time, in room without end."""
    scenario = benchmark.scenario
    traffic, router = np.random.SeedSequence(scenario.seed).spawn(2)
    requests = make_requests(scenario.one_workload(), traffic)
    assert scenario.deployment is not None
    lengths = float(requests.prompt_tokens.mean()), float(requests.output_tokens.mean())
    spec = cluster_spec(scenario.deployment, benchmark.model, benchmark.profiles, (Slo(),), lengths)
    count = len(requests)
    free = InstanceSpec(
        NoTime(),
        KvRoom(float("inf"), 1.0),
        max_tokens_per_step=count * int(requests.prompt_tokens.max()),
        max_sequences=count,
    )
    spec = replace(spec, entry=(GroupSpec("prefill", free),))
    run = Cluster(spec, requests, np.random.default_rng(router)).run()
    return SimulationResult(spec, run, spec.slos)

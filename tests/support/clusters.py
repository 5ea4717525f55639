"""Clusters with durations from a formula, so that theory can be the oracle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isclose
from typing import Any

import numpy as np

from simulator.des.cluster.cluster import Cluster
from simulator.des.cluster.recorder import Recorder
from simulator.des.cluster.spec import ClusterSpec, GroupSpec
from simulator.des.instance.kv_room import KvRoom
from simulator.des.instance.spec import InstanceSpec
from simulator.des.results.result import SimulationResult
from simulator.des.workload.requests import Requests
from simulator.model.latency import Chunk, DecodeLoad
from simulator.scenario import Slo


@dataclass(frozen=True)
class FormulaTimes:
    """Linear step times: base + per token of prefill + per sequence and per context token of decode. [s]"""

    per_prompt_token_s: float = 1e-4
    decode_base_s: float = 0.01
    per_sequence_s: float = 0.0
    per_context_s: float = 0.0
    first_token_extra_s: float = 0.0
    caps: tuple[int, ...] = ()

    def decode_s(self, load: DecodeLoad) -> float:
        assert len(load.capped) == len(self.caps)
        capped = sum(load.capped)
        return (
            self.decode_base_s
            + self.per_sequence_s * load.total_sequences
            + self.per_context_s * (load.context + capped)
        )

    def prefill_s(self, chunks: Sequence[Chunk], total_tokens: int | None = None) -> float:
        return self.per_prompt_token_s * sum(chunk.new for chunk in chunks)

    def mixed_s(self, chunks: Sequence[Chunk], load: DecodeLoad, total_tokens: int | None = None) -> float:
        return self.prefill_s(chunks) + self.decode_s(load)


def make_instance(times: FormulaTimes | None = None, capacity: float = float("inf"), **limits: Any) -> InstanceSpec:
    """An instance whose KV is counted in tokens: one byte a token, none a sequence."""
    return InstanceSpec(times=times or FormulaTimes(), kv=KvRoom(capacity, 1.0), **limits)


def play(
    spec: ClusterSpec,
    prompts: Sequence[int],
    outputs: Sequence[int],
    arrivals: Sequence[float] | None = None,
    concurrency: int | None = None,
    warmup: int = 0,
    slo: Slo | None = None,
    seed: int = 0,
    blocks: list[tuple[int, ...]] | None = None,
    recorder: Recorder | None = None,
) -> SimulationResult:
    requests = Requests(
        np.array(prompts, dtype=np.int64),
        np.array(outputs, dtype=np.int64),
        None if arrivals is None else np.array(arrivals, dtype=np.float64),
        concurrency,
        blocks,
    )
    run = Cluster(spec, requests, np.random.default_rng(seed), warmup, recorder=recorder).run()
    return SimulationResult(spec, run, slo or Slo())


def serve(spec: ClusterSpec, streams: Sequence[Requests], warmup: int = 0, slo: Slo | None = None) -> SimulationResult:
    """As `play`, for streams of several tenants."""
    run = Cluster(spec, streams, np.random.default_rng(0), warmup).run()
    return SimulationResult(spec, run, slo or Slo())


def colocated(instance: InstanceSpec, count: int = 1, router: str = "least_loaded", **fields: Any) -> ClusterSpec:
    return ClusterSpec((GroupSpec("colocated", instance, count),), router=router, **fields)


def disaggregated(
    prefill: InstanceSpec, decode: InstanceSpec, counts: tuple[int, int] = (1, 1), **fields: Any
) -> ClusterSpec:
    return ClusterSpec((GroupSpec("prefill", prefill, counts[0]),), (GroupSpec("decode", decode, counts[1]),), **fields)


def _leaves(tree: Any, at: str = "") -> dict[str, Any]:
    """Values in nested dictionaries and lists, by their path.

    >>> _leaves({"a": {"b": 1}, "c": [2, 3]})
    {'/a/b': 1, '/c/0': 2, '/c/1': 3}
    """
    if not isinstance(tree, dict | list):
        return {at: tree}
    found: dict[str, Any] = {}
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        found |= _leaves(value, f"{at}/{key}")
    return found


def differences(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    """What two summaries say otherwise. Sums of time may round otherwise, as they are taken over other spans."""
    ours, others = _leaves(left), _leaves(right)

    def same(path: str) -> bool:
        one, other = ours.get(path), others.get(path)
        return one == other or (
            isinstance(one, float) and isinstance(other, float) and isclose(one, other, rel_tol=1e-12, abs_tol=1e-12)
        )

    return {path: (ours.get(path), others.get(path)) for path in ours | others if not same(path)}

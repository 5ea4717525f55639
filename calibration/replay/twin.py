"""The simulator's twin of one engine: the same limits, the same arrivals, one process per worker.

Where step times are equal, both make the same batches, preemptions included. The simulator counts KV by the token: an
engine with larger blocks fills up a little earlier, up to a block a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibration.replay.traffic import ReplayTraffic
from hw_profiles.profile import HardwareProfile
from simulator.des.cluster.cluster import Cluster
from simulator.des.cluster.spec import ClusterSpec, GroupSpec
from simulator.des.instance.kv_room import KvRoom
from simulator.des.instance.spec import InstanceSpec, StepTimes
from simulator.model.architecture import ModelSpec
from simulator.model.arrays import Floats
from simulator.model.latency import Chunk, DecodeLoad, StepLatency
from simulator.model.parallelism import Parallelism
from simulator.scenario import Transfer


@dataclass(frozen=True)
class EngineLimits:
    """What bounds the batches of an engine."""

    max_sequences: int
    max_step_tokens: int
    capacity_tokens: int


@dataclass(frozen=True)
class Times:
    """When each request got its first and its last token. [s]"""

    arrival_s: Floats
    first_token_s: Floats
    finish_s: Floats
    output_tokens: NDArray[np.int64]

    @property
    def ttft_s(self) -> Floats:
        return self.first_token_s - self.arrival_s

    @property
    def e2e_s(self) -> Floats:
        return self.finish_s - self.arrival_s

    @property
    def tpot_s(self) -> Floats:
        """Of requests with more than one token."""
        several = self.output_tokens > 1
        return (self.finish_s - self.first_token_s)[several] / (self.output_tokens[several] - 1)

    @property
    def output_tokens_per_s(self) -> float:
        return float(self.output_tokens.sum() / (self.finish_s.max() - self.arrival_s.min()))


@dataclass(frozen=True)
class HandoverCost:
    """fixed_s: messages between workers. bandwidth: of the copies, both together [B/s]. num_bytes: moved, by prompt
    length: constant plus slope a token."""

    fixed_s: float
    bandwidth: float
    constant_bytes: float
    bytes_per_token: float


def profiled_times(model: ModelSpec, hardware: HardwareProfile) -> StepLatency:
    return StepLatency(model, hardware, Parallelism())


class ScaledTimes:
    """Step times of a machine on which everything takes `factor` times as long."""

    def __init__(self, times: StepTimes, factor: float) -> None:
        self._times, self._factor = times, factor
        self.caps = times.caps
        self.first_token_extra_s = factor * times.first_token_extra_s

    def decode_s(self, load: DecodeLoad) -> float:
        return self._factor * self._times.decode_s(load)

    def prefill_s(self, chunks: Sequence[Chunk], total_tokens: int | None = None) -> float:
        return self._factor * self._times.prefill_s(chunks, total_tokens)

    def mixed_s(self, chunks: Sequence[Chunk], load: DecodeLoad, total_tokens: int | None = None) -> float:
        return self._factor * self._times.mixed_s(chunks, load, total_tokens)


def simulate(
    traffic: ReplayTraffic, times: StepTimes, limits: EngineLimits, handover: HandoverCost | None = None
) -> Times:
    """One colocated worker; with `handover`, one prefill and one decode worker."""
    instance = InstanceSpec(
        times,
        KvRoom(float(limits.capacity_tokens), 1.0),
        max_tokens_per_step=limits.max_step_tokens,
        max_sequences=limits.max_sequences,
        nic_bandwidth=handover.bandwidth if handover else float("inf"),
    )
    if handover is None:
        spec = ClusterSpec((GroupSpec("colocated", instance),))
    else:
        moved = handover
        spec = ClusterSpec(
            (GroupSpec("prefill", instance),),
            (GroupSpec("decode", instance),),
            # The engines write KV into shared memory as soon as it is there, and read it as a step begins.
            transfer=Transfer(efficiency=1.0, handshake_s=handover.fixed_s, half_rate_bytes=0.0, staged=True),
            transfer_bytes=lambda tokens: moved.constant_bytes + moved.bytes_per_token * tokens,
        )
    log = Cluster(spec, traffic.requests, np.random.default_rng(0)).run().log
    return Times(traffic.arrival_s, np.array(log.first_token_s), np.array(log.finish_s), traffic.output_tokens)

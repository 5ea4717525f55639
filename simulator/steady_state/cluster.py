"""A cluster as an equilibrium sees it, and what its requests see."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from simulator.model.arrays import Floats
from simulator.scenario import FirstToken
from simulator.steady_state.stations import (
    WATERMARK,
    Arrivals,
    DemandArrays,
    HandoverArrays,
    KvArrays,
    Prefilling,
    prefill_alone,
    steps_of,
)
from simulator.steady_state.step_table import StepSeconds
from simulator.steady_state.waits import Response

LIMITS = ("clients", "prefill", "kv", "sequences", "links")  # what binds, by number; the first: nothing but the load


@dataclass(frozen=True)
class PoolArrays:
    """Identical instances; arrays [points or 1, draws or 1].

    instances: how many. sequences: that an instance works on at once. kv: room of a rank.
    """

    steps: StepSeconds
    instances: Floats
    sequences: Floats
    kv: KvArrays


@dataclass(frozen=True)
class ClusterArrays:
    """Arrays are [points or 1, draws or 1].

    entry: the colocated or the prefill pool. decode, handover: None where it is colocated.
    acceptance: tokens that a decode step emits to a sequence. request_overhead_s: before a request is queued.
    first_token: who sends it to the client: "decode" after hand-over and a first decode step.
    """

    entry: PoolArrays
    demand: DemandArrays
    acceptance: Floats
    request_overhead_s: Floats
    decode: PoolArrays | None = None
    handover: HandoverArrays | None = None
    first_token: FirstToken = "prefill"

    @property
    def shape(self) -> tuple[int, ...]:
        """[points, draws]"""
        pools = (self.entry,) if self.decode is None else (self.entry, self.decode)
        shapes = [
            shape
            for pool in pools
            for shape in (pool.steps.total_shape, pool.instances.shape, pool.sequences.shape, pool.kv.capacity.shape)
        ]
        return np.broadcast_shapes(
            *shapes, self.demand.prompt.shape, self.acceptance.shape, self.request_overhead_s.shape
        )

    @property
    def decode_steps(self) -> Floats:
        """Of a request."""
        return self.demand.decode_steps(self.acceptance)


@dataclass(frozen=True)
class Equilibrium:
    """Arrays [points, draws].

    rate: requests/s of the cluster. tpot_s: of the median request; mean_tpot_s. ttft_s: median; mean_ttft_s.
    running: sequences that decode on an instance. entry_busy: share of prefill capacity in use. decode_full: of the
    sequences that decode has room for. limit: what binds, index in LIMITS. first: distribution of TTFT.
    """

    rate: Floats
    tpot_s: Floats
    mean_tpot_s: Floats
    ttft_s: Floats
    mean_ttft_s: Floats
    running: Floats
    entry_busy: Floats
    decode_full: Floats
    limit: NDArray[np.intp]
    first: Response

    @property
    def saturated(self) -> NDArray[np.bool_]:
        """Clients queue in front of something that is full."""
        return self.limit > 0


def room_limit(kv: KvArrays, ranks: Floats, context: Floats, held: Floats, held_tokens: Floats) -> Floats:
    """Sequences that decode on an instance with full KV. A rank takes a newcomer while the watermark stays free, so on
    average half of a newcomer's KV is too. held: prompts with room that do not decode, of `held_tokens` tokens."""
    newcomer = kv.per_sequence + kv.per_token * held_tokens
    left = kv.capacity * (1 - WATERMARK) - newcomer * (0.5 + held / ranks)
    return np.asarray(np.maximum(1.0, ranks * left / (kv.per_sequence + kv.per_token * context)))


@dataclass(frozen=True)
class Apart:
    """A prefill and a decode pool at one rate. step_s: decode step. late_s: from the end of a prompt until its sequence
    decodes, waiting for room left out."""

    prefill: Prefilling
    step_s: Floats
    late_s: Floats
    rate: Floats
    links: Floats


def apart(cluster: ClusterArrays, rate: Floats, step_s: Floats, arrivals: Arrivals) -> Apart:
    """At `rate` of the cluster and a decode step of `step_s`."""
    assert cluster.handover is not None
    entry = cluster.entry
    each = rate / entry.instances
    prefill = prefill_alone(entry.steps, each, arrivals, cluster.demand, cluster.request_overhead_s)
    last = prefill.held_s / np.maximum(1.0, entry.steps.lone_steps.mean(axis=-1)[:, :, 0])
    assert cluster.decode is not None
    sources, destinations = (pool.instances * pool.steps.ranks[..., 0] for pool in (entry, cluster.decode))
    links = cluster.handover.busy(rate, sources, destinations)
    late = cluster.handover.seconds(links * arrivals.others, last) + step_s / 2
    return Apart(prefill, step_s, late, rate, links)


def as_seen(
    cluster: ClusterArrays, state: Apart, room_wait_s: Floats, backlog_s: Floats, saturated: NDArray[np.bool_]
) -> tuple[Response, Floats, Floats]:
    """TTFT, and TPOT of the median and mean request, as the client sees them.

    room_wait_s: for room on the decode side. backlog_s: in front of prefill.
    """
    demand = cluster.demand
    later = state.late_s + room_wait_s
    first = state.prefill.response.backlogged(backlog_s, saturated)
    steps, middle = (steps_of(t, cluster.acceptance) for t in (demand.further, demand.median_further))
    if cluster.first_token == "decode":
        first = replace(first, fixed_s=first.fixed_s + (later + state.step_s) * demand.several)
        return first, state.step_s * (middle - 1) / demand.median_further, state.step_s * (steps - 1) / demand.further
    return (
        first,
        (later + state.step_s * middle) / demand.median_further,
        (later + state.step_s * steps) / demand.further,
    )

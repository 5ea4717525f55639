"""Arrivals at a rate that does not depend on the answers: the state in which a cluster serves them.

The number of sequences that decode follows from the rate, n = X (decode steps) step(n); waits follow from queueing
formulas. Beyond saturation there is no such state: latencies are infinite, and `rate` is what is sustained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import NormalDist

import numpy as np

from simulator.model.arrays import Floats, Mask
from simulator.steady_state.arrays import Place
from simulator.steady_state.cluster import Apart, ClusterArrays, Equilibrium, apart, as_seen, room_limit
from simulator.steady_state.mixed import Mixing, mixed_open
from simulator.steady_state.stations import evenly, steps_of
from simulator.steady_state.waits import BUSIEST, queueing

HALVINGS = 24  # of an interval of sequences, to 1e-7 of it
OCCUPANCY_ROUNDS = 2  # of the rate that keeps sequences running; it hardly matters to the step


def open_loop(cluster: ClusterArrays, rate: Floats, percentile: float = 50.0) -> Equilibrium:
    """rate: requests/s of the cluster. percentile: of TTFT and TPOT in `ttft_s` and `tpot_s`, as a limit asks for."""
    shape = np.broadcast_shapes(rate.shape, cluster.shape)
    rate = np.broadcast_to(rate, shape).astype(float)
    return (
        _colocated(cluster, rate, percentile) if cluster.decode is None else _disaggregated(cluster, rate, percentile)
    )


def crowded(n: Floats, instances: Floats, percentile: float) -> Floats:
    """Sequences that run on an instance at that percentile of time. All that are under way are Poisson, and routers
    spread them evenly over the instances: n + z sqrt(n / instances)."""
    return np.asarray(np.maximum(n, n + NormalDist().inv_cdf(percentile / 100) * np.sqrt(n / instances)))


def as_seen_by_one(n: Floats, instances: Floats) -> Floats:
    """Sequences on an instance as one of them sees it: in M/G/infinity itself and the mean of all others, n + 1 for one
    instance; over several the others are spread evenly, so that it finds one on the emptiest."""
    return np.asarray(1 + np.maximum(0.0, n - 1 + 1 / instances))


def _settled(most: Floats, rate: Floats, rate_of: Callable[[Floats], Floats]) -> tuple[Floats, Mask]:
    """The n up to `most` at which an instance works off `rate`, and whether there is one."""
    sustained = rate_of(most)
    low, high = np.zeros_like(most), most.copy()
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        beyond = rate_of(middle) > rate
        low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
    return high, sustained > rate


def _infinite(found: Equilibrium, unstable: Mask) -> Equilibrium:
    """No steady state: latencies are infinite."""

    def never(values: Floats) -> Floats:
        return np.where(unstable, np.inf, values)

    return replace(
        found, tpot_s=never(found.tpot_s), mean_tpot_s=never(found.mean_tpot_s), ttft_s=never(found.ttft_s),
        mean_ttft_s=never(found.mean_ttft_s), limit=np.where(unstable, np.maximum(found.limit, 1), 0),
    )  # fmt: skip


def at_occupancy(cluster: ClusterArrays, running: Floats, percentile: float = 50.0) -> Equilibrium:
    """A colocated cluster at whatever rate keeps `running` sequences decoding on an instance: `rate` says which.

    Saturated where no rate does, for want of room or of tokens in a step.
    """
    assert cluster.decode is None
    shape = np.broadcast_shapes(running.shape, cluster.shape)
    n = np.broadcast_to(running, shape).astype(float)
    pool = _Colocated(cluster, n)
    each = n / (pool.decode_steps * Place.on(pool.steps.batches, n).of(pool.steps.decode_s))
    for _ in range(OCCUPANCY_ROUNDS):
        each = n / (pool.decode_steps * pool.state(n, each).step_s)
    return pool.equilibrium(n, each, n <= pool.most, percentile)


def _colocated(cluster: ClusterArrays, rate: Floats, percentile: float) -> Equilibrium:
    each = rate / cluster.entry.instances
    pool = _Colocated(cluster, each)

    def rate_of(n: Floats) -> Floats:
        found = pool.state(n, each)
        sustained: Floats = n / (pool.decode_steps * found.step_s)
        return np.where(found.prefill.busy > BUSIEST, np.inf, sustained)

    n, stable = _settled(pool.most, each, rate_of)
    return pool.equilibrium(n, each, stable, percentile)


class _Colocated:
    """A pool that does both, with n sequences decoding on an instance while `each` requests/s come to it."""

    def __init__(self, cluster: ClusterArrays, like: Floats) -> None:
        self.cluster, self.entry, self.demand = cluster, cluster.entry, cluster.demand
        self.steps = cluster.entry.steps
        self.decode_steps = self.demand.decode_steps(cluster.acceptance) + np.zeros_like(like)
        ranks = self.steps.ranks[..., 0]
        self.fits = room_limit(self.entry.kv, ranks, self.demand.context, 0 * like, self.demand.prompt)
        self.most = np.minimum(self.fits, self.entry.sequences + 0 * like)

    def state(self, n: Floats, each: Floats) -> Mixing:
        instances = self.entry.instances
        under_way = np.maximum(n + each * self.steps.lone_s.mean(axis=-1)[:, :, 0], 1e-9)
        others = np.maximum(0.0, 1 - (1 - 1 / instances) / under_way)
        arrivals = replace(evenly(each, instances), others=others)
        seen = as_seen_by_one(n, instances)
        overhead_s = self.cluster.request_overhead_s
        return mixed_open(self.steps, n, seen, self.decode_steps, arrivals, self.demand, overhead_s)

    def equilibrium(self, n: Floats, each: Floats, stable: Mask, percentile: float) -> Equilibrium:
        demand, acceptance, instances = self.demand, self.cluster.acceptance, self.entry.instances
        found = self.state(n, each)
        full = found.prefill.busy > BUSIEST
        unstable = ~stable | full
        limit = np.where(full, 1, np.where(self.fits < self.entry.sequences, 2, 3))
        chance, queue_s = queueing(self.most * instances, n / self.most, self.decode_steps * found.step_s, 1.0)
        first = replace(found.prefill.response, backlog_s=chance * queue_s)
        high = self.state(crowded(n, instances, percentile), each)
        mean = found.step_s * steps_of(demand.further, acceptance) / demand.further
        at = high.step_s * steps_of(demand.median_further, acceptance) / demand.median_further
        state_of = Equilibrium(
            np.where(unstable, n / (self.decode_steps * found.step_s), each) * instances, at, mean,
            first.percentile_s(percentile), first.mean_s, n, found.prefill.busy, n / self.most, limit, first,
        )  # fmt: skip
        return _infinite(state_of, unstable)


def _disaggregated(cluster: ClusterArrays, rate: Floats, percentile: float) -> Equilibrium:
    demand, decode = cluster.demand, cluster.decode
    assert decode is not None
    pools = decode.instances
    each = rate / pools
    decode_steps = demand.decode_steps(cluster.acceptance) + np.zeros_like(each)

    def step_of(n: Floats) -> Floats:
        return Place.on(decode.steps.batches, as_seen_by_one(n, pools)).of(decode.steps.decode_s)

    fits = room_limit(decode.kv, decode.steps.ranks[..., 0], demand.context, 0 * each, demand.prompt)
    most = np.minimum(fits, decode.sequences + 0 * each)
    n, stable = _settled(most, each, lambda n: n / (decode_steps * step_of(n)))
    step = step_of(n)
    found: Apart = apart(cluster, rate, step, evenly(each, cluster.entry.instances))
    chance, queue_s = queueing(most * pools, n / most, decode_steps * step, 1.0)
    first, _, mean = as_seen(cluster, found, chance * queue_s, 0 * each, ~stable)
    high = replace(found, step_s=step_of(crowded(n, pools, percentile)))
    _, at, _ = as_seen(cluster, high, chance * queue_s, 0 * each, ~stable)
    full, moving = found.prefill.busy > BUSIEST, found.links > BUSIEST
    unstable = ~stable | full | moving
    capacity = np.minimum(
        cluster.entry.instances / cluster.entry.steps.full_s[:, :, 0], rate / np.maximum(found.links, 1e-12)
    )
    sustained = np.minimum(n / (decode_steps * step) * pools, capacity)
    limit = np.where(full, 1, np.where(moving, 4, np.where(fits < decode.sequences, 2, 3)))
    state_of = Equilibrium(
        np.where(unstable, sustained, rate), at, mean, first.percentile_s(percentile), first.mean_s, n,
        found.prefill.busy, n / most, limit, first,
    )  # fmt: skip
    return _infinite(state_of, unstable)

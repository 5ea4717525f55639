"""A fixed number of clients, each with one request under way: where the loop settles.

The number n of sequences that decode on an instance fixes the rate, X = n / (decode steps x step(n)), and with it all
waits; the requests that this keeps under way grow with n, so bisection finds the n at which they are the clients.
Where something is full before (token budget, prefill pool, KV, sequences), the clients left over queue in front of it.

All clients start at once, and requests of nearly equal length stay together: those whose prompts shared a step end
together, and their successors come together. What comes evenly in a steady state then comes within a part of each
cycle, the burst: as long as the first wave's prompts took, w0 = clients / prompts of a full step, and wider by what
lengths add in each generation, sqrt(12) times their standard deviation for a uniform law of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from simulator.model.arrays import Floats, Mask
from simulator.steady_state.arrays import Place
from simulator.steady_state.cluster import Apart, ClusterArrays, Equilibrium, apart, as_seen, room_limit
from simulator.steady_state.mixed import Mixing, mixed_closed
from simulator.steady_state.stations import Arrivals, at_bunch, slots_of, steps_of
from simulator.steady_state.step_table import StepSeconds
from simulator.steady_state.waits import BUSIEST

HALVINGS = 24  # of an interval of sequences, to 1e-7 of it


def closed_loop(
    cluster: ClusterArrays, clients: Floats, first_wave: Floats | float = 0.0, generations: Floats | float = np.inf
) -> Equilibrium:
    """clients: requests under way. generations: requests that a client has sent since all began, in the mean over what
    is measured; infinite: nothing is left of the start. first_wave: share of the requests in the statistics of TTFT
    that are of the first wave, when all clients start at once (0.1 where each sends ten and none is left out)."""
    shape = np.broadcast_shapes(clients.shape, cluster.shape)
    clients = np.broadcast_to(clients, shape).astype(float)
    ages = np.broadcast_to(np.asarray(generations, dtype=float), shape)
    form = _colocated if cluster.decode is None else _disaggregated
    found = form(cluster, clients, ages)
    return _with_first_wave(cluster, found, clients, first_wave)


def share_of_others(own: Floats) -> Floats:
    """Of n requests under way on an instance, each meets (n - 1) / n of the rate."""
    return np.asarray(np.clip((own - 1) / np.maximum(own, 1e-9), 0.0, 1.0))


UNIFORM = 12**0.5  # width of a uniform law over its standard deviation


def wandering(spread: Floats, gathered: Floats, generations: Floats) -> Floats:
    """Standard deviation of when requests end that began together. spread: of one request's length; gathered: width
    within which successors are brought together again, which takes gathered^2 / 12 of the variance each time."""
    kept = np.maximum(0.0, spread**2 - gathered**2 / 12)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(kept > 0, np.sqrt(spread**2 + np.maximum(0, generations - 1) * kept), spread))


def _bisected(most: Floats, over: Callable[[Floats], Mask]) -> Floats:
    """Largest value up to `most` that is not over."""
    low, high = np.zeros_like(most), most.copy()
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        beyond = over(middle)
        low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
    return 0.5 * (low + high)


def _capacity(steps: StepSeconds, n: Floats) -> Floats:
    """Prompts that a step takes beside n sequences."""
    return Place.on(steps.batches, n).of(steps.capacity) if steps.mixes else steps.capacity[:, :, 0] + 0 * n


def _colocated(cluster: ClusterArrays, clients: Floats, generations: Floats) -> Equilibrium:
    entry, demand = cluster.entry, cluster.demand
    steps = entry.steps
    own = clients / cluster.entry.instances
    others = share_of_others(own)
    decode_steps = demand.decode_steps(cluster.acceptance) + np.zeros_like(own)
    ranks = steps.ranks[..., 0]
    one = np.ones_like(own)
    longest = steps.lone_s.mean(axis=-1)[:, :, 0] / steps.lone_steps.mean(axis=-1)[:, :, 0]

    def state(n: Floats) -> tuple[Mixing, Floats, Floats]:
        seen = 1 + n * others
        alone = Place.on(steps.batches, seen).of(steps.decode_s)
        gathered = np.where(longest > cluster.request_overhead_s, cluster.request_overhead_s / alone, 0.0)
        wander = wandering(demand.spread / cluster.acceptance, gathered, generations)
        width = np.maximum(1.0, own / _capacity(steps, n)) + UNIFORM * wander
        burst = np.minimum(1.0, width / decode_steps)
        arrivals = Arrivals(others, burst, wander * alone, own, one)
        found = mixed_closed(steps, n, others, decode_steps, arrivals, demand, cluster.request_overhead_s)
        rate = n / (decode_steps * found.step_s)
        return found, rate, n + rate * found.prefill.response.mean_s

    def limits(n: Floats) -> list[Mask]:
        found, rate, under_way = state(n)
        held = rate * found.prefill.held_s
        fits = room_limit(cluster.entry.kv, ranks, demand.context, held, demand.prompt)
        full = found.prefill.busy > BUSIEST if steps.mixes else under_way < 0  # else prompts come before decode
        return [under_way > own, full, n > fits, n + held > cluster.entry.sequences]

    n = _bisected(np.minimum(own, cluster.entry.sequences + 0 * own), lambda n: np.any(limits(n), axis=0))
    found, rate, under_way = state(n)
    limit = np.argmax(np.array([*limits(n * (1 + 1e-6) + 1e-9)]), axis=0)
    left = np.where(limit > 0, np.maximum(0.0, own - under_way), 0.0)
    first = found.prefill.response.backlogged(left / np.maximum(rate, 1e-12), limit > 0)
    mean = found.step_s * steps_of(demand.further, cluster.acceptance) / demand.further
    median = found.step_s * steps_of(demand.median_further, cluster.acceptance) / demand.median_further
    return Equilibrium(
        rate * cluster.entry.instances, median, mean, first.percentile_s(50.0), first.mean_s, n, found.prefill.busy,
        n / cluster.entry.sequences, limit, first,
    )  # fmt: skip


def _disaggregated(cluster: ClusterArrays, clients: Floats, generations: Floats) -> Equilibrium:
    demand, entry, decode, handover = cluster.demand, cluster.entry, cluster.decode, cluster.handover
    assert decode is not None
    assert handover is not None
    pools = decode.instances
    own = clients / pools
    seen, met = share_of_others(own), share_of_others(clients / cluster.entry.instances)
    decode_steps = demand.decode_steps(cluster.acceptance) + np.zeros_like(own)
    capacity, full = entry.steps.capacity[:, :, 0], entry.steps.full_s[:, :, 0]
    slots = slots_of(entry.steps, capacity)
    wave = clients / cluster.entry.instances
    wave_s = np.maximum(1.0, wave / slots) * at_bunch(
        entry.steps, entry.steps.bunch_s, 0 * wave, np.clip(wave, 1.0, slots)
    )

    def state(n: Floats) -> tuple[Apart, Floats]:
        step = Place.on(decode.steps.batches, 1 + n * seen).of(decode.steps.decode_s)
        rate = n * pools / (decode_steps * step)
        wander = wandering(demand.spread / cluster.acceptance, 0 * step, generations) * step
        cycle = clients / np.maximum(rate, 1e-12)
        width = wave_s + UNIFORM * wander
        burst = np.minimum(1.0, np.maximum(width / cycle, rate / cluster.entry.instances * full))
        found = apart(cluster, rate, step, Arrivals(met, burst, wander, clients, cluster.entry.instances))
        return found, n * pools + rate * (found.prefill.response.mean_s + found.late_s * demand.several)

    def limits(n: Floats) -> list[Mask]:
        found, under_way = state(n)
        held = found.rate / pools * found.late_s
        fits = room_limit(decode.kv, decode.steps.ranks[..., 0], demand.context, held, demand.prompt)
        return [
            under_way > clients,
            found.prefill.busy > BUSIEST,
            n > fits,
            n + held > decode.sequences,
            found.links > BUSIEST,
        ]

    n = _bisected(np.minimum(own, decode.sequences + 0 * own), lambda n: np.any(limits(n), axis=0))
    found, under_way = state(n)
    limit = np.argmax(np.array(limits(n * (1 + 1e-6) + 1e-9)), axis=0)
    left = np.where(limit > 0, np.maximum(0.0, clients - under_way), 0.0)
    # What waits for room keeps its KV where it was prefilled; when that is full too, prompts wait.
    stored = np.where(limit > 1, np.minimum(left, handover.held * cluster.entry.instances), 0.0)
    rate = np.maximum(found.rate, 1e-12)
    first, tpot, mean_tpot = as_seen(cluster, found, stored / rate, (left - stored) / rate, limit > 0)
    return Equilibrium(
        found.rate, tpot, mean_tpot, first.percentile_s(50.0), first.mean_s, n, found.prefill.busy,
        n / decode.sequences, limit, first,
    )  # fmt: skip


def _with_first_wave(cluster: ClusterArrays, found: Equilibrium, clients: Floats, share: Floats | float) -> Equilibrium:
    """All clients start at once: their prompts take full steps, nobody decoding beside the first of them, and on
    average a request waits for half of them."""
    share = np.asarray(share)
    if not share.any():
        return found
    own = clients / cluster.entry.instances
    full = cluster.entry.steps.full_s.mean(axis=2)
    own_s = found.first.own_s.mean(axis=-1)
    wave = found.first.fixed_s + own_s + np.maximum(0.0, own - 1) * full / 2
    longer = wave > found.ttft_s
    median = np.where(
        longer, found.first.percentile_s(np.minimum(99.0, 50.0 / (1 - np.minimum(share, 0.49)))), found.ttft_s
    )
    mean = (1 - share) * found.mean_ttft_s + share * np.maximum(wave, found.mean_ttft_s)
    return replace(found, ttft_s=median, mean_ttft_s=mean)

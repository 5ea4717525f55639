"""Stations of a cluster in equilibrium, as `simulator.des` plays them: prefill, decode, both in one.

A slot is a place for a prompt in a step: the prompts of a full step where they are shorter than the token budget, a
rank where they are longer and take several steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simulator.model.arrays import Floats
from simulator.steady_state.arrays import Place
from simulator.steady_state.step_table import StepSeconds
from simulator.steady_state.traffic import TrafficSample
from simulator.steady_state.waits import BUSIEST, Response, queueing

ROUNDS = 8  # of the fixed point of a prefill step
WATERMARK = 0.01  # share of the KV room that newcomers leave free, as `simulator.des` has it
FEWEST_STEPS = 1e-3  # decode steps of a request that has none


@dataclass(frozen=True)
class DemandArrays:
    """Lengths of requests, [points, 1].

    several: share of requests with two tokens or more. further: their mean tokens after the first. median_further: the
    median; spread: their standard deviation over all requests. context: mean of a running sequence, over time. scv:
    squared variation of prompts.
    """

    prompt: Floats
    output: Floats
    several: Floats
    further: Floats
    median_further: Floats
    spread: Floats
    context: Floats
    scv: Floats

    @classmethod
    def of(cls, traffic: Sequence[TrafficSample]) -> DemandArrays:
        def column(values: list[float]) -> Floats:
            return np.array(values, dtype=float)[:, None]

        many = [t.outputs[t.outputs > 1] - 1 if (t.outputs > 1).any() else np.ones(1) for t in traffic]
        return cls(
            column([t.prompt for t in traffic]),
            column([t.output for t in traffic]),
            column([float((t.outputs > 1).mean()) for t in traffic]),
            column([float(one.mean()) for one in many]),
            column([float(np.median(one)) for one in many]),
            column([float(t.outputs.std()) for t in traffic]),
            column([t.context[0] for t in traffic]),
            column([float(t.prompts.var()) / t.prompt**2 for t in traffic]),
        )

    def decode_steps(self, acceptance: Floats) -> Floats:
        """Mean decode steps of a request. A step emits A tokens in the mean, whole ones, and the last may emit more
        than are wanted: of T tokens after the first, (T - 1/2) / A + 1/2 steps."""
        steps: Floats = self.several * steps_of(self.further, acceptance)
        return np.maximum(FEWEST_STEPS, steps)


def steps_of(tokens: Floats, acceptance: Floats) -> Floats:
    """Decode steps until so many tokens are emitted, in the mean over where the fraction stands."""
    return np.asarray((tokens - 0.5) / acceptance + 0.5)


@dataclass(frozen=True)
class KvArrays:
    """KV of one attention rank, [points, 1] each. [B]"""

    capacity: Floats
    per_token: Floats
    per_sequence: Floats

    def sequences(self, context: Floats) -> Floats:
        """Sequences of so many tokens that fill a rank."""
        return np.asarray(self.capacity / (self.per_sequence + self.per_token * np.maximum(context, 1.0)))


@dataclass(frozen=True)
class Prefilling:
    """Prompts of one instance, at a rate.

    busy: share of the capacity of full steps. response: until the end of a prompt's last chunk; held_s: mean time that
    a prompt has room (from its first chunk on).
    """

    busy: Floats
    response: Response
    held_s: Floats


def slots_of(steps: StepSeconds, capacity: Floats) -> Floats:
    return np.maximum(steps.ranks[..., 0], capacity)


def at_bunch(steps: StepSeconds, curve: Floats, n: Floats, k: Floats) -> Floats:
    """`bunch_s` or `bunch_steps` with n sequences beside k prompts; k linear between its nodes and beyond."""
    row = (
        Place.on(steps.batches, n).of(curve)
        if steps.mixes
        else np.broadcast_to(curve[:, :, 0], (*n.shape, curve.shape[3]))
    )
    grid = np.broadcast_to(steps.bunches, (*n.shape, steps.bunches.shape[2]))
    place = Place.on(steps.bunches, np.maximum(k, 1.0))
    return place.of(row) if grid.shape[2] > 1 else row[..., 0]


def lone_of(steps: StepSeconds, curve: Floats, n: Floats) -> Floats:
    """`lone_s` or `lone_steps`: [points, draws, bins]."""
    if steps.mixes:
        return Place.on(steps.batches, n).of(curve)
    return np.broadcast_to(curve[:, :, 0], (*n.shape, curve.shape[3]))


@dataclass(frozen=True)
class Arrivals:
    """How prompts come to an instance.

    others: share of the rate that a prompt meets (1 in an open loop). burst: share of the time in which they come, all
    of them (1: evenly); see `closed_loop`. wander_s: standard deviation of when one comes within that; bounds queues.
    instances: that share the queue, as routers that look at loads make it.
    """

    others: Floats
    burst: Floats
    wander_s: Floats
    wave: Floats
    instances: Floats

    def queue_s(self, queue_s: Floats, service_s: Floats, scv: Floats) -> Floats:
        """In a burst arrivals come no faster than prompts were once served, shuffled since. Of J that may change places
        with one about sqrt(J) / 2 are ahead of their turn: a wait of sqrt(J) S / 2, J = wander / S, at most. Lengths
        make a queue at full load walk at random, on average over the n of a wave 2/3 sqrt(2 n cs^2 / pi) S."""
        most = 0.5 * np.sqrt(self.wander_s * np.maximum(service_s, 0.0))
        most = most + 2 / 3 * np.sqrt(2 / np.pi * self.wave * scv) * service_s
        return np.where(self.burst < 1, np.minimum(queue_s, most), queue_s)


def evenly(like: Floats, instances: Floats) -> Arrivals:
    """Poisson arrivals."""
    one = np.ones_like(like)
    return Arrivals(one, one, 0 * one, one, instances)


def prefill_alone(
    steps: StepSeconds, rate: Floats, arrivals: Arrivals, demand: DemandArrays, overhead_s: Floats
) -> Prefilling:
    """A pool that prefills and does nothing else.

    rate: prompts/s of one instance.

    Steps follow each other while there are prompts. Where a step takes several prompts (they are shorter than the token
    budget), those that came in one step share the next: with lambda prompts/s a step of S has lambda S of them, or one
    where none came (chance exp(-lambda S)) and the station idled for 1/lambda.
    """
    zero = np.zeros_like(rate)
    met = rate * arrivals.others / arrivals.burst
    capacity, full = steps.capacity[:, :, 0], steps.full_s[:, :, 0]
    slots = slots_of(steps, capacity)
    busy = np.minimum(rate * full, 1.0)
    one = at_bunch(steps, steps.bunch_s, zero, zero + 1)
    lone_steps = at_bunch(steps, steps.bunch_steps, zero, zero + 1)
    longest = full * capacity
    # In bursts the groups of the start live on, and those were as large as they could be.
    together = np.where(arrivals.burst < 1, np.clip(arrivals.wave / arrivals.instances, 1.0, slots), 1.0)
    step = at_bunch(steps, steps.bunch_s, zero, together)
    for _ in range(ROUNDS):
        coming = np.minimum(met * step, slots)
        found = at_bunch(steps, steps.bunch_s, zero, np.minimum(coming + np.exp(-coming), slots))
        step = np.sqrt(step * np.maximum(found, 1e-12))
    coming = np.minimum(met * step, slots)
    gathers = lone_steps <= 1 + 1e-6
    idle = np.exp(-met * step)
    loaded = np.minimum(met * full, 1.0)
    running = np.where(gathers, met * step / np.maximum(met * step + idle, 1e-12), 1 - (1 - loaded) ** slots)
    shared = slots * arrivals.instances
    chance, queue_s = queueing(shared, loaded, np.where(gathers, longest, one), demand.scv)
    chance = np.minimum(chance, running)
    queue_s = arrivals.queue_s(queue_s, full, demand.scv)
    active = np.where(gathers, running * coming, met * one)
    beside = at_bunch(steps, steps.bunch_s, zero, np.minimum(1 + active, slots)) - one
    own = lone_of(steps, steps.lone_s, zero) + np.maximum(beside, 0.0)[..., None]
    step_s = np.where(gathers, step, one / lone_steps)
    queue_s = queue_s + np.where(gathers, step_s / 2, 0.0)
    response = Response(overhead_s + zero, own, running - chance, step_s, chance, queue_s, zero)
    return Prefilling(busy, response, own.mean(axis=-1))


@dataclass(frozen=True)
class HandoverArrays:
    """KV from prefill to decode, [points, 1] each.

    handshake_s. source_s, destination_s: one prompt's KV on the link of a prefill rank and of a decode rank, alone.
    overlapped: whether it leaves layer by layer while the prompt's last chunk is computed; layers: of the model.
    held: prompts whose KV a prefill instance has room for.
    """

    handshake_s: Floats
    source_s: Floats
    destination_s: Floats
    overlapped: Floats
    layers: Floats
    held: Floats

    def busy(self, rate: Floats, sources: Floats, destinations: Floats) -> Floats:
        """Use of the busier end's links. rate: of the cluster; sources, destinations: ranks of each pool."""
        return np.asarray(rate * np.maximum(self.source_s / sources, self.destination_s / destinations))

    def seconds(self, busy: Floats, last_chunk_s: Floats) -> Floats:
        """From the end of the prompt until all KV has arrived. busy: links, by others; shared fairly, t / (1 - rho)."""
        moved = np.maximum(self.source_s, self.destination_s) / (1 - np.minimum(busy, BUSIEST))
        begun = np.maximum(0.0, self.handshake_s + moved * (1 - 1 / self.layers) - last_chunk_s)
        late: Floats = np.where(self.overlapped > 0, begun + moved / self.layers, self.handshake_s + moved)
        return late

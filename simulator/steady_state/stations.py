"""Stations of a cluster in equilibrium, as `simulator.des` plays them: prefill, decode, both in one.

A slot is a place for a prompt in a step: the prompts of a full step where they are shorter than the token budget, a
rank where they are longer and take several steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simulator.steady_state.arrays import Array, Place
from simulator.steady_state.step_table import StepSeconds
from simulator.steady_state.traffic import Traffic
from simulator.steady_state.waits import BUSIEST, Response, queueing

ROUNDS = 8  # of the fixed point of a prefill step
WATERMARK = 0.01  # share of the KV room that newcomers leave free, as `simulator.des` has it
FEWEST_STEPS = 1e-3  # decode steps of a request that has none


@dataclass(frozen=True)
class Demand:
    """Lengths of requests, [points, 1].

    several: share of requests with two tokens or more. further: their mean tokens after the first. median_further: the
    median; spread: their standard deviation over all requests. context: mean of a running sequence, over time. scv:
    squared variation of prompts.
    """

    prompt: Array
    output: Array
    several: Array
    further: Array
    median_further: Array
    spread: Array
    context: Array
    scv: Array

    @classmethod
    def of(cls, traffic: Sequence[Traffic]) -> Demand:
        def column(values: list[float]) -> Array:
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

    def decode_steps(self, acceptance: Array) -> Array:
        """Mean decode steps of a request. A step emits A tokens in the mean, whole ones, and the last may emit more
        than are wanted: of T tokens after the first, (T - 1/2) / A + 1/2 steps."""
        steps: Array = self.several * steps_of(self.further, acceptance)
        return np.maximum(FEWEST_STEPS, steps)


def steps_of(tokens: Array, acceptance: Array) -> Array:
    """Decode steps until so many tokens are emitted, in the mean over where the fraction stands."""
    return np.asarray((tokens - 0.5) / acceptance + 0.5)


@dataclass(frozen=True)
class KvRoom:
    """KV of one attention rank, [points, 1] each. [B]"""

    capacity: Array
    per_token: Array
    per_sequence: Array

    def sequences(self, context: Array) -> Array:
        """Sequences of so many tokens that fill a rank."""
        return np.asarray(self.capacity / (self.per_sequence + self.per_token * np.maximum(context, 1.0)))


@dataclass(frozen=True)
class Prefilling:
    """Prompts of one instance, at a rate.

    busy: share of the capacity of full steps. response: until the end of a prompt's last chunk; held_s: mean time that
    a prompt has room (from its first chunk on).
    """

    busy: Array
    response: Response
    held_s: Array


def _slots(steps: StepSeconds, capacity: Array) -> Array:
    return np.maximum(steps.ranks[..., 0], capacity)


def _at_bunch(steps: StepSeconds, curve: Array, n: Array, k: Array) -> Array:
    """`bunch_s` or `bunch_steps` with n sequences beside k prompts; k linear between its nodes and beyond."""
    row = (
        Place.on(steps.batches, n).of(curve)
        if steps.mixes
        else np.broadcast_to(curve[:, :, 0], (*n.shape, curve.shape[3]))
    )
    grid = np.broadcast_to(steps.bunches, (*n.shape, steps.bunches.shape[2]))
    place = Place.on(steps.bunches, np.maximum(k, 1.0))
    return place.of(row) if grid.shape[2] > 1 else row[..., 0]


def _own(steps: StepSeconds, curve: Array, n: Array) -> Array:
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

    others: Array
    burst: Array
    wander_s: Array
    instances: Array

    def queue_s(self, queue_s: Array, service_s: Array) -> Array:
        """In a burst arrivals come no faster than prompts were once served, shuffled since. Of J that may change places
        with one about sqrt(J) / 2 are ahead of their turn: a wait of sqrt(J) S / 2, J = wander / S, at most."""
        most = 0.5 * np.sqrt(self.wander_s * np.maximum(service_s, 0.0))
        return np.where(self.burst < 1, np.minimum(queue_s, most), queue_s)


def evenly(like: Array, instances: Array) -> Arrivals:
    """Poisson arrivals."""
    one = np.ones_like(like)
    return Arrivals(one, one, np.full_like(like, np.inf), instances)


def prefill_alone(steps: StepSeconds, rate: Array, arrivals: Arrivals, demand: Demand, overhead_s: Array) -> Prefilling:
    """A pool that prefills and does nothing else.

    rate: prompts/s of one instance.

    Steps follow each other while there are prompts. Where a step takes several prompts (they are shorter than the token
    budget), those that came in one step share the next: with lambda prompts/s a step of S has lambda S of them, or one
    where none came (chance exp(-lambda S)) and the station idled for 1/lambda.
    """
    zero = np.zeros_like(rate)
    met = rate * arrivals.others / arrivals.burst
    capacity, full = steps.capacity[:, :, 0], steps.full_s[:, :, 0]
    slots = _slots(steps, capacity)
    busy = np.minimum(rate * full, 1.0)
    one = _at_bunch(steps, steps.bunch_s, zero, zero + 1)
    lone_steps = _at_bunch(steps, steps.bunch_steps, zero, zero + 1)
    longest = full * capacity
    step = one
    for _ in range(ROUNDS):
        coming = np.minimum(met * step, slots)
        found = _at_bunch(steps, steps.bunch_s, zero, np.minimum(coming + np.exp(-coming), slots))
        step = np.sqrt(step * np.maximum(found, 1e-12))
    coming = np.minimum(met * step, slots)
    gathers = lone_steps <= 1 + 1e-6
    idle = np.exp(-met * step)
    loaded = np.minimum(met * full, 1.0)
    running = np.where(gathers, met * step / np.maximum(met * step + idle, 1e-12), 1 - (1 - loaded) ** slots)
    shared = slots * arrivals.instances
    chance, queue_s = queueing(shared, loaded, np.where(gathers, longest, one), demand.scv)
    chance = np.minimum(chance, running)
    queue_s = arrivals.queue_s(queue_s, full)
    active = np.where(gathers, running * coming, met * one)
    beside = _at_bunch(steps, steps.bunch_s, zero, np.minimum(1 + active, slots)) - one
    own = _own(steps, steps.lone_s, zero) + np.maximum(beside, 0.0)[..., None]
    step_s = np.where(gathers, step, one / lone_steps)
    queue_s = queue_s + np.where(gathers, step_s / 2, 0.0)
    response = Response(overhead_s + zero, own, running - chance, step_s, chance, queue_s, zero)
    return Prefilling(busy, response, own.mean(axis=-1))


@dataclass(frozen=True)
class Mixing:
    """An instance that prefills and decodes. step_s: mean decode step as its sequences see it, prompts included."""

    step_s: Array
    prefill: Prefilling


def mixed(
    steps: StepSeconds,
    running: Array,
    seen: Array,
    decode_steps: Array,
    arrivals: Arrivals,
    demand: Demand,
    overhead_s: Array,
    *,
    closed: bool,
) -> Mixing:
    """Steps of an instance on which `running` sequences decode in the mean and `seen` as one of them sees it.

    Of a request's decode_steps, each ends running / decode_steps requests, whose successors bring as many prompts: a
    a step, and a / burst while they come. A prompt needs c steps (1 where it fits beside others), so
    w = a c / burst are under way; with s slots some are with chance P = 1 - (1 - w / s)^s, and then k = w / P.

        S = S0(n) + a (S(n, k) - c S0(n)) / k     where prompts ride in the steps that decode
        S = S0(n) + a W(k) / k                    where they have steps of their own

    closed: successors are sent as a step ends. In the time until they are queued further steps end; the prompts of all
    of these find the long step of the first one running, and share the next. In an open loop a prompt comes at any time.
    """
    arriving = running * arrivals.others / decode_steps
    around = running * arrivals.others
    alone = Place.on(steps.batches, seen).of(steps.decode_s)
    lone_steps = _own(steps, steps.lone_steps, around).mean(axis=-1)
    if steps.mixes:
        capacity = Place.on(steps.batches, running).of(steps.capacity)
    else:
        capacity = steps.capacity[:, :, 0] + 0 * running
    slots = _slots(steps, capacity)
    one = _at_bunch(steps, steps.bunch_s, around, np.ones_like(around))
    under_way = arriving / arrivals.burst * (lone_steps if steps.mixes else 1.0)
    offered = np.minimum(under_way, slots)
    some = 1 - (1 - offered / slots) ** slots
    k = np.where(some > 0, offered / np.maximum(some, 1e-12), 1.0)
    behind = np.zeros_like(k)
    if closed:
        long = one / lone_steps > overhead_s
        behind = np.where(
            long, np.minimum(arriving / arrivals.burst * overhead_s / np.maximum(alone, 1e-9), slots), 0.0
        )
        k = (k + behind) / (2 - np.exp(-behind))
    bunch_s = _at_bunch(steps, steps.bunch_s, seen, k)
    if steps.mixes:
        more = np.maximum(bunch_s - _at_bunch(steps, steps.bunch_steps, seen, k) * alone, 0.0)
        step = alone + arriving * more / k
        busy = np.minimum(running / decode_steps / capacity, 1.0)
        rest = step if not closed else alone
    else:
        step = alone + arriving * bunch_s / k
        busy = np.minimum(running / decode_steps * steps.full_s[:, :, 0] / step, 1.0)
        rest = (alone**2 + arriving / k * bunch_s**2) / np.maximum(step, 1e-12)
        if not closed:
            offered = np.minimum(arriving * rest / np.maximum(step, 1e-12), slots)
    with_me = np.minimum(1 + offered, np.maximum(slots, 1.0))
    beside = np.maximum(_at_bunch(steps, steps.bunch_s, around, with_me) - one, 0.0)
    own = _own(steps, steps.lone_s, around) + beside[..., None]
    loaded = np.minimum(busy * arrivals.others / arrivals.burst, 1.0)
    chance, queue_s = queueing(slots * arrivals.instances, loaded, one, demand.scv)
    queue_s = arrivals.queue_s(queue_s, one / slots)
    if closed:
        some_run = around / np.maximum(around + 1, 1.0)
        working = 1 - (1 - some_run) ** (around + 1)
        if not steps.mixes:
            chance = np.zeros_like(chance)
    else:
        working = 1 - np.exp(-around)
    chance = np.minimum(chance, working)
    wait = working - chance
    fixed = overhead_s + np.zeros_like(step)
    if closed:
        early = overhead_s < alone
        fixed = fixed + np.where(early & (overhead_s > 0), wait * np.maximum(alone - overhead_s, 0.0), 0.0)
        wait = np.where(early, 0.0, wait)
        late = behind / np.maximum(offered + behind, 1e-12)
        fixed = fixed + np.where(behind > 0, late * np.maximum(one / lone_steps - overhead_s / 2, 0.0), 0.0)
    response = Response(fixed, own, wait, rest, chance, queue_s, np.zeros_like(step))
    return Mixing(step, Prefilling(busy, response, own.mean(axis=-1)))


@dataclass(frozen=True)
class Handover:
    """KV from prefill to decode, [points, 1] each.

    handshake_s; transfer_s: of one prompt's KV on the link of a rank, alone. overlapped: whether it leaves layer by
    layer while the prompt's last chunk is computed; layers: of the model. held: prompts whose KV a prefill instance
    has room for.
    """

    handshake_s: Array
    transfer_s: Array
    overlapped: Array
    layers: Array
    held: Array

    def seconds(self, rate: Array, ranks: Array, last_chunk_s: Array) -> Array:
        """From the end of the prompt until all KV has arrived. rate: of one prefill instance; its ranks' links are
        shared by what leaves at once: t / (1 - rho)."""
        busy = np.minimum(rate * self.transfer_s / ranks, BUSIEST)
        moved = self.transfer_s / (1 - busy)
        begun = np.maximum(0.0, self.handshake_s + moved * (1 - 1 / self.layers) - last_chunk_s)
        late: Array = np.where(self.overlapped > 0, begun + moved / self.layers, self.handshake_s + moved)
        return late

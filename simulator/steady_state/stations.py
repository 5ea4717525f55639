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
    median. context: mean of a running sequence, over time. scv: squared variation of prompts.
    """

    prompt: Array
    output: Array
    several: Array
    further: Array
    median_further: Array
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


def prefill_alone(steps: StepSeconds, rate: Array, others: Array, demand: Demand, overhead_s: Array) -> Prefilling:
    """A pool that prefills and does nothing else.

    rate: prompts/s of one instance. others: share of that rate that a prompt meets (1 in an open loop).

    Steps follow each other while there are prompts. Where a step takes several prompts (they are shorter than the token
    budget), those that came in one step share the next: with lambda prompts/s a step of S has lambda S of them, or one
    where none came (chance exp(-lambda S)) and the station idled for 1/lambda.
    """
    zero = np.zeros_like(rate)
    met = rate * others
    capacity, full = steps.capacity[:, :, 0], steps.full_s[:, :, 0]
    slots = _slots(steps, capacity)
    busy = np.minimum(rate * full, 1.0)
    lone_steps = _at_bunch(steps, steps.bunch_steps, zero, zero + 1)
    step = _at_bunch(steps, steps.bunch_s, zero, zero + 1)
    longest = full * capacity
    for _ in range(ROUNDS):
        coming = np.minimum(met * step, slots)
        found = _at_bunch(steps, steps.bunch_s, zero, np.minimum(coming + np.exp(-coming), slots))
        step = np.sqrt(step * np.maximum(np.minimum(found, np.maximum(longest, found)), 1e-12))
    coming = np.minimum(met * step, slots)
    gathers = lone_steps <= 1 + 1e-6
    idle = np.exp(-met * step)
    running = np.where(
        gathers, met * step / np.maximum(met * step + idle, 1e-12), 1 - (1 - np.minimum(busy * others, 1.0)) ** slots
    )
    one = _at_bunch(steps, steps.bunch_s, zero, zero + 1)
    chance, queue_s = queueing(slots, np.minimum(met * full, 1.0), np.where(gathers, longest, one), demand.scv)
    chance = np.minimum(chance, running)
    active = np.where(gathers, running * coming, met * one)
    beside = _at_bunch(steps, steps.bunch_s, zero, np.minimum(1 + active, slots)) - one
    own = _own(steps, steps.lone_s, zero) + np.maximum(beside, 0.0)[..., None]
    step_s = np.where(gathers, step, one / lone_steps)
    response = Response(
        overhead_s + zero, own, running - chance, step_s, chance, queue_s + np.where(gathers, step_s / 2, 0.0), zero
    )
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
    others: Array,
    decode_steps: Array,
    demand: Demand,
    overhead_s: Array,
    closed: bool,
) -> Mixing:
    """Steps of an instance on which `running` sequences decode in the mean and `seen` as one of them sees it.

    Of a request's decode_steps, each ends running / decode_steps requests, whose successors bring as many prompts: a
    a step. A prompt needs c steps (1 where it fits beside others), so a c are under way; with s slots some are with
    chance P = 1 - (1 - a c / s)^s, and then k = a c / P.

        S = S0(n) + P (S(n, k) - S0(n))       where prompts ride in the steps that decode
        S = S0(n) + (1 - exp(-a)) W(k)        where they have steps of their own

    closed: successors are sent as a step ends, so that they wait for the rest of the next one once they are queued;
    in an open loop a prompt comes at any time.
    """
    arriving = running * others / decode_steps
    around = running * others
    alone = Place.on(steps.batches, seen).of(steps.decode_s)
    with_me = _own(steps, steps.lone_steps, around).mean(axis=-1)
    if steps.mixes:
        capacity = Place.on(steps.batches, running).of(steps.capacity)
        full = Place.on(steps.batches, running).of(steps.full_s)
        slots = _slots(steps, capacity)
        offered = np.minimum(arriving * with_me, slots)
        some = 1 - (1 - offered / slots) ** slots
        k = np.where(some > 0, offered / np.maximum(some, 1e-12), 1.0)
        per_step = _at_bunch(steps, steps.bunch_s, seen, k) / _at_bunch(steps, steps.bunch_steps, seen, k)
        step = alone + some * np.maximum(per_step - alone, 0.0)
        busy = np.minimum(running / decode_steps / capacity, 1.0)
        met = offered
        rest = step
    else:
        capacity, full = steps.capacity[:, :, 0], steps.full_s[:, :, 0]
        slots = _slots(steps, capacity)
        some = 1 - np.exp(-arriving)
        k = np.where(some > 0, arriving / np.maximum(some, 1e-12), 1.0)
        prompts_s = _at_bunch(steps, steps.bunch_s, seen, k)
        step = alone + some * prompts_s
        busy = np.minimum(running / decode_steps * full / step, 1.0)
        rest = (alone**2 + some * prompts_s**2) / np.maximum(step, 1e-12)
        met = arriving * rest / np.maximum(step, 1e-12)
    one = _at_bunch(steps, steps.bunch_s, around, np.ones_like(around))
    beside = _at_bunch(steps, steps.bunch_s, around, 1 + met) - one
    own = _own(steps, steps.lone_s, around) + np.maximum(beside, 0.0)[..., None]
    working = (
        1 - np.exp(-around)
        if not closed
        else 1 - (1 - np.minimum(around / np.maximum(around + 1, 1.0), 1.0)) ** (around + 1)
    )
    chance, queue_s = queueing(slots, busy * others, one, demand.scv)
    chance = np.minimum(chance, working)
    wait = working - chance
    fixed = overhead_s + np.zeros_like(step)
    if closed:
        early = overhead_s < alone
        fixed = fixed + np.where(early, wait * np.maximum(alone - overhead_s, 0.0) * (overhead_s > 0), 0.0)
        wait = np.where(early, 0.0, wait)
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

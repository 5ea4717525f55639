"""Instances that prefill and decode.

Of a request's N decode steps each ends n / N requests, whose successors bring as many prompts: a decode step of n
sequences has a = n / N of them to work off, k at a time:

    S = S0(n) + a c (S(n, k) - S0(n)) / k     where prompts ride in decode steps, c of them each, k in one of S(n, k)
    S = S0(n) + a W(k) / k                    where they have steps of their own, before those of decode

How many share their steps, k, is what a closed and an open loop differ in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.model.arrays import Floats
from simulator.steady_state.arrays import Place
from simulator.steady_state.stations import Arrivals, DemandArrays, Prefilling, at_bunch, lone_of, slots_of
from simulator.steady_state.step_table import StepSeconds
from simulator.steady_state.waits import Response, queueing

ROUNDS = 6  # of the fixed point of an open loop's groups
MOST_IN_A_RUN = 30.0  # exponent beyond which prompts never stop to come


@dataclass(frozen=True)
class Mixing:
    """step_s: mean decode step as the sequences of an instance see it, prompts included."""

    step_s: Floats
    prefill: Prefilling


@dataclass(frozen=True)
class _Load:
    """What an instance has to do in a step: a decode step of `alone` seconds, `arriving` prompts that take `chunks`
    steps and, one alone, `one_s`. seen, around: sequences on it as they see it, and as a prompt does."""

    steps: StepSeconds
    seen: Floats
    around: Floats
    arriving: Floats
    alone: Floats
    chunks: Floats
    one_s: Floats
    slots: Floats
    capacity: Floats

    @classmethod
    def of(cls, steps: StepSeconds, running: Floats, seen: Floats, decode_steps: Floats, arrivals: Arrivals) -> _Load:
        around = running * arrivals.others
        capacity = Place.on(steps.batches, running).of(steps.capacity) if steps.mixes else steps.capacity[:, :, 0]
        return cls(
            steps,
            seen,
            around,
            around / decode_steps,
            Place.on(steps.batches, seen).of(steps.decode_s),
            lone_of(steps, steps.lone_steps, around).mean(axis=-1),
            at_bunch(steps, steps.bunch_s, around, np.ones_like(around)),
            slots_of(steps, capacity) + 0 * running,
            capacity + 0 * running,
        )

    def added_s(self, k: Floats) -> Floats:
        """What each of k prompts under way together adds to decode."""
        bunch_s = at_bunch(self.steps, self.steps.bunch_s, self.seen, k)
        if not self.steps.mixes:
            return np.asarray(bunch_s / k)
        per_step = bunch_s / at_bunch(self.steps, self.steps.bunch_steps, self.seen, k)
        return np.asarray(self.chunks * np.maximum(per_step - self.alone, 0.0) / k)

    def step_s(self, k: Floats) -> Floats:
        """Decode step, prompts included, where k share theirs."""
        return np.asarray(self.alone + self.arriving * self.added_s(k))

    def own_s(self, together: Floats) -> Floats:
        """[points, draws, bins] a prompt of each length in a group of `together`."""
        group = np.clip(together, 1.0, self.slots)
        more = np.maximum(at_bunch(self.steps, self.steps.bunch_s, self.around, group) - self.one_s, 0.0)
        return np.asarray(lone_of(self.steps, self.steps.lone_s, self.around) + more[..., None])

    def in_step(self, prompts: Floats) -> tuple[Floats, Floats]:
        """With so many prompts a step, independent of each other: how many are under way, and how many where any is."""
        each = self.chunks if self.steps.mixes else 1.0
        offered = np.minimum(prompts * each, self.slots)
        some = 1 - (1 - offered / self.slots) ** self.slots
        return offered, np.where(some > 0, offered / np.maximum(some, 1e-12), 1.0)

    def busy(self, arriving: Floats, step_s: Floats) -> Floats:
        """Share of the prefill capacity in use."""
        if self.steps.mixes:
            return np.minimum(arriving / self.capacity, 1.0)
        return np.minimum(arriving * self.steps.full_s[:, :, 0] / step_s, 1.0)


def mixed_closed(
    steps: StepSeconds,
    running: Floats,
    others: Floats,
    decode_steps: Floats,
    arrivals: Arrivals,
    demand: DemandArrays,
    overhead_s: Floats,
) -> Mixing:
    """`running` sequences decode in the mean; one of them sees `others` of them beside itself.

    Successors are sent as a step ends, a / burst after each while they come. A prompt needs c steps, so
    w = a c / burst are under way; with s slots some are with chance P = 1 - (1 - w / s)^s, and then k = w / P. In the
    time until a request is queued further steps end, y = a / burst (overhead) / S0 requests more: all of these come
    while the first is prefilled, d steps later (at least one), and share what follows: k = (k + y) c / (c + d).
    """
    load = _Load.of(steps, running, 1 + running * others, decode_steps, arrivals)
    ending = load.arriving / arrivals.burst
    offered, k = load.in_step(ending)
    later = ending * overhead_s / np.maximum(load.alone, 1e-9)
    group_s = at_bunch(steps, steps.bunch_s, load.around, k)
    later = np.where(group_s > overhead_s, later, 0.0)
    behind = np.minimum(later, load.slots)
    delay = np.clip(overhead_s * load.chunks / group_s, 1.0, load.chunks)
    k = (k + behind) * load.chunks / (load.chunks + (1 - np.exp(-behind)) * delay)
    k = np.clip(k, 1.0, load.slots)
    step = load.step_s(k)
    busy = load.busy(running / decode_steps, step)
    chance, queue_s = queueing(load.slots, np.minimum(busy * others / arrivals.burst, 1.0), load.one_s, demand.scv)
    queue_s = arrivals.queue_s(queue_s, load.one_s / load.slots, demand.scv)
    full_s = Place.on(steps.batches, load.around).of(steps.full_s) if steps.mixes else steps.full_s[:, :, 0]
    if not steps.mixes:  # no request ends in a run of prompts, so that only those of the run queue
        chance = np.zeros_like(chance)
    # Those that come within one overhead of each other and do not find a slot are prefilled one after the other.
    beyond = np.maximum(0.0, np.minimum(ending + later, load.around) + 1 - load.slots)
    fixed = overhead_s + np.maximum(0.0, beyond / 2 * full_s - chance * queue_s)
    working = 1 - (1 - load.around / (load.around + 1)) ** (load.around + 1)
    chance = np.minimum(chance, working)
    # The next step has begun when a request is queued; if it is a decode step, its rest is known.
    early = overhead_s < load.alone
    rest = np.where(overhead_s > 0, np.maximum(load.alone - overhead_s, 0.0), 0.0)
    in_step = np.where(early, 0.0, working - chance)
    fixed = fixed + np.where(early, (working - chance) * rest, 0.0)
    # Those behind wait for the rest of the first one's step.
    late = behind / np.maximum(offered + behind, 1e-12)
    fixed = fixed + late * np.maximum(group_s / load.chunks - overhead_s / 2, 0.0)
    own = load.own_s(1 + offered)
    response = Response(fixed, own, in_step, load.alone, chance, queue_s, np.zeros_like(step))
    return Mixing(step, Prefilling(busy, response, own.mean(axis=-1)))


def mixed_open(
    steps: StepSeconds,
    running: Floats,
    seen: Floats,
    decode_steps: Floats,
    arrivals: Arrivals,
    demand: DemandArrays,
    overhead_s: Floats,
) -> Mixing:
    """`running` sequences decode in the mean, `seen` as one of them sees it; prompts come at any time, lambda = a / S.

    Where prompts fit into one step, those that came in one step share the next. With P = 1 - exp(-lambda S0) a decode
    step is followed by one with prompts, and with chance 1 - exp(-lambda W) that by another, so of all steps
        f = P / (P + exp(-lambda W))              have prompts where they ride in decode steps, k = a / f
        r = P exp(lambda W)                       come to each decode step where they have their own, k = a / r.
    Prompts of several steps are under way together as in M/G/infinity: k as in `mixed_closed` where they ride in
    decode steps; in a busy period of their own exp(lambda W) - 1 come beside those that began it.
    """
    load = _Load.of(steps, running, seen, decode_steps, arrivals)
    one_step = load.chunks <= 1 + 1e-6
    _, k = load.in_step(load.arriving)
    for _ in range(ROUNDS):
        step = load.step_s(k)
        rate = load.arriving / step
        bunch_s = at_bunch(steps, steps.bunch_s, load.seen, k)
        chance = 1 - np.exp(-rate * load.alone)
        stays = np.exp(np.minimum(rate * bunch_s, MOST_IN_A_RUN))
        if steps.mixes:
            several = load.in_step(load.arriving)[1]
            found = load.arriving * (1 + 1 / np.maximum(chance * stays, 1e-12))
        else:
            run = rate * bunch_s / np.maximum(stays - 1, 1e-12)
            several = (rate * load.alone / np.maximum(chance, 1e-12) + stays - 1) * np.where(rate > 0, run, 1.0)
            found = load.arriving / np.maximum(chance * stays, 1e-12)
        k = np.sqrt(k * np.clip(np.where(one_step, found, several), 1.0, load.slots))
    step = load.step_s(k)
    rate = load.arriving / step
    bunch_s = at_bunch(steps, steps.bunch_s, load.seen, k)
    # Lengths of the steps that a prompt finds, by time.
    if steps.mixes:
        share = np.minimum(load.arriving * load.chunks / k, 1.0)
        rest = ((1 - share) * load.alone**2 + share * (bunch_s / load.chunks) ** 2) / step
        offered = np.where(one_step, rate * rest, load.in_step(load.arriving)[0])
    else:
        per_step = load.arriving / k
        rest = (load.alone**2 + per_step * bunch_s**2 / load.chunks) / step
        offered = rate * np.where(one_step, rest, bunch_s)
    own = load.own_s(1 + offered)
    busy = load.busy(running / decode_steps, step)
    chance, queue_s = queueing(load.slots * arrivals.instances, busy, load.one_s, demand.scv)
    working = 1 - np.exp(-load.around)
    chance = np.minimum(chance, working)
    fixed = overhead_s + np.zeros_like(step)
    response = Response(fixed, own, working - chance, rest, chance, queue_s, np.zeros_like(step))
    return Mixing(step, Prefilling(busy, response, own.mean(axis=-1)))

"""Waiting in front of servers, in closed form, on arrays."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from simulator.model.arrays import Floats

HALVINGS = 30  # of an interval of times, to 1e-9 of it
BUSIEST = 0.995  # utilisation above which a station counts as saturated


def queueing(
    servers: Floats, busy: Floats, service_s: Floats, scv: Floats | float, arrival_scv: Floats | float = 1.0
) -> tuple[Floats, Floats]:
    """Chance that an arrival finds all servers busy, and the mean wait of those that do. [-, s]

    servers: at least 1, whole or not. busy: utilisation of each. scv: squared coefficient of variation of the service.

        P = rho^(sqrt(2 (c + 1)) - 1)        W | P = S / (c (1 - rho)) (ca^2 + cs^2) / 2

    exact for M/M/1 and M/G/1. Reference: Sakasegawa, Ann. Inst. Stat. Math. 29 (1977); Allen and Cunneen.

    >>> [round(float(x), 3) for x in queueing(np.array(1.0), np.array(0.5), np.array(1.0), 1.0)]
    [0.5, 2.0]
    """
    rho = np.clip(busy, 0.0, BUSIEST)
    chance = rho ** (np.sqrt(2 * (servers + 1)) - 1)
    return chance, service_s / (servers * (1 - rho)) * (scv + arrival_scv) / 2


@dataclass(frozen=True)
class Response:
    """What a request takes: a fixed time, its own work by length, and a wait. [points, draws] each, own [.., bins].

    The wait is none, or with chance `in_step` uniform up to `step_s` (the rest of the step that runs), or with chance
    `in_queue` exponential with mean `queue_s`. backlog_s: what all wait beyond that, in saturation.
    """

    fixed_s: Floats
    own_s: Floats
    in_step: Floats
    step_s: Floats
    in_queue: Floats
    queue_s: Floats
    backlog_s: Floats

    @property
    def mean_s(self) -> Floats:
        wait = self.in_step * self.step_s / 2 + self.in_queue * self.queue_s
        mean: Floats = self.fixed_s + self.own_s.mean(axis=-1) + wait + self.backlog_s
        return mean

    def backlogged(self, backlog_s: Floats, saturated: NDArray[np.bool_]) -> Response:
        """With a queue that never empties: then all wait about alike, chance waits are part of it."""
        chance_s = np.where(saturated, self.in_queue * self.queue_s, 0.0)
        return replace(self, in_queue=np.where(saturated, 0.0, self.in_queue), backlog_s=backlog_s + chance_s)

    def beyond(self, at_s: Floats) -> Floats:
        """Share of requests that take longer."""
        slack = (at_s - self.fixed_s - self.backlog_s)[..., None] - self.own_s
        rest = np.clip(slack / np.maximum(self.step_s, 1e-12)[..., None], 0.0, 1.0)
        tail = np.exp(-np.maximum(slack, 0.0) / np.maximum(self.queue_s, 1e-12)[..., None])
        late = self.in_step[..., None] * (1 - rest) + self.in_queue[..., None] * tail
        share: Floats = np.where(slack < 0, 1.0, late).mean(axis=-1)
        return share

    def percentile_s(self, percentile: Floats | float) -> Floats:
        """By bisection; between lengths the share is a staircase, so a mean of neighbours is taken for it."""
        out = np.asarray(1 - np.asarray(percentile) / 100.0)
        base = self.fixed_s + self.backlog_s
        low, high = base + self.own_s.min(axis=-1), base + self.own_s.max(axis=-1) + self.step_s
        high = high + self.queue_s * np.log(1 + 1 / np.maximum(out, 1e-6))
        low = np.broadcast_to(low, high.shape)
        for _ in range(HALVINGS):
            middle = 0.5 * (low + high)
            over = self.beyond(middle) > out
            low, high = np.where(over, middle, low), np.where(over, high, middle)
        return high

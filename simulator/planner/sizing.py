"""How many instances the traffic needs for the latency limits to hold, for many choices at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.model.arrays import Floats, Mask
from simulator.planner.pools import PoolTable, Pricing, most_at, whole
from simulator.scenario import Slo
from simulator.steady_state.arrays import Place
from simulator.steady_state.open_loop import at_occupancy, open_loop
from simulator.steady_state.stations import steps_of

# Counts are tried from what the load needs to so many times that, and as many more. Waiting has all but gone by then:
# what still misses its limit is slow without any queue. [instances; assumed]
WIDEST = 8
# Of the sequences whose decode steps alone keep the TPOT limit, those that a colocated instance is looked at with.
OCCUPANCIES = np.geomspace(1 / 64, 1.0, 10)[None, :]


@dataclass(frozen=True)
class Limits:
    """What a pool is sized for, [choices, 1] each; infinite where there is no limit. load: share of its capacity."""

    ttft_s: Floats
    tpot_s: Floats
    load: Floats
    percentile: float

    @classmethod
    def of(cls, slos: list[tuple[Slo, float]], percentile: float) -> Limits:
        """slos: limits of each choice and the load it may have."""

        def side(name: str) -> Floats:
            return np.array([[getattr(slo, name) or np.inf] for slo, _ in slos])

        return cls(side("ttft_s"), side("tpot_s"), np.array([[load] for _, load in slos]), percentile)

    def take(self, rows: NDArray[np.intp]) -> Limits:
        return Limits(self.ttft_s[rows], self.tpot_s[rows], self.load[rows], self.percentile)


@dataclass(frozen=True)
class Sized:
    """Fewest instances of each choice, 0 where no number of them keeps the limits, and the bound on what one runs.

    [choices, 1] each.
    """

    instances: Floats
    sequences: Floats


def smallest(low: Floats, holds: Callable[[Floats], Mask]) -> Floats:
    """Fewest from `low` on, up to WIDEST (low + 1), that hold; 0 where none does. More hold wherever fewer do.

    >>> smallest(np.array([[1.0], [5.0], [2.0]]), lambda n: n * n >= np.array([[50.0], [9.0], [1e6]])).ravel().tolist()
    [8.0, 5.0, 0.0]
    """
    high = WIDEST * (low + 1)
    possible = holds(high)
    below, above = low - 1, high
    while np.any((above - below > 1) & possible):
        middle = np.where(above - below > 1, np.floor((below + above) / 2), above)
        enough = holds(middle)
        above = np.where(enough, middle, above)
        below = np.where(enough, below, np.minimum(middle, above - 1))
    return np.where(possible, above, 0.0)


def size_prefill(pricing: Pricing, table: PoolTable, limits: Limits) -> Sized:
    """Fewest prefill instances whose TTFT is inside the limit."""
    rate = pricing.traffic.rate
    full = table.steps.full_s[:, :, 0]

    def holds(instances: Floats) -> Mask:
        found = open_loop(
            pricing.alone(table, instances, table.most), np.full((len(table), 1), rate), limits.percentile
        )
        return (found.ttft_s <= limits.ttft_s) & (rate * full <= limits.load * instances)

    return Sized(smallest(whole(rate * full / limits.load), holds), table.most)


def size_decode(pricing: Pricing, table: PoolTable, limits: Limits) -> Sized:
    """Fewest decode instances whose TPOT is inside the limit. An instance runs no more than it can within the limit."""
    rate, demand = pricing.traffic.rate, pricing.demand
    cap = most_at(table, limits.tpot_s)
    steps = steps_of(demand.further, table.acceptance) * demand.several
    full_s = Place.on(table.steps.batches, cap).of(table.steps.decode_s)
    sustained = np.maximum(cap, 1e-9) / np.maximum(steps * full_s, 1e-12)
    low = np.where(cap >= 1, whole(rate / sustained / limits.load), 1.0)

    def holds(instances: Floats) -> Mask:
        cluster = pricing.alone(table, instances, np.maximum(1.0, np.floor(cap)))
        found = open_loop(cluster, np.full((len(table), 1), rate), limits.percentile)
        return (found.tpot_s <= limits.tpot_s) & (cap >= 1) & (rate <= limits.load * sustained * instances)

    return Sized(smallest(low, holds), np.maximum(1.0, np.floor(cap)))


def size_colocated(pricing: Pricing, table: PoolTable, limits: Limits) -> Sized:
    """Fewest colocated instances that keep TTFT and TPOT.

    The rate of an instance rises with the sequences that it runs: limits are looked at for some numbers of these, then
    for some between the last inside and the first outside.
    """
    rate = pricing.traffic.rate
    most = np.maximum(1.0, most_at(table, limits.tpot_s))
    if table.steps.mixes:  # a step ends n / N requests, and takes no more prompts than fit into it
        most = np.minimum(most, pricing.demand.decode_steps(table.acceptance) * table.steps.capacity[:, :, 0])
    running = most * OCCUPANCIES
    each, over = _rates(pricing, table, limits, running, np.ones_like(running))
    last, after = _around_limit(over)
    ends = (np.take_along_axis(running, place, axis=1) for place in (last, after))
    low, high = ends
    finer = low + (high - low) * np.linspace(0.0, 1.0, OCCUPANCIES.size)
    instances = whole(rate / np.take_along_axis(each, last, axis=1)) + np.zeros_like(finer)
    each, over = _rates(pricing, table, limits, finer, instances)
    most = np.max(np.where(over <= 1, each, 0.0), axis=1, keepdims=True)
    return Sized(np.where(most > 0, whole(rate / np.maximum(most, 1e-12)), 0.0), table.most)


def _rates(
    pricing: Pricing, table: PoolTable, limits: Limits, running: Floats, instances: Floats
) -> tuple[Floats, Floats]:
    """Requests/s of an instance that runs so many sequences, and how many times over its limits or load it then is."""
    found = at_occupancy(pricing.alone(table, instances, table.most), running, limits.percentile)
    each = found.rate / instances
    capacity = np.max(np.where(found.saturated, 0.0, each), axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):  # nothing over nothing: saturated, and seen to below
        over = np.maximum(found.ttft_s / limits.ttft_s, found.tpot_s / limits.tpot_s)
    if (limits.load < 1).any():
        over = np.maximum(over, each / np.maximum(limits.load * capacity, 1e-12))
    return each, np.where(found.saturated, np.inf, over)


def _around_limit(over: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Places of the last point inside the limits, or the first of all, and of the one behind it. [choices, 1]"""
    inside = over <= 1
    last = np.where(inside.any(axis=1), inside.shape[1] - 1 - np.argmax(inside[:, ::-1], axis=1), 0)
    return last[:, None], np.minimum(last + 1, over.shape[1] - 1)[:, None]

"""How many instances the traffic needs for the latency limits to hold."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from simulator.planner.priced_instance import PricedInstance
from simulator.planner.steady_state import (
    PrefillTimes,
    colocated_state,
    fluctuation,
    largest,
    mixed_point,
    prefill_state,
)
from simulator.planner.traffic import Traffic
from simulator.scenario import Slo

# Pools are sized to this share of their capacity at most, so that a queue drains after a burst. [assumed]
MAX_UTILISATION = 0.9
# Counts are tried from what the load needs to so many times that, and as many more, in steps of a 20th of the count.
# Waiting has all but gone by then: what still misses its limit is slow without any queue. [instances; assumed]
WIDEST = 8
STEPS_PER_COUNT = 20


@dataclass(frozen=True)
class Size:
    """Instances of a pool, and the batch at which each still keeps the TPOT limit."""

    instances: int
    max_sequences: int


def size_prefill(
    priced: PricedInstance, traffic: Traffic, times: PrefillTimes, slo: Slo, most_load: float = MAX_UTILISATION
) -> int | None:
    """Fewest prefill instances whose TTFT is inside the limit; None if no number of them is."""
    if slo.ttft_s is not None and min(times.own_s) + priced.latency.first_token_extra_s > slo.ttft_s:
        return None
    first = max(1, math.ceil(traffic.rate * times.mean_s / most_load / priced.ranks))
    for instances in _growing(first):
        state = prefill_state(priced, traffic, times, instances, slo.percentile)
        if slo.ttft_s is None or state.ttft_percentile_s <= slo.ttft_s:
            return instances
    return None


def size_decode(
    priced: PricedInstance, traffic: Traffic, stall_s: float, slo: Slo, most_load: float = MAX_UTILISATION
) -> Size | None:
    """Fewest decode instances whose TPOT is inside the limit; None if no number of them is."""
    extra = stall_s / max(1.0, traffic.mean_output - 1)
    cap = largest(
        priced.sequence_limit(traffic),
        lambda n: slo.tpot_s is None or priced.tpot_s(traffic, n) + extra <= slo.tpot_s,
    )
    mean = largest(cap, lambda n: fluctuation(n, slo.percentile) <= cap)
    if mean == 0:
        return None
    sustained = mean / (traffic.mean_output * priced.tpot_s(traffic, mean))
    instances = math.ceil(traffic.rate / sustained / most_load)
    return Size(instances, cap)


def size_colocated(
    priced: PricedInstance, traffic: Traffic, budget: int, slo: Slo, most_load: float = MAX_UTILISATION
) -> Size | None:
    """Fewest colocated instances that keep TTFT and TPOT; None if no number of them does."""
    point = functools.cache(lambda n: mixed_point(priced, traffic, budget, n))
    cap = largest(priced.sequence_limit(traffic), lambda n: slo.tpot_s is None or point(n).tpot_s <= slo.tpot_s)
    mean = largest(cap, lambda n: fluctuation(n, slo.percentile) <= cap)
    if mean == 0:
        return None
    first = max(1, math.ceil(traffic.rate / point(mean).rate / most_load))
    for instances in _growing(first):
        state = colocated_state(traffic, priced, instances, cap, slo.percentile, point)
        if slo.ttft_s is None or state.ttft_percentile_s <= slo.ttft_s:
            return Size(instances, cap)
    return None


def _growing(first: int) -> Iterator[int]:
    """first, first + 1, ... with steps that widen to about 5% of the count, to eight times the first.

    >>> list(_growing(38))[:7]
    [38, 39, 40, 42, 44, 46, 48]
    """
    n = first
    while n <= WIDEST * first + WIDEST:
        yield n
        n += max(1, n // STEPS_PER_COUNT)

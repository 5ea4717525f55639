"""Which instance of a pool takes a request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Protocol

import numpy as np


class Loaded(Protocol):
    """Anything that can be routed to: `load` counts the work waiting or under way there."""

    @property
    def load(self) -> int: ...
    @property
    def speed(self) -> float:
        """What it is predicted to get done in a second, in a unit that all share."""
        ...

    def weight(self, request: int) -> int:
        """What the request would add to the load."""
        ...

    @property
    def kv_claimed(self) -> float:
        """Share of the KV room that is held, or waited for by sequences that are to come."""
        ...

    def hit_share(self, request: int) -> float:
        """Part of the request's prompt that is in the instance's prefix cache."""
        ...


Router = Callable[[int], int]  # from a request to the index of the instance that takes it
PREFIX_WEIGHT = 2.0  # mean loads that a whole prompt in the cache is worth; assumed
LOYALTY = 2.0  # mean loads up to which a session stays where it was; assumed
load_of: Callable[[Loaded], float] = attrgetter("load")


class Homes:
    """Which instance served each session last.

    sessions: of every request, -1 for one outside sessions.
    """

    def __init__(self, sessions: Sequence[int]) -> None:
        self.session_of = sessions
        self.instance: dict[int, Loaded] = {}


def make_router(
    name: str,
    instances: Sequence[Loaded],
    rng: np.random.Generator,
    homes: Homes | None = None,
    loads: list[int] | None = None,
) -> Router:
    """A router by its name. Where instances are unlike in speed, load is the expected delay, see `_delays`.

    loads: where the instances keep theirs, in their order; none: they are asked.

    round_robin. least_loaded: ties go to the lowest index. power_of_two: the better of two drawn at random.
    kv_aware: the smallest claimed share of KV room, among equals the least loaded.
    prefix_aware: the smallest load / mean load - PREFIX_WEIGHT * share of the prompt in its prefix cache.
    session_affinity: a session stays where it was until the load there, the request included, exceeds LOYALTY times
        the mean; then, and for what is in no session, the least loaded.
    """
    count = len(instances)
    if name == "session_affinity" and homes is not None:
        return _session_affinity(instances, homes)  # also of one instance: sessions come to be at home there
    if count == 1:
        return lambda request: 0
    if name == "least_loaded" and loads is not None and _are_alike(instances):
        return _least(loads)
    makers = {
        "round_robin": _round_robin,
        "least_loaded": _least_loaded,
        "power_of_two": _power_of_two,
        "kv_aware": _kv_aware,
        "prefix_aware": _prefix_aware,
    }
    return makers[name](instances, rng)


def _least(loads: list[int]) -> Router:
    """The first of those with the smallest load; nobody has less than nothing."""
    return lambda request: loads.index(0 if 0 in loads else min(loads))


def _are_alike(instances: Sequence[Loaded]) -> bool:
    return len({instance.speed for instance in instances}) == 1


def _delays(instances: Sequence[Loaded]) -> Callable[[int, Sequence[Loaded]], list[float]]:
    """What routers compare among some of the instances. Where all are equally fast: their load. Where they are unlike:
    the time until each has worked off its load and the request, (load + weight) / speed, which is routing by shortest
    expected delay (SED)."""
    if _are_alike(instances):
        return lambda request, among: list(map(load_of, among))
    mean = sum(instance.speed for instance in instances) / len(instances)  # keeps delays on the scale of loads
    return lambda request, among: [(one.load + one.weight(request)) * (mean / one.speed) for one in among]


def _prefix_aware(instances: Sequence[Loaded], rng: np.random.Generator) -> Router:
    delays = _delays(instances)

    def choose(request: int) -> int:
        loads = delays(request, instances)
        mean = max(1.0, sum(loads) / len(loads))
        scores = [
            load / mean - PREFIX_WEIGHT * instance.hit_share(request)
            for load, instance in zip(loads, instances, strict=True)
        ]
        return scores.index(min(scores))

    return choose


def _round_robin(instances: Sequence[Loaded], rng: np.random.Generator) -> Router:
    state = -1

    def choose(request: int) -> int:
        nonlocal state
        state = (state + 1) % len(instances)
        return state

    return choose


def _least_loaded(instances: Sequence[Loaded], rng: np.random.Generator) -> Router:
    delays = _delays(instances)

    def choose(request: int) -> int:
        loads = delays(request, instances)
        return loads.index(min(loads))

    return choose


def _kv_aware(instances: Sequence[Loaded], rng: np.random.Generator) -> Router:
    delays = _delays(instances)

    def choose(request: int) -> int:
        claims = [
            (instance.kv_claimed, load) for instance, load in zip(instances, delays(request, instances), strict=True)
        ]
        return claims.index(min(claims))

    return choose


def _power_of_two(instances: Sequence[Loaded], rng: np.random.Generator) -> Router:
    count = len(instances)
    delays = _delays(instances)
    drawn: list[tuple[int, int]] = []

    def choose(request: int) -> int:
        if not drawn:  # one call of the generator for many choices
            first = rng.integers(count, size=4096)
            second = (first + rng.integers(1, count, size=4096)) % count
            drawn.extend(zip(first.tolist(), second.tolist(), strict=True))
        a, b = drawn.pop()
        loads = delays(request, (instances[a], instances[b]))
        return a if loads[0] <= loads[1] else b

    return choose


def _session_affinity(instances: Sequence[Loaded], homes: Homes) -> Router:
    places = {id(instance): index for index, instance in enumerate(instances)}
    delays = _delays(instances)
    unlike = not _are_alike(instances)

    def choose(request: int) -> int:
        loads = delays(request, instances)
        least = loads.index(min(loads))
        session = homes.session_of[request]
        if session < 0:
            return least
        chosen = places.get(id(homes.instance.get(session)), least)
        weight = 0 if unlike else instances[chosen].weight(request)  # delays have it
        if loads[chosen] + weight > LOYALTY * (sum(loads) / len(loads) + weight):
            chosen = least
        homes.instance[session] = instances[chosen]
        return chosen

    return choose

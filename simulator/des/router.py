"""Which instance of a pool takes a request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np


class Loaded(Protocol):
    """Anything that can be routed to: `load` counts the work waiting or under way there."""

    @property
    def load(self) -> int: ...


Router = Callable[[], int]  # the index of the instance that takes the next request


def make_router(name: str, instances: Sequence[Loaded], rng: np.random.Generator) -> Router:
    """round_robin, least_loaded (ties go to the lowest index) or power_of_two (better of two drawn at random)."""
    count = len(instances)
    if count == 1:
        return lambda: 0
    return {"round_robin": _round_robin, "least_loaded": _least_loaded, "power_of_two": _power_of_two}[name](
        instances, rng
    )


def _round_robin(instances: Sequence[Loaded], rng: np.random.Generator) -> Router:
    state = -1

    def choose() -> int:
        nonlocal state
        state = (state + 1) % len(instances)
        return state

    return choose


def _least_loaded(instances: Sequence[Loaded], rng: np.random.Generator) -> Router:
    def choose() -> int:
        loads = [instance.load for instance in instances]
        return loads.index(min(loads))

    return choose


def _power_of_two(instances: Sequence[Loaded], rng: np.random.Generator) -> Router:
    count = len(instances)
    drawn: list[tuple[int, int]] = []

    def choose() -> int:
        if not drawn:  # one call of the generator for many choices
            first = rng.integers(count, size=4096)
            second = (first + rng.integers(1, count, size=4096)) % count
            drawn.extend(zip(first.tolist(), second.tolist(), strict=True))
        a, b = drawn.pop()
        return a if instances[a].load <= instances[b].load else b

    return choose

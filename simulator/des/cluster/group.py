"""The instances of one group over time: which are there, which serve, which are broken, starting or leaving.

    OFF -> STARTING -> UP -> DRAINING -> OFF     as the group grows and shrinks
           any but OFF -> DOWN -> UP             as faults begin and end; a draining one goes OFF instead

Every instance but those OFF is paid for. Routers see those that are UP. An instance that comes back after a fault
starts and loads its weights first, as one that is added does, and counts as broken until then.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Generic, NamedTuple, TypeVar

import simpy

from simulator.des.cluster.spec import GroupSpec
from simulator.des.instance.instance import Instance
from simulator.des.instance.prefix_cache import Loss
from simulator.des.primitives.clock import Environment

Kind = TypeVar("Kind", bound=Instance)


class State(Enum):
    OFF = "off"
    STARTING = "starting"
    UP = "up"
    DRAINING = "draining"
    DOWN = "down"


# Who leaves first as a group shrinks; among those that serve, the one with the fewest sequences.
LEAVING_ORDER = (State.DOWN, State.STARTING, State.UP)


class Moment(NamedTuple):
    """Instances of a group from `time_s` on."""

    time_s: float
    allocated: int  # paid for
    serving: int  # up or draining
    down: int  # broken, or back from a fault and not yet ready


class StateChange(NamedTuple):
    """The instance of that number in its pool is in `state` from `time_s` on."""

    time_s: float
    instance: int
    state: State


class Integral(NamedTuple):
    """Instance-seconds."""

    allocated: float
    serving: float
    down: float


def integrate(sizes: Sequence[Moment], start_s: float, end_s: float) -> Integral:
    """Instance-seconds between two times.

    >>> integrate([Moment(0, 2, 2, 0), Moment(10, 3, 2, 0), Moment(15, 3, 3, 0)], 5, 20)
    Integral(allocated=40.0, serving=35.0, down=0.0)
    """
    sums = [0.0, 0.0, 0.0]
    first = max(0, bisect_right(sizes, start_s, key=lambda moment: moment.time_s) - 1)
    for k in range(first, len(sizes)):
        moment = sizes[k]
        until = sizes[k + 1].time_s if k + 1 < len(sizes) else end_s
        span = min(until, end_s) - max(moment.time_s, start_s)
        if moment.time_s >= end_s:
            break
        if span > 0:
            sums = [total + span * count for total, count in zip(sums, moment[1:], strict=True)]
    return Integral(*sums)


class Group(Generic[Kind]):
    """Instances of a group, of which the first `spec.begins_with` serve from the start.

    An index counts from the group's first. changed: called whenever others may be up than before.
    opened: called with each instance that begins to serve; lost: with each that dies while it serves;
    drains: with each that is to take no more requests. sizes: how many there are, from when on; changes: the state of
    each from the start on.
    """

    def __init__(
        self,
        env: Environment,
        spec: GroupSpec,
        instances: Sequence[Kind],
        changed: Callable[[], None],
        opened: Callable[[Kind], None],
        lost: Callable[[Kind], None],
        drains: Callable[[Kind], None],
    ) -> None:
        count = spec.count if spec.begins_with is None else spec.begins_with
        self.env = env
        self.spec = spec
        self.instances = instances
        self.open: list[Kind] = []  # up, in order
        self._changed = changed
        self._opened = opened
        self._lost = lost
        self._drains = drains
        self._states = [State.UP if i < count else State.OFF for i in range(len(instances))]
        self._faults = [0] * len(instances)  # under way that keep an instance down
        self._starts = [0] * len(instances)  # starts begun or called off; only the last may end
        self.sizes: list[Moment] = []
        self.changes = [StateChange(env.now, i.index, state) for i, state in zip(instances, self._states, strict=True)]
        self._review()

    def state(self, index: int) -> State:
        return self._states[index]

    def count(self, *states: State) -> int:
        return sum(state in states for state in self._states)

    # Faults

    def fail(self, index: int, loss: Loss = Loss.INSTANCE) -> None:
        """A fault begins: the instance dies with what it holds, and stays down until `repair`."""
        self._faults[index] += 1
        self._starts[index] += 1
        state = self._states[index]
        if state is State.OFF:
            return
        self.instances[index].lose_cache(loss)
        self._become(index, State.OFF if state is State.DRAINING else State.DOWN)
        if state in (State.UP, State.DRAINING):
            self._lost(self.instances[index])

    def repair(self, index: int) -> None:
        """A fault ends; after the last one the instance starts again."""
        self._faults[index] -= 1
        if self._states[index] is State.DOWN and not self._faults[index]:
            self._start(index)

    # Growing and shrinking

    def resize(self, count: int) -> None:
        """Have `count` instances that serve or will: those still draining come back first, healthy ones before
        broken ones; those leave first that do not serve, then those with the fewest sequences."""
        present = [i for i, state in enumerate(self._states) if state in LEAVING_ORDER]
        if count > len(present):
            absent = [i for i in range(len(self._states)) if i not in present]
            absent.sort(key=lambda i: (self._states[i] is State.OFF, self._faults[i] > 0))
            for i in absent[: count - len(present)]:
                self._add(i)
        else:
            present.sort(
                key=lambda i: (LEAVING_ORDER.index(self._states[i]), self.instances[i].scheduler.sequences, -i)
            )
            for i in present[: len(present) - count]:
                self._remove(i)

    def _add(self, index: int) -> None:
        if self._states[index] is State.DRAINING:
            self.instances[index].drain(None)
            self._become(index, State.UP)
        elif self._faults[index]:
            self._become(index, State.DOWN)
        else:
            self._become(index, State.STARTING)
            self._start(index)

    def _remove(self, index: int) -> None:
        if self._states[index] is not State.UP:
            self._starts[index] += 1
            self._become(index, State.OFF)
            return
        instance = self.instances[index]
        self._become(index, State.DRAINING)
        instance.drain(lambda: self._become(index, State.OFF))
        self._drains(instance)
        instance.kick()

    def _start(self, index: int) -> None:
        self._starts[index] += 1
        number = self._starts[index]

        def ready(_: simpy.Event) -> None:
            if self._starts[index] == number:
                self._become(index, State.UP)

        timeout = self.env.timeout(self.spec.startup_s)
        assert timeout.callbacks is not None
        timeout.callbacks.append(ready)

    def _become(self, index: int, state: State) -> None:
        instance = self.instances[index]
        self._states[index] = state
        self.changes.append(StateChange(self.env.now, instance.index, state))
        if state in (State.OFF, State.DOWN):
            instance.drain(None)
        if state is State.OFF:
            instance.lose_cache(Loss.RELEASE)
        self._review()
        if state is State.UP:
            self._opened(instance)

    def _review(self) -> None:
        """Bring router, admission and sizes up to date with the states."""
        for instance, state in zip(self.instances, self._states, strict=True):
            instance.admit_newcomers(state is State.UP)
        self.open = [i for i, state in zip(self.instances, self._states, strict=True) if state is State.UP]
        self._changed()
        serving = self.count(State.UP, State.DRAINING)
        allocated = len(self._states) - self.count(State.OFF)
        moment = Moment(self.env.now, allocated, serving, self.count(State.DOWN))
        if self.sizes and self.sizes[-1].time_s == moment.time_s:
            self.sizes.pop()
        if not self.sizes or self.sizes[-1][1:] != moment[1:]:
            self.sizes.append(moment)

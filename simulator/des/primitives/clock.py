"""The clock of a run: SimPy's, with alarms that cost half of a timeout that resumes a process.

What SimPy spends on an event is calls: a new object, its scheduling, the process around the generator, the property
`now`. The order of events is SimPy's own: by time, then urgent ones first, then in the order of setting. Here alone
SimPy's private parts are touched: its queue and the number of an event by `Environment.ring`, its time by `now`.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, Generic, Protocol, TypeVar

import simpy
from simpy.core import StopSimulation
from simpy.events import NORMAL, URGENT

T = TypeVar("T")


class Clock(Protocol):
    """Whatever tells the time. [s]"""

    @property
    def now(self) -> float: ...


class Ring(Protocol):
    """Lets an event happen at `at_s`, which is not before now: each of `calls` is then called with it."""

    def __call__(
        self, event: Any, calls: list[Callable[[Any], Any]], at_s: float, priority: int = NORMAL, /
    ) -> None: ...


class Environment(simpy.Environment):
    """SimPy's, whose `now` is a plain attribute, and which runs up to an event in one loop."""

    __slots__ = ("now", "ring")

    def __init__(self) -> None:
        super().__init__()
        queue, number = self._queue, self._eid.__next__  # looked up once: a run rings a dozen times a request

        def ring(event: Any, calls: list[Callable[[Any], Any]], at_s: float, priority: int = NORMAL) -> None:
            event.callbacks = calls
            heappush(queue, (at_s, priority, number(), event))  # type: ignore[misc]

        self.ring: Ring = ring

    def run(self, until: Any = None) -> Any:
        if not isinstance(until, simpy.Event):
            return super().run(until)
        if until.callbacks is None:
            return until.value
        until.callbacks.append(StopSimulation.callback)
        queue = self._queue
        try:
            while True:
                try:
                    self._now, _, _, event = heappop(queue)
                except IndexError:
                    raise RuntimeError(f"nothing is left to happen before {until}") from None
                callbacks = event.callbacks
                event.callbacks = None  # type: ignore[assignment]
                if len(callbacks) == 1:  # an iterator would be an object more
                    callbacks[0](event)
                else:
                    for callback in callbacks:
                        callback(event)
                if not event._ok and not event.defused:
                    raise event._value
        except StopSimulation as stop:
            return stop.args[0]


setattr(Environment, "_now", Environment.now)  # noqa: B010  # SimPy keeps the time there: the same slot


class Alarm(simpy.Event):
    """An event that happens at each time it is set to. It may be set again when it has rung.

    ring: called with the alarm, which has `value`; that may be `send` of a generator that yields to wait, which spares
        a process.
    """

    env: Environment

    def __init__(self, env: Environment, ring: Callable[[Any], Any], value: Any = None) -> None:
        self.env = env
        self.rings = [ring]
        self._ok = True  # on the instance, where CPython finds it sooner than on the class
        self._value = value
        self.callbacks = None  # type: ignore[assignment]

    @property
    def is_set(self) -> bool:
        return self.callbacks is not None

    def set(self, delay_s: float = 0.0) -> None:
        """Ring `delay_s` from now."""
        env = self.env
        env.ring(self, self.rings, env.now + delay_s)

    def set_first(self) -> None:
        """Ring now, before whatever else happens now."""
        env = self.env
        env.ring(self, self.rings, env.now, URGENT)

    def set_last(self, delay_s: float) -> None:
        """Ring after all else that happens then."""
        env = self.env
        env.ring(self, self.rings, env.now + delay_s, NORMAL + 1)

    def silence(self) -> None:
        """Never ring again, also where it is set."""
        self.rings.clear()


class OneShot(Generic[T]):
    """An alarm that rings once, a given time after it is made: what SimPy's loop asks of an event, and nothing else.

    rings: called with it; a list that many share.
    """

    __slots__ = ("_ok", "callbacks", "value")

    callbacks: list[Callable[[OneShot[T]], None]]

    def __init__(self, env: Environment, rings: list[Callable[[OneShot[T]], None]], value: T, delay_s: float) -> None:
        self._ok = True
        self.value = value
        env.ring(self, rings, env.now + delay_s)

"""SimPy's environment and timeouts at less cost: an alarm takes half the time of a timeout that resumes a process.

What SimPy spends on an event is calls: a new object, its scheduling, the process around the generator, the property
`now`. The order of events is SimPy's own: by time, then urgent ones first, then in the order of setting.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, Generic, TypeVar

import simpy
from simpy.core import StopSimulation
from simpy.events import NORMAL, URGENT

T = TypeVar("T")


class Environment(simpy.Environment):
    """SimPy's, whose `now` is a plain attribute, and which runs up to an event in one loop."""

    __slots__ = ("now",)

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
    """An event that happens a given time after each `set`. It may be set again when it has rung.

    ring: called with the alarm, which has `value`; that may be `send` of a generator that yields to wait, which spares
        a process.
    """

    def __init__(self, env: simpy.Environment, ring: Callable[[Any], Any], value: Any = None) -> None:
        self.env = env
        self.rings = [ring]
        self._ok = True  # on the instance, where CPython finds it sooner than on the class
        self._value = value
        self.callbacks = None  # type: ignore[assignment]

    @property
    def is_set(self) -> bool:
        return self.callbacks is not None

    def set(self, delay: float = 0.0) -> None:
        env = self.env
        self.callbacks = self.rings
        heappush(env._queue, (env._now + delay, NORMAL, next(env._eid), self))  # as Environment.schedule does

    def set_first(self) -> None:
        """Ring now, before whatever else happens now."""
        self.callbacks = self.rings
        self.env.schedule(self, URGENT)

    def set_last(self, delay: float) -> None:
        """Ring after all else that happens then."""
        self.callbacks = self.rings
        self.env.schedule(self, NORMAL + 1, delay)  # type: ignore[arg-type]

    def silence(self) -> None:
        """Never ring again, also where it is set."""
        self.rings.clear()


class Timer(Generic[T]):
    """An alarm that rings once, a given time after it is made: what SimPy's loop asks of an event, and nothing else.

    rings: called with the timer; a list that many timers share.
    """

    __slots__ = ("_ok", "callbacks", "value")

    def __init__(self, env: simpy.Environment, rings: list[Callable[[Timer[T]], None]], value: T, delay: float) -> None:
        self._ok = True
        self.callbacks = rings
        self.value = value
        heappush(env._queue, (env._now + delay, NORMAL, next(env._eid), self))  # type: ignore[misc]

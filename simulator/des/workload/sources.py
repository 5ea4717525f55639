"""What sends the requests of one tenant: times given, clients that wait for answers, sessions, offline work."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Generator
from typing import Protocol

import simpy

from simulator.des.primitives.clock import Alarm, Environment
from simulator.des.workload.requests import Requests


class Entry(Protocol):
    """Where requests are handed in; numbers are those of the whole run."""

    @property
    def env(self) -> Environment: ...
    @property
    def entry_delay_s(self) -> float:
        """From sending a request to its joining a queue."""
        ...

    def arrive(self, request: int) -> None:
        """Take a request that was sent `entry_delay_s` ago; its time of sending is noted already."""
        ...

    def send(self, request: int) -> bool:
        """Take a request that is sent now. False: it was refused."""
        ...

    def put_offline(self, request: int) -> None:
        """Take a request that can wait for a gap."""
        ...


class Source(Protocol):
    def start(self) -> None:
        """Called once, at 0 s."""
        ...

    def ended(self, request: int) -> None:
        """One of its requests has ended, other than by being refused."""
        ...

    def on_the_way(self) -> int:
        """Requests that have been sent and will `arrive`."""
        ...


def make_source(requests: Requests, first: int, entry: Entry) -> Source:
    """The source of `requests`, whose numbers in the run start at `first`."""
    if requests.arrival_s is not None:
        return TimedSource(entry, first, array("d", requests.arrival_s))
    if requests.concurrency is not None:
        return ClosedLoopSource(entry, first, len(requests), requests.concurrency)
    if requests.sessions is not None:
        return SessionSource(entry, first, requests)
    return OfflineSource(entry, first, len(requests))


class TimedSource:
    """Open loop: sends each request at its time, whatever becomes of the others."""

    def __init__(self, entry: Entry, first: int, arrival_s: array[float]) -> None:
        self._entry = entry
        self._first = first
        self._arrival_s = arrival_s
        self._arrived = 0

    def start(self) -> None:
        story = self._run()
        next(story)
        self._alarm = Alarm(self._entry.env, story.send)
        self._alarm.set_first()

    def _run(self) -> Generator[None, Alarm, None]:
        entry = self._entry
        env = entry.env
        extra = entry.entry_delay_s
        yield  # until the clock runs
        alarm, ring = self._alarm, env.ring
        rings = alarm.rings
        for request, arrival_s in enumerate(self._arrival_s, start=self._first):
            now = env.now
            delay_s = arrival_s + extra - now
            if delay_s > 0:
                ring(alarm, rings, now + delay_s)
                yield
            self._arrived += 1
            entry.arrive(request)
        yield  # for ever

    def ended(self, request: int) -> None:
        pass

    def on_the_way(self) -> int:
        return bisect_right(self._arrival_s, self._entry.env.now) - self._arrived


class ClosedLoopSource:
    """Closed loop: each client sends its next request when its last one ends; refused ones end at once."""

    def __init__(self, entry: Entry, first: int, count: int, clients: int) -> None:
        self._entry = entry
        self._next = first
        self._end = first + count
        self._clients = clients

    def start(self) -> None:
        for _ in range(min(self._clients, self._end - self._next)):
            self._send_next()

    def ended(self, request: int) -> None:
        self._send_next()

    def on_the_way(self) -> int:
        return 0

    def _send_next(self) -> None:
        while self._next < self._end:
            self._next += 1
            if self._entry.send(self._next - 1):
                return


class SessionSource:
    """Sessions: a turn comes its think time after the one before it has ended, or was refused."""

    def __init__(self, entry: Entry, first: int, requests: Requests) -> None:
        assert requests.sessions is not None
        self._entry = entry
        self._first = first
        self._plan = requests.sessions
        self._session_of = requests.sessions.session_of()
        self._next = 0  # session not begun

    def start(self) -> None:
        plan = self._plan
        if plan.begin_s is not None:
            for session, begin_s in enumerate(plan.begin_s):
                self._turn(plan.first[session], begin_s)
            return
        assert plan.users is not None
        for _ in range(plan.users):
            self._begin()

    def ended(self, request: int) -> None:
        turn = request - self._first + 1
        plan = self._plan
        if turn < plan.first[self._session_of[turn - 1] + 1]:
            self._turn(turn, plan.think_s[turn])
        elif plan.begin_s is None:
            self._begin()

    def on_the_way(self) -> int:
        return 0

    def _begin(self) -> None:
        """A person begins the next session, after a pause."""
        plan = self._plan
        if self._next < len(plan.first) - 1:
            turn = plan.first[self._next]
            self._next += 1
            self._turn(turn, plan.think_s[turn])

    def _turn(self, turn: int, delay_s: float) -> None:
        request = self._first + turn

        def send(_: simpy.Event) -> None:
            if not self._entry.send(request):
                self.ended(request)

        timeout = self._entry.env.timeout(delay_s)
        assert timeout.callbacks is not None
        timeout.callbacks.append(send)


class OfflineSource:
    """Offline work: everything is there at 0 s."""

    def __init__(self, entry: Entry, first: int, count: int) -> None:
        self._entry = entry
        self._requests = range(first, first + count)

    def start(self) -> None:
        for request in self._requests:
            self._entry.put_offline(request)

    def ended(self, request: int) -> None:
        pass

    def on_the_way(self) -> int:
        return 0

"""What sends the requests of one tenant: a clock, clients that wait for answers, sessions, a heap of offline work."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Generator
from heapq import heappush
from typing import Protocol

import simpy
from simpy.events import NORMAL

from simulator.des.primitives.clock import Alarm
from simulator.des.workload.requests import Requests


class Desk(Protocol):
    """Where requests are handed in; numbers are those of the whole run."""

    @property
    def env(self) -> simpy.Environment: ...
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

    def pile(self, request: int) -> None:
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


def make_source(requests: Requests, first: int, desk: Desk) -> Source:
    """The source of `requests`, whose numbers in the run start at `first`."""
    if requests.arrival_s is not None:
        return Clock(desk, first, array("d", requests.arrival_s))
    if requests.concurrency is not None:
        return Clients(desk, first, len(requests), requests.concurrency)
    if requests.sessions is not None:
        return Talkers(desk, first, requests)
    return Heap(desk, first, len(requests))


class Clock:
    """Open loop: sends each request at its time, whatever becomes of the others."""

    def __init__(self, desk: Desk, first: int, arrival_s: array[float]) -> None:
        self._desk = desk
        self._first = first
        self._arrival_s = arrival_s
        self._arrived = 0

    def start(self) -> None:
        story = self._run()
        next(story)
        self._alarm = Alarm(self._desk.env, story.send)
        self._alarm.set_first()

    def _run(self) -> Generator[None, Alarm, None]:
        desk = self._desk
        env = desk.env
        extra = desk.entry_delay_s
        yield  # until the clock runs
        alarm = self._alarm
        rings, queue, number = alarm.rings, env._queue, env._eid
        for request, arrival_s in enumerate(self._arrival_s, start=self._first):
            now = env.now
            delay = arrival_s + extra - now
            if delay > 0:
                alarm.callbacks = rings  # as Alarm.set
                heappush(queue, (now + delay, NORMAL, next(number), alarm))
                yield
            self._arrived += 1
            desk.arrive(request)
        yield  # for ever

    def ended(self, request: int) -> None:
        pass

    def on_the_way(self) -> int:
        return bisect_right(self._arrival_s, self._desk.env.now) - self._arrived


class Clients:
    """Closed loop: each client sends its next request when its last one ends; refused ones end at once."""

    def __init__(self, desk: Desk, first: int, count: int, clients: int) -> None:
        self._desk = desk
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
            if self._desk.send(self._next - 1):
                return


class Talkers:
    """Sessions: a turn comes its think time after the one before it has ended, or was refused."""

    def __init__(self, desk: Desk, first: int, requests: Requests) -> None:
        assert requests.sessions is not None
        self._desk = desk
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
            if not self._desk.send(request):
                self.ended(request)

        timeout = self._desk.env.timeout(delay_s)
        assert timeout.callbacks is not None
        timeout.callbacks.append(send)


class Heap:
    """Offline work: everything is there at 0 s."""

    def __init__(self, desk: Desk, first: int, count: int) -> None:
        self._desk = desk
        self._requests = range(first, first + count)

    def start(self) -> None:
        for request in self._requests:
            self._desk.pile(request)

    def ended(self, request: int) -> None:
        pass

    def on_the_way(self) -> int:
        return 0

"""Links that transfers share fairly: fluid flows at max-min fair rates.

Whenever a flow begins or ends or a link changes, the flows that share links with it, directly or through others, get
new rates by progressive filling: all rise alike until a link is full, its flows stay there, the others rise on
(Bertsekas and Gallager, Data Networks, section 6.5.2). A flow that has its links to itself takes the closed form,
size / smallest rate, and one event.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from simulator.des.primitives.clock import Environment, OneShot


class Link:
    """One direction of a wire."""

    __slots__ = ("carried_bytes", "flows", "nominal_rate", "rate")

    def __init__(self, rate: float) -> None:
        self.nominal_rate = rate  # B/s
        self.rate = rate  # as it is now: less when degraded, 0 when down
        self.flows: dict[Flow, None] = {}  # in order of arrival, so that runs repeat bit for bit
        self.carried_bytes = 0.0  # as of each flow's mark

    def busy_s(self, now: float) -> float:
        """Bytes carried so far as seconds at the nominal rate, which never exceed the time gone by. [s]"""
        moving = sum(flow.rate * max(0.0, min(now, flow.end_s) - flow.mark_s) for flow in self.flows)
        return (self.carried_bytes + moving) / self.nominal_rate


class Flow:
    """`left_bytes` to move over `links` as of `mark_s`, at `rate` from then on, which ends at `end_s`.

    mark_s lies ahead for a flow that is alone on its links and about to begin. number: in order of sending.
    shares: whether another flow may have been on its links since it was sent.
    timer: the one that counts, at timer_s; a replaced one rings in vain.
    """

    rate: float
    mark_s: float
    end_s: float
    timer_s: float
    number: int
    shares: bool
    timer: OneShot[Flow] | None

    __slots__ = ("end_s", "left_bytes", "links", "mark_s", "number", "rate", "shares", "timer", "timer_s")

    def __init__(self, links: tuple[Link, ...], size: float) -> None:
        self.links = links
        self.left_bytes = size

    def ended(self) -> None:
        """Called when all is moved."""


def fair_rates(flows: Iterable[Flow]) -> dict[Flow, float]:
    """Max-min fair rates of flows that share their links with nobody else. [B/s]"""
    room: dict[Link, float] = {}
    users: dict[Link, list[Flow]] = {}
    for flow in flows:
        for link in flow.links:
            room[link] = link.rate
            users.setdefault(link, []).append(flow)
    rates: dict[Flow, float] = {}
    while users:
        fullest = min(users, key=lambda link: room[link] / len(users[link]))
        share = room[fullest] / len(users[fullest])
        for flow in list(users[fullest]):
            rates[flow] = share
            for link in flow.links:
                room[link] = max(0.0, room[link] - share)
                users[link].remove(flow)
                if not users[link]:
                    del users[link]
    return rates


class Fabric:
    """All flows of a cluster on one clock."""

    def __init__(self, env: Environment) -> None:
        self.env = env
        self._sent = 0
        self._begins: list[Callable[[OneShot[Flow]], None]] = [self._begin]
        self._rings: list[Callable[[OneShot[Flow]], None]] = [self._ring]

    def send(self, flow: Flow, start_s: float) -> None:
        """Move the flow's bytes over all of its links at once, from `start_s` (now or later) on."""
        self._sent = flow.number = self._sent + 1
        links = flow.links
        least = math.inf
        for link in links:
            rate = link.rate
            if link.flows or not rate:
                self._set_timer(flow, start_s, self._begins)
                return
            if rate < least:
                least = rate
        for link in links:
            link.flows[flow] = None
        flow.rate = least
        flow.shares = False
        flow.mark_s = start_s
        flow.end_s = start_s + flow.left_bytes / least
        self._set_timer(flow, flow.end_s, self._rings)

    def set_rate(self, link: Link, share: float) -> None:
        """Give a link `share` of its nominal rate from now on: 1 is whole, 0 is down and its flows stand still."""
        link.rate = share * link.nominal_rate
        self._share((link,))

    def abort(self, flow: Flow) -> None:
        """Take a flow away before its end. What it has moved stays counted at its links."""
        flow.timer = None
        if flow.links and flow in flow.links[0].flows:
            self._settle(flow)
            self._leave(flow, 0.0)

    # Flows begin and end

    def _set_timer(self, flow: Flow, at_s: float, rings: list[Callable[[OneShot[Flow]], None]]) -> None:
        now = self.env.now
        flow.timer_s = at_s
        flow.timer = OneShot(self.env, rings, flow, at_s - now if at_s > now else 0.0)

    def _begin(self, timer: OneShot[Flow]) -> None:
        """Join the links with whoever is there by now."""
        flow = timer.value
        if flow.timer is not timer:
            return
        flow.timer = None
        flow.mark_s = self.env.now
        flow.rate = 0.0
        flow.shares = True
        flow.end_s = flow.timer_s = math.inf
        for link in flow.links:
            link.flows[flow] = None
        self._share(flow.links)

    def _ring(self, timer: OneShot[Flow]) -> None:
        """The end of a flow, unless its rate has changed since the timer was set.

        Those that end with it on its links go first where they were sent before.
        """
        flow = timer.value
        if flow.timer is not timer:
            return
        flow.timer = None
        now = self.env.now
        if flow.end_s > now:
            if flow.end_s < math.inf:
                self._set_timer(flow, flow.end_s, self._rings)
            return
        if flow.shares:
            self._end_earlier(flow)
        self._end(flow)

    def _end_earlier(self, flow: Flow) -> None:
        """End those that end now as well and were sent before."""
        now = self.env.now
        due = {
            other for link in flow.links for other in link.flows if other.end_s <= now and other.number < flow.number
        }
        for other in sorted(due, key=lambda other: other.number):
            self._end(other)

    def _end(self, flow: Flow) -> None:
        flow.timer = None
        self._leave(flow, flow.left_bytes)
        flow.ended()

    def _leave(self, flow: Flow, moved_bytes: float) -> None:
        """Take a flow off its links, over which it has moved that much since it was settled last."""
        shared = False
        for link in flow.links:
            link.carried_bytes += moved_bytes
            flows = link.flows
            del flows[flow]
            if flows:
                shared = True
        if shared:
            self._share(flow.links)

    # Rates

    def _settle(self, flow: Flow) -> None:
        """Book what has moved up to now."""
        now = self.env.now
        if now > flow.mark_s:
            moved = min(flow.left_bytes, flow.rate * (now - flow.mark_s))
            flow.left_bytes -= moved
            flow.mark_s = now
            for link in flow.links:
                link.carried_bytes += moved

    def _share(self, links: Iterable[Link]) -> None:
        """New rates for all flows that a change on `links` concerns."""
        now = self.env.now
        flows = self._concerned(links)
        for flow in flows:
            self._settle(flow)
        for flow, rate in fair_rates(flows).items():
            if rate == flow.rate:
                continue
            flow.rate = rate
            flow.end_s = now + flow.left_bytes / rate if rate > 0 else math.inf
            # A timer that rings too early sets itself anew; one that would ring too late is replaced.
            if flow.end_s < math.inf and (flow.timer is None or flow.end_s < flow.timer_s):
                self._set_timer(flow, flow.end_s, self._rings)

    def _concerned(self, links: Iterable[Link]) -> dict[Flow, None]:
        """Flows under way on `links`, on the other links of those, and so on.

        One that was booked ahead of its beginning leaves its links until then: it is no longer alone.
        """
        now = self.env.now
        reached = dict.fromkeys(links)
        queue = list(reached)
        flows: dict[Flow, None] = {}
        for link in queue:
            for flow in list(link.flows):
                flow.shares = True
                if flow.mark_s > now:
                    for own in flow.links:
                        del own.flows[flow]
                    flow.rate = 0.0
                    self._set_timer(flow, flow.mark_s, self._begins)
                elif flow not in flows:
                    flows[flow] = None
                    for other in flow.links:
                        if other not in reached:
                            reached[other] = None
                            queue.append(other)
        return flows

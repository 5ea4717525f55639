"""How many instances a group has: as planned on a schedule, or decided window by window from what the group shows.

The rule is that of proportional autoscalers (Kubernetes' HorizontalPodAutoscaler): with `ready` instances and
pressure = seen / target, ceil(ready * pressure) instances are wanted, at most twice as many as are ready. An instance
leaves, one at a time, when a cool-down has passed since the last change and the rest would do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence, Sized
from typing import Any

import simpy

from simulator.des.cluster.group import Group, State, integrate
from simulator.des.primitives.clock import Environment
from simulator.des.records.request_log import RequestLog
from simulator.scenario import Autoscale

SAMPLES = 10  # of queues and rooms in a window
# A group that is not scaled by utilization gives an instance up only where it keeps its limits with half to spare and
# the others would not be fuller than this. Assumed: without slack it would swing between two sizes.
SLACK_PRESSURE = 0.5  # share of what its target allows
SLACK_UTILIZATION = 0.7  # share of time in steps, or of places
MOST_GROWTH = 2.0  # times as many instances after one decision as are ready
ROUNDING = 1e-9  # instances; a pressure of 1 that was computed is not above 1

Process = Generator[simpy.Event, None, None]


class GroupView:
    """What an autoscaler sees of a group.

    parked: requests that wait for any instance of the pool to serve. ended: requests of the cluster in order of
    their end. first_s: of each request, when its first token is there as far as the group answers for it.
    limits_of: by metric ("ttft_s", "tpot_s", "e2e_s"), those that the group answers for. [s]
    """

    def __init__(
        self,
        group: Group[Any],
        parked: Sized,
        log: RequestLog,
        ended: Sequence[int],
        first_s: Sequence[float],
        limits_of: Callable[[int], dict[str, float]],
    ) -> None:
        self._group = group
        self._parked = parked
        self._log = log
        self._ended = ended
        self._first_s = first_s
        self._limits_of = limits_of
        self._seen = 0

    def waiting(self) -> int:
        """Requests that wait in the group and for its pool."""
        queues = {id(queue): queue for queue in (self._parked, *(i.waiting for i in self._group.open))}
        return sum(map(len, queues.values())) + sum(i.stalled_count for i in self._group.open)

    def fullness(self) -> float:
        """Sequence slots or KV room in use, whichever is scarcer, over the instances that take requests."""
        instances = self._group.open
        if not instances:
            return 0.0
        spec = instances[0].spec
        slots = sum(i.scheduler.sequences for i in instances) / spec.max_sequences
        room = sum(i.kv_bytes for i in instances) / (spec.kv.capacity_bytes * spec.ranks)
        return max(slots, room) / len(instances)

    def busy_s(self) -> float:
        """Seconds in steps so far, over all instances."""
        return sum(instance.usage().busy_s for instance in self._group.instances)

    def missed_share(self) -> float | None:
        """Of the requests with limits that ended since the last call, the share outside; None where none ended."""
        news = self._ended[self._seen :]
        self._seen += len(news)
        judged = [(request, limits) for request in news if (limits := self._limits_of(request))]
        return sum(self._missed(request, limits) for request, limits in judged) / len(judged) if judged else None

    def _missed(self, request: int, limits: dict[str, float]) -> bool:
        log = self._log
        arrival, first, end = (t[request] for t in (log.arrival_s, self._first_s, log.finish_s))
        seen = {"ttft_s": first - arrival, "e2e_s": end - arrival}
        if log.output_tokens[request] > 1:
            seen["tpot_s"] = (end - first) / (log.output_tokens[request] - 1)
        return any(seen.get(name, 0.0) > limit for name, limit in limits.items())


def follow_schedule(env: Environment, group: Group[Any], keys: Autoscale) -> Process:
    """Set the planned size at each planned time, every period anew."""
    turn_s = 0.0
    while True:
        for step in keys.schedule:
            yield env.timeout(max(0.0, turn_s + step.at_s - env.now))
            group.resize(step.instances)
        if keys.period_s is None:
            return
        turn_s += keys.period_s


def watch(env: Environment, group: Group[Any], keys: Autoscale, view: GroupView, by_steps: bool) -> Process:
    """Look at a group and resize it, window after window; by_steps: utilization is the share of time in steps."""
    changed_s = -math.inf
    while True:
        begun_s, busy_s = env.now, view.busy_s()
        waiting = fullness = 0.0
        for _ in range(SAMPLES):
            yield env.timeout(keys.window_s / SAMPLES)
            waiting += view.waiting() / SAMPLES
            fullness += view.fullness() / SAMPLES
        ready = group.count(State.UP)
        missed = view.missed_share()
        serving_s = integrate(group.sizes, begun_s, env.now).serving
        if not ready or not serving_s:
            continue
        utilization = (view.busy_s() - busy_s) / serving_s if by_steps else fullness
        assert keys.target is not None
        if keys.metric == "queue":
            pressure = waiting / ready / keys.target
        elif keys.metric == "utilization":
            pressure = utilization / keys.target
        elif missed is None:
            pressure = 1.0 if waiting else 0.0
        else:
            pressure = missed / (1 - keys.target)
        present = group.count(State.UP, State.STARTING, State.DOWN)
        settled = ready == present and env.now - changed_s >= keys.cooldown_s
        size = wanted(keys, ready, present, pressure, utilization, settled)
        if size != present:
            group.resize(size)
            changed_s = env.now


def wanted(keys: Autoscale, ready: int, present: int, pressure: float, utilization: float, settled: bool) -> int:
    """Instances that the group should have, of which `present` serve, start or are broken.

    >>> keys = Autoscale(metric="utilization", target=0.6, maximum=9)
    >>> wanted(keys, 4, 4, 0.9 / 0.6, 0.9, True), wanted(keys, 4, 4, 0.4 / 0.6, 0.4, True)
    (6, 3)
    >>> wanted(keys, 4, 4, 0.5 / 0.6, 0.5, True), wanted(keys, 4, 4, 0.4 / 0.6, 0.4, False)
    (4, 4)
    """
    maximum = keys.maximum or present
    grown = math.ceil(ready * min(pressure, MOST_GROWTH) - ROUNDING)
    if pressure > 1:
        return min(max(grown, present), max(maximum, present))
    if not settled or present <= keys.minimum:
        return present
    of_the_rest = utilization * ready / (ready - 1)
    if keys.metric == "utilization":
        return present - 1 if of_the_rest <= (keys.target or 0.0) else present
    return present - 1 if pressure <= SLACK_PRESSURE and of_the_rest <= SLACK_UTILIZATION else present

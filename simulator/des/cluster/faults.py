"""Faults of instances, nodes and links, and slow spells: when they come, whom they hit.

Every unit of a kind fails by itself: it runs for an exponential time of mean MTBF, then fails for an exponential time
of mean MTTR; after a fault that kills, its clock goes on once weights are loaded. So an instance is up for
MTBF / (MTBF + MTTR + start-up) of the time, whatever the traffic. Where faults of a kind overlap on an instance, the
lowest speed counts. Instances fill the nodes of their group by index: as many to a node as fit whole; one larger than a
node takes nodes of its own and dies with any of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import simpy

from simulator.des.cluster.group import Group, State
from simulator.des.instance.instance import Instance
from simulator.des.instance.prefix_cache import Loss
from simulator.des.primitives.clock import Environment
from simulator.scenario import Faults, Outages

Wait = Generator[simpy.Event, None, None]
KILLING = {"instance": Loss.INSTANCE, "node": Loss.NODE}  # and what caches lose by it


def nodes_of(instances: int, instance_gpus: int, node_gpus: int) -> list[list[int]]:
    """Instances of a group on each of its nodes.

    >>> nodes_of(5, 4, 8), nodes_of(2, 16, 8), nodes_of(3, 3, 8)
    ([[0, 1], [2, 3], [4]], [[0], [0], [1], [1]], [[0, 1], [2]])
    """
    if instance_gpus > node_gpus:
        return [[i] for i in range(instances) for _ in range(math.ceil(instance_gpus / node_gpus))]
    fit = node_gpus // instance_gpus
    return [list(range(first, min(first + fit, instances))) for first in range(0, instances, fit)]


class Incident(NamedTuple):
    """A fault that hit instances that were there; one still under way at the end of the run has no `end_s`."""

    group: str
    kind: str
    unit: int  # number of the instance or node in its pool
    speed: float  # share left
    begin_s: float
    end_s: float | None = None


class _Unit(NamedTuple):
    """What one fault takes down: instances of a group, by their indices there."""

    number: int  # in its pool
    group: Group
    hit: Sequence[int]


class FaultInjector:
    """Plays random and planned faults on the groups.

    groups: those of the groups of each pool, by the pool's name. set_link_speed: gives an instance's NICs a share of
    their rate. struck: called at each random fault that takes instances down.
    incidents: faults that hit an instance that was there, in order of their beginning.
    killers: units, such as nodes, that such faults take down one by one.
    """

    def __init__(
        self,
        env: Environment,
        keys: Faults,
        groups: Mapping[str, Sequence[Group[Any]]],
        set_link_speed: Callable[[Instance, float], None],
        rng: np.random.Generator,
        struck: Callable[[], None],
    ) -> None:
        self.env = env
        self.incidents: list[Incident] = []
        self.killers = 0
        self._struck = struck
        self._set_link_speed = set_link_speed
        self._speeds: dict[tuple[str, Instance], list[float]] = {}
        for kind in ("instance", "node", "link", "slow"):
            outages: Outages | None = getattr(keys, kind)
            if outages is None:
                continue
            for pool in groups.values():
                units = _units(kind, pool)
                self.killers += len(units) * (kind in KILLING)
                for unit in units:
                    # A generator for each unit: its faults do not depend on what happens to the others.
                    env.process(self._at_random(kind, unit, outages, rng.spawn(1)[0]))
        for event in keys.events:
            unit = _units(event.kind, groups[event.pool])[event.index]
            env.process(self._planned(event.at_s, event.kind, unit, event.speed, event.duration_s))

    def _at_random(self, kind: str, unit: _Unit, outages: Outages, draws: np.random.Generator) -> Wait:
        while True:
            yield self.env.timeout(draws.exponential(outages.mtbf_s))
            yield from self._play(kind, unit, outages.speed, draws.exponential(outages.mttr_s))
            if kind in KILLING:
                self._struck()
                yield self.env.timeout(unit.group.spec.startup_s)

    def _planned(self, at_s: float, kind: str, unit: _Unit, speed: float, duration_s: float) -> Wait:
        yield self.env.timeout(at_s)
        yield from self._play(kind, unit, speed, duration_s)

    def _play(self, kind: str, unit: _Unit, speed: float, duration_s: float) -> Wait:
        """One fault from its beginning to its end."""
        group = unit.group
        number = len(self.incidents)
        seen = any(group.state(i) is not State.OFF for i in unit.hit)
        if seen:
            self.incidents.append(Incident(group.spec.name, kind, unit.number, speed, self.env.now))
        for i in unit.hit:
            if kind in KILLING:
                group.fail(i, KILLING[kind])
            else:
                self._speeds.setdefault((kind, group.instances[i]), []).append(speed)
                self._apply_speed(kind, group.instances[i])
        yield self.env.timeout(duration_s)
        if seen:
            self.incidents[number] = self.incidents[number]._replace(end_s=self.env.now)
        for i in unit.hit:
            if kind in KILLING:
                group.repair(i)
            else:
                self._speeds[kind, group.instances[i]].remove(speed)
                self._apply_speed(kind, group.instances[i])

    def _apply_speed(self, kind: str, instance: Instance) -> None:
        speed = min(self._speeds[kind, instance], default=1.0)
        if kind == "slow":
            instance.slow_down(1.0 / speed)
        else:
            self._set_link_speed(instance, speed)


def _units(kind: str, pool: Sequence[Group[Any]]) -> list[_Unit]:
    """What faults of a kind take down in a pool, one by one."""
    found: list[_Unit] = []
    for group in pool:
        spec = group.spec
        alone = [[i] for i in range(spec.count)]
        hits = nodes_of(spec.count, spec.instance.gpus, spec.node_gpus) if kind == "node" else alone
        found += [_Unit(len(found) + i, group, hit) for i, hit in enumerate(hits)]
    return found

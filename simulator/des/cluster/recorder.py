"""The steps of a run, for series and timelines, and how things stand on a grid of time.

The recorder is told of every step as it ends, looks on after all else that happens at a point of the grid, and changes
nothing, so a recorded run equals a bare one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from simulator.des.cluster.group import Group
from simulator.des.instance.instance import Instance
from simulator.des.primitives.clock import Alarm, Environment


class Step(NamedTuple):
    """A step of one instance, and the instance's state at its end. A step cut by a fault computed nothing."""

    group: str
    instance: int  # its number in the pool
    start_s: float
    end_s: float
    prefill_s: float  # the part of its time that prefill is charged with
    prompt_tokens: int
    sequences: int  # decoded in the step
    running: int
    waiting: int  # prompts not begun, and prefilled sequences without room
    kv_bytes: float
    cached_bytes: float


class InstanceSample(NamedTuple):
    """An instance at a point of the grid."""

    group: str
    instance: int  # its number in the pool
    waiting: int  # prompts in its queue and preempted sequences
    prefilling: int
    transferring: int  # with KV that waits here for room elsewhere or is on its way from here, or has come to run next
    running: int
    kv_bytes: float  # held or reserved
    cached_bytes: float


@dataclass
class Recorder:
    """Collects the steps of a run; give it to `simulate`, and its steps to `series` or `write_timeline`.

    grid_s: seconds between samples, of which the first is taken at 0 s and the last at the end of the run; none: no
        samples. unassigned: at each of them, requests under way that no instance has.
    """

    grid_s: float | None = None
    steps: list[Step] = field(default_factory=list)
    samples: list[list[InstanceSample]] = field(default_factory=list)
    unassigned: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.grid_s is not None and not (self.grid_s > 0 and math.isfinite(self.grid_s)):
            raise ValueError(
                f"grid_s={self.grid_s:g} is not a finite number above 0; give the seconds between two samples"
            )

    def begin(self, env: Environment, groups: Mapping[str, Group[Any]], unassigned: Callable[[], int]) -> None:
        """Take samples from now on."""
        self._groups = groups
        self._count_unassigned = unassigned
        if self.grid_s is not None:
            self._clock = Alarm(env, self._ring)
            self._clock.set_last(0.0)

    def end(self) -> None:
        """Take the last sample."""
        if self.grid_s is not None:
            self._clock.silence()
            self._sample()

    def _ring(self, clock: Alarm) -> None:
        assert self.grid_s is not None
        self._sample()
        clock.set_last(max(0.0, len(self.samples) * self.grid_s - clock.env.now))

    def _sample(self) -> None:
        self.unassigned.append(self._count_unassigned())
        self.samples.append(
            [_sample(name, instance) for name, group in self._groups.items() for instance in group.instances]
        )

    def by_instance(self) -> dict[tuple[str, int], list[Step]]:
        """Steps of each instance that had any, in order of time."""
        found: dict[tuple[str, int], list[Step]] = {}
        for step in self.steps:
            found.setdefault((step.group, step.instance), []).append(step)
        return found

    def observer(self, env: Environment, group: str) -> Callable[[Instance, float, float, int, int], None]:
        """What the instances of a group tell of each step."""
        steps = self.steps

        def observe(instance: Instance, start_s: float, prefill_s: float, prompt_tokens: int, sequences: int) -> None:
            steps.append(
                Step(
                    group,
                    instance.index,
                    start_s,
                    env.now,
                    prefill_s,
                    prompt_tokens,
                    sequences,
                    instance.batch.size,
                    instance.waiting_count,
                    instance.kv_bytes,
                    instance.cached_bytes,
                )
            )

        return observe


def _sample(group: str, instance: Instance) -> InstanceSample:
    return InstanceSample(group, instance.index, *instance.standing(), instance.kv_bytes, instance.cached_bytes)

"""The steps of a run, for series and timelines.

The recorder is told of every step as it ends and starts nothing itself, so a recorded run equals a bare one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import simpy

from simulator.des.instance import Instance


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


@dataclass
class Recorder:
    """Collects the steps of a run; give it to `simulate`, and its steps to `series` or `write_timeline`."""

    steps: list[Step] = field(default_factory=list)

    def by_instance(self) -> dict[tuple[str, int], list[Step]]:
        """Steps of each instance that had any, in order of time."""
        found: dict[tuple[str, int], list[Step]] = {}
        for step in self.steps:
            found.setdefault((step.group, step.instance), []).append(step)
        return found

    def observer(self, env: simpy.Environment, group: str) -> Callable[[Instance, float, float, int, int], None]:
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

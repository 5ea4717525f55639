"""The state of every instance on a fixed grid of time, from the samples and steps of a recorded run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from simulator.des.cluster.group import State, StateChange
from simulator.des.cluster.recorder import InstanceSample, Recorder, Step
from simulator.des.results.result import SimulationResult
from simulator.model.arrays import Floats

STANDING = ("waiting", "prefilling", "transferring", "running", "kv_bytes", "cached_bytes")


def series(recorder: Recorder, result: SimulationResult) -> pd.DataFrame:
    """State of each instance at 0, grid_s, 2 grid_s, ..., as it stands there once all has happened that happens then.

    Requests that are waiting, prefilling, transferring or running, over all instances, and `unassigned`, which stands
    beside each instance, are all that have been sent and have not ended.
    busy_fraction and power_w (of all its accelerators; NaN where the TDP is not known) are means over the interval
    that ends there. Nothing counts after the run's end, so power_w x grid_s adds up to the energy of the run.
    """
    grid_s = recorder.grid_s
    if grid_s is None:
        raise ValueError("the run was recorded without a grid; give Recorder its grid_s")
    end_s = result.run.end.time_s
    grid: Floats = np.arange(math.ceil(end_s / grid_s) + 1, dtype=np.float64) * grid_s
    seen = [min(i, len(recorder.samples) - 1) for i in range(len(grid))]
    samples: dict[tuple[str, int], list[InstanceSample]] = {}
    for i in seen:
        for sample in recorder.samples[i]:
            samples.setdefault((sample.group, sample.instance), []).append(sample)
    unassigned = [recorder.unassigned[i] for i in seen]
    steps = recorder.by_instance()
    frames = []
    drawn = {name: usage.draw for name, usage in result.groups.items()}
    for group in result.spec.groups:
        room = group.instance.kv.capacity_bytes * group.instance.ranks
        changes = result.run.changes[group.name]
        for instance in dict.fromkeys(change.instance for change in changes):
            own = steps.get((group.name, instance), [])
            busy_s, prefill_s = _step_time(own, grid)
            mine = [change for change in changes if change.instance == instance]
            columns: dict[str, Any] = {
                "time_s": grid,
                "pool": group.name,
                "instance": instance,
                "state": _states(mine, grid),
            }
            columns["unassigned"] = unassigned
            for name in STANDING:
                columns[name] = [getattr(sample, name) for sample in samples[group.name, instance]]
            columns["kv_occupancy"] = np.array(columns["kv_bytes"]) / room
            columns["busy_fraction"] = np.diff(busy_s, prepend=0.0) / grid_s
            power_w: Any = np.nan
            draw = drawn[group.name]
            if draw is not None:
                powered_s = _powered_s(mine, np.minimum(grid, end_s))
                joules = draw.joules(powered_s, prefill_s, busy_s - prefill_s) * group.instance.gpus
                power_w = np.diff(joules, prepend=0.0) / grid_s
            columns["power_w"] = power_w
            frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def _step_time(steps: list[Step], grid: Floats) -> tuple[Floats, Floats]:
    """Seconds in steps up to each time, and prefill's part of them, spread evenly over a step."""
    # Time in steps grows by straight lines between their bounds.
    bounds = np.array([0.0, *(t for step in steps for t in (step.start_s, step.end_s))])
    busy = np.cumsum([0.0, *(s for step in steps for s in (0.0, step.end_s - step.start_s))])
    prefill = np.cumsum([0.0, *(s for step in steps for s in (0.0, step.prefill_s))])
    return np.interp(grid, bounds, busy), np.interp(grid, bounds, prefill)


def _states(changes: list[StateChange], grid: Floats) -> list[str]:
    """Name of the state at each time; the last one where several begin at once."""
    last = np.searchsorted([change.time_s for change in changes], grid, side="right") - 1
    return [changes[i].state.value for i in last]


def _powered_s(changes: list[StateChange], times: Floats) -> Floats:
    """Seconds up to each time in which the instance was not off."""
    bounds = [change.time_s for change in changes] + [math.inf]
    total = np.zeros_like(times)
    for change, until in zip(changes, bounds[1:], strict=True):
        if change.state is not State.OFF:
            total += np.clip(times, change.time_s, until) - change.time_s
    return total

"""What instances did over time: steps for a timeline, and their state on a fixed grid.

The recorder is told of every step as it ends and starts nothing itself, so a recorded run equals a bare one.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from simulator.des.journal import Journal, Status

MICRO = 1e6


class Step(NamedTuple):
    """A step of one instance, and the instance's state at its end."""

    pool: str
    instance: int
    start_s: float
    end_s: float
    prompt_tokens: int
    sequences: int  # decoded in the step
    running: int
    waiting: int  # prompts not begun, and prefilled sequences without room
    kv_bytes: float


@dataclass
class Recorder:
    """Collects the steps of a run; give it to `simulate` and ask it afterwards."""

    steps: list[Step] = field(default_factory=list)

    def series(self, grid_s: float, capacity_bytes: dict[str, float] | None = None) -> pd.DataFrame:
        """State of each instance at 0, grid_s, 2 grid_s, ...: as it stood at the last step's end.

        busy_fraction: part of the grid's last interval that lay inside steps. kv_occupancy: where the KV room of
        an instance is given by pool.
        """
        if not (grid_s > 0 and math.isfinite(grid_s)):
            raise ValueError(f"grid_s={grid_s:g} is not a finite number above 0; give the seconds between two samples")
        end_s = max((step.end_s for step in self.steps), default=0.0)
        grid = np.arange(math.floor(end_s / grid_s) + 2) * grid_s
        frames = []
        by_instance: dict[tuple[str, int], list[Step]] = {}
        for step in self.steps:
            by_instance.setdefault((step.pool, step.instance), []).append(step)
        for (pool, instance), steps in by_instance.items():
            starts, ends = (np.array(column) for column in zip(*((s.start_s, s.end_s) for s in steps), strict=True))
            total = np.concatenate([[0.0], np.cumsum(ends - starts)])
            begun = np.searchsorted(starts, grid, side="right")
            ended = np.searchsorted(ends, grid, side="right")
            busy = total[ended] + np.where(begun > ended, grid - starts[np.minimum(ended, len(steps) - 1)], 0.0)
            columns: dict[str, Any] = {"time_s": grid, "pool": pool, "instance": instance}
            for name in ("running", "waiting", "kv_bytes"):
                columns[name] = np.array([0, *(getattr(step, name) for step in steps)])[ended]
            columns["busy_fraction"] = np.diff(busy, prepend=0.0) / grid_s
            if capacity_bytes is not None:
                columns["kv_occupancy"] = columns["kv_bytes"] / capacity_bytes[pool]
            frames.append(pd.DataFrame(columns))
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def write_timeline(self, path: Path, journal: Journal) -> None:
        """Chrome's trace-event format, for ui.perfetto.dev: steps by pool and instance, stages by request. [us]"""
        pools = list(dict.fromkeys(step.pool for step in self.steps))
        events: list[dict[str, Any]] = [
            {"ph": "M", "name": "process_name", "pid": i, "args": {"name": name}}
            for i, name in enumerate([*pools, "requests"])
        ]
        for step in self.steps:
            kinds = [name for name, there in (("prefill", step.prompt_tokens), ("decode", step.sequences)) if there]
            events.append(
                {
                    "ph": "X",
                    "name": "+".join(kinds),
                    "pid": pools.index(step.pool),
                    "tid": step.instance,
                    "ts": step.start_s * MICRO,
                    "dur": (step.end_s - step.start_s) * MICRO,
                    "args": {
                        "prompt_tokens": step.prompt_tokens,
                        "sequences": step.sequences,
                        "waiting": step.waiting,
                        "kv_bytes": step.kv_bytes,
                    },
                }
            )
        for request, status in enumerate(journal.status):
            if status == Status.FINISHED:
                events += _stages(request, journal, len(pools))
        path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}), encoding="utf-8")


def _stages(request: int, journal: Journal, pid: int) -> list[dict[str, Any]]:
    """Begin and end of each stage of a finished request, as asynchronous events."""
    moments = [
        ("queue", journal.arrival_s[request], journal.prefill_start_s[request]),
        ("prefill", journal.prefill_start_s[request], journal.first_token_s[request]),
    ]
    decode_from = journal.first_token_s[request]
    delivered = journal.delivered_s[request]
    if not math.isnan(delivered):
        moments.append(("transfer", decode_from, delivered))
        decode_from = delivered
    moments.append(("decode", decode_from, journal.finish_s[request]))
    return [
        {"ph": phase, "cat": "request", "name": name, "id": request, "pid": pid, "tid": 0, "ts": moment * MICRO}
        for name, begin, end in moments
        for phase, moment in (("b", begin), ("e", end))
    ]

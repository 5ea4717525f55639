"""A run in Chrome's trace-event format, for ui.perfetto.dev: what ran where, what broke, what became of requests.

A process for each group with a thread for each instance: steps, and arrows from the end of a prompt to the step that
takes its sequence on elsewhere. A process for each group's states where they change, one for faults by unit, one for
the stages of requests. Times are in microseconds.
"""

from __future__ import annotations

import itertools
import json
import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from simulator.des.cluster.cluster import Run
from simulator.des.cluster.group import State
from simulator.des.cluster.recorder import Recorder, Step
from simulator.des.records.request_log import RequestLog, Status

MICRO = 1e6  # microseconds, the unit of the format, in a second
Event = dict[str, Any]


def write_timeline(path: Path, runs: Mapping[str, tuple[Recorder, Run]]) -> None:
    """runs: by the name of the model, "" where there is but one."""
    names = _Names()
    events = [event for model, (recorder, run) in runs.items() for event in timeline(recorder, run, names, model)]
    path.write_text(json.dumps({"traceEvents": [*events, *names.events], "displayTimeUnit": "ms"}), encoding="utf-8")


def timeline(recorder: Recorder, run: Run, names: _Names, model: str = "") -> Iterator[Event]:
    """All events of a run but those that name what runs: these are left in `names`, with the model in front."""
    names.prefix = f"{model}: " if model else ""
    pids = {group: names.process(group) for group in run.sizes}
    for step in recorder.steps:
        yield _step(step, names.thread(pids[step.group], step.instance, f"instance {step.instance}"))
    yield from _arrows(recorder, run, pids, model)
    yield from _lifecycle(run, names)
    requests = names.process("requests")
    for request, status in enumerate(run.log.status):
        if status == Status.FINISHED:
            yield from _stages(request, run.log, requests, model)


class _Names:
    """Numbers processes and threads, and keeps the events that name them."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.prefix = ""  # of the names of processes
        self._processes = 0
        self._threads: set[tuple[int, int]] = set()

    def process(self, name: str) -> int:
        pid = self._processes
        self._processes += 1
        self.events.append(
            {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": self.prefix + name}}
        )
        return pid

    def thread(self, pid: int, tid: int, name: str) -> Event:
        """The fields that place an event on the thread."""
        if (pid, tid) not in self._threads:
            self._threads.add((pid, tid))
            self.events.append({"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": name}})
        return {"pid": pid, "tid": tid}


def _slice(name: str, where: Event, begin_s: float, end_s: float, **args: Any) -> Event:
    return {
        "ph": "X",
        "name": name,
        **where,
        "ts": begin_s * MICRO,
        "dur": (end_s - begin_s) * MICRO,
        "args": args,
    }


def _step(step: Step, where: Event) -> Event:
    kinds = [name for name, there in (("prefill", step.prompt_tokens), ("decode", step.sequences)) if there]
    return _slice(
        "+".join(kinds) or "cut by a fault",
        where,
        step.start_s,
        step.end_s,
        prompt_tokens=step.prompt_tokens,
        sequences=step.sequences,
        waiting=step.waiting,
        kv_bytes=step.kv_bytes,
    )


def _arrows(recorder: Recorder, run: Run, pids: dict[str, int], model: str) -> Iterator[Event]:
    """From the middle of the step that completed a prompt to the middle of the first that decodes it elsewhere."""
    log = run.log
    # Numbers of instances are those in their pool; a group is called after its pool.
    homes = {(group.partition(".")[0], c.instance): group for group, changes in run.changes.items() for c in changes}
    pools = list(dict.fromkeys(pool for pool, _ in homes))
    if len(pools) < 2:
        return
    steps = recorder.by_instance()
    ends = {key: [step.end_s for step in own] for key, own in steps.items()}
    starts = {key: [step.start_s for step in own] for key, own in steps.items()}
    for request, delivered_s in enumerate(log.delivered_s):
        if math.isnan(delivered_s) or log.status[request] != Status.FINISHED or log.retries[request]:
            continue
        numbers = (log.prefill_instance[request], log.decode_instance[request])
        source, taker = ((homes[pool, number], number) for pool, number in zip(pools, numbers, strict=True))
        last = bisect_left(ends[source], log.prompt_end_s[request])
        first = bisect_left(starts[taker], delivered_s)
        for phase, key, i in (("s", source, last), ("f", taker, first)):
            step = steps[key][i]
            yield {
                "ph": phase,
                "bp": "e",
                "cat": f"transfer {model}".rstrip(),  # requests are numbered by model
                "name": "KV transfer",
                "id": request,
                "pid": pids[key[0]],
                "tid": key[1],
                "ts": (step.start_s + step.end_s) / 2 * MICRO,
            }


def _lifecycle(run: Run, names: _Names) -> Iterator[Event]:
    """States of the instances of groups where they change, and faults."""
    end_s = run.end.time_s
    for group, changes in run.changes.items():
        instances = dict.fromkeys(change.instance for change in changes)
        if len(changes) == len(instances):
            continue
        pid = names.process(f"{group}: states")
        for i in instances:
            own = [change for change in changes if change.instance == i]
            until = [change.time_s for change in own[1:]] + [end_s]
            for change, last_s in zip(own, until, strict=True):
                if change.state is not State.OFF and last_s > change.time_s:
                    yield _slice(change.state.value, names.thread(pid, i, f"instance {i}"), change.time_s, last_s)
    if run.incidents:
        pid = names.process("faults")
        free_from: dict[tuple[str, str, int, int], float] = {}  # the end of the last fault by unit and lane
        threads: dict[tuple[str, str, int, int], int] = {}
        for seen in sorted(run.incidents, key=lambda incident: incident.begin_s):
            last_s = end_s if seen.end_s is None else seen.end_s
            lanes = ((seen.group, seen.kind, seen.unit, number) for number in itertools.count(1))
            # Slices of a thread must not overlap but by nesting, which faults of one unit may do: each then has a lane.
            lane = next(lane for lane in lanes if free_from.get(lane, 0.0) <= seen.begin_s)
            free_from[lane] = last_s
            name = f"{seen.group} {seen.kind} {seen.unit}" + (f" ({lane[-1]})" if lane[-1] > 1 else "")
            where = names.thread(pid, threads.setdefault(lane, len(threads)), name)
            yield _slice(f"{seen.kind} fault", where, seen.begin_s, last_s, speed=seen.speed)


def _stages(request: int, log: RequestLog, pid: int, model: str) -> Iterator[Event]:
    """Begin and end of each stage of a finished request, as asynchronous events."""
    moments = [
        ("queue", log.arrival_s[request], log.prefill_start_s[request]),
        ("prefill", log.prefill_start_s[request], log.prompt_end_s[request]),
    ]
    decode_from = log.prompt_end_s[request]
    delivered = log.delivered_s[request]
    if not math.isnan(delivered):
        moments.append(("transfer", decode_from, delivered))
        decode_from = delivered
    moments.append(("decode", decode_from, log.finish_s[request]))
    where = {"cat": f"request {model}".rstrip(), "id": request, "pid": pid, "tid": 0}
    for name, begin, end in moments:
        for phase, moment in (("b", begin), ("e", end)):
            yield {"ph": phase, "name": name, **where, "ts": moment * MICRO}

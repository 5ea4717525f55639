"""A sweep on the cores of this machine."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from simulator.planner.executor import process_pool
from simulator.sweep.errors import SweepError

Task = TypeVar("Task")
Result = TypeVar("Result")
MOST_DEATHS = 3  # of workers in a row, without any task done between them, before a sweep gives up [assumed]


def each_on_processes(function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[tuple[int, Result]]:
    """As `SweepExecutor.each`, on as many processes as there are cores; on one core, or for one task, without any."""
    left = dict(enumerate(tasks))
    if min(len(left), os.cpu_count() or 1) < 2:
        yield from ((i, function(task)) for i, task in left.items())
        return
    deaths = 0
    while left:
        before = len(left)
        try:
            for i, result in _round(function, left):
                del left[i]
                yield i, result
        except BrokenProcessPool:
            deaths = 1 if len(left) < before else deaths + 1
            if deaths >= MOST_DEATHS:
                raise SweepError(
                    f"{deaths} worker processes died one after the other, with {len(left)} of {len(tasks)} runs to go; "
                    "they may be short of memory: use --executor serial, or smaller runs"
                ) from None


def _round(function: Callable[[Task], Result], left: dict[int, Task]) -> Iterator[tuple[int, Result]]:
    """Tasks as they end on one set of workers."""
    before = set(multiprocessing.active_children())
    done = False
    with process_pool(function.__module__, min(len(left), os.cpu_count() or 1)) as submit:
        try:
            futures = submit(function, list(left.items()))
            for future in as_completed(futures):
                yield futures[future], future.result()
            done = True
        finally:
            if not done:
                for worker in set(multiprocessing.active_children()) - before:
                    worker.terminate()

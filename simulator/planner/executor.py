"""Run independent simulations on the cores of this machine."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def run_all(function: Callable[[Task], Result], tasks: Iterable[Task]) -> list[Result]:
    """function(task) for every task, in order, on as many processes as there are cores.

    Processes are spawned, not forked: the dashboard calls this from a thread.
    """
    todo = list(tasks)
    workers = min(len(todo), os.cpu_count() or 1)
    if workers < 2:
        return [function(task) for task in todo]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(function, todo))

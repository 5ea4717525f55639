"""Run independent simulations on the cores of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def run_all(
    function: Callable[[Task], Result], tasks: Iterable[Task], ended: Callable[[int], None] = lambda count: None
) -> list[Result]:
    """function(task) for every task, in order, on as many processes as there are cores.

    ended: called with how many have ended, the first that have not left out.
    """
    todo = list(tasks)
    results: list[Result] = []

    def collect(found: Iterable[Result]) -> list[Result]:
        for result in found:
            results.append(result)
            ended(len(results))
        return results

    workers = min(len(todo), os.cpu_count() or 1)
    if workers < 2:
        return collect(map(function, todo))
    context = _context(function.__module__)
    with ProcessPoolExecutor(workers, context, initializer=_adopt, initargs=(dict(os.environ),)) as pool:
        try:
            with _interrupts_held(), _main_left_alone(function.__module__):
                found = pool.map(function, todo)
            return collect(found)
        except KeyboardInterrupt:
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise


def _context(module: str) -> BaseContext:
    """How processes start. Not by forking this one, which may have threads: the dashboard's has.

    Where the system has such, a server that has imported the module forks each process in no time. It stays for later
    calls and ends with this process.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    return context


def _adopt(environment: dict[str, str]) -> None:
    """Make the caller's environment one's own: the server has that of the first call."""
    os.environ.clear()
    os.environ.update(environment)


@contextmanager
def _main_left_alone(module: str) -> Iterator[None]:
    """Processes that start inside the block do not run the caller's script again, which may have no main guard: what
    they work on comes from modules. They would find it by its file."""
    main = sys.modules["__main__"].__dict__
    hidden = module != "__main__" and main.get("__spec__") is None and "__file__" in main
    file = main.pop("__file__") if hidden else None
    try:
        yield
    finally:
        if hidden:
            main["__file__"] = file


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits for the end of the block, and the processes started inside never see it.

    A terminal sends it to every process; the parent alone answers. Signal masks are inherited by children, but
    a signal may still reach another thread of the parent, whose handler therefore waits too.
    """
    waiting: list[int] = []
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, lambda number, _: waiting.append(number)) if in_main else None
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if in_main:
            signal.signal(signal.SIGINT, handler)
    if waiting:
        raise KeyboardInterrupt


@contextmanager
def process_pool(
    module: str, workers: int
) -> Iterator[Callable[[Callable[[Task], Result], list[tuple[int, Task]]], dict[Future[Result], int]]]:
    """Worker processes for functions of `module`. Yields what hands numbered tasks to them: (function, tasks) -> the
    number of each future. Ctrl-C reaches the caller alone."""
    initargs = (dict(os.environ),)
    with ProcessPoolExecutor(workers, _context(module), initializer=_adopt, initargs=initargs) as pool:

        def submit(function: Callable[[Task], Result], tasks: list[tuple[int, Task]]) -> dict[Future[Result], int]:
            with _interrupts_held(), _main_left_alone(module):
                return {pool.submit(function, task): i for i, task in tasks}

        yield submit

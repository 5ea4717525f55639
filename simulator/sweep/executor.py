"""Where the independent runs of a sweep are worked on: here, on this machine's cores, or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from simulator.sweep.processes import each_on_processes
from simulator.sweep.ray_cluster import each_on_ray

Task = TypeVar("Task")
Result = TypeVar("Result")
Kind = Literal["serial", "processes", "ray"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class SweepExecutor:
    """kind: where tasks run. address: HOST:PORT of a Ray cluster; left out: RAY_ADDRESS."""

    kind: Kind = "processes"
    address: str | None = None

    def each(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[tuple[int, Result]]:
        """(number of the task, function(task)) of every task, as they end.

        function: of a module that the workers can import. A worker that dies takes nothing with it: its tasks run
        again. Closing the iterator, or Ctrl-C, stops the workers; what was yielded before stays with the caller.
        Raises SweepError where workers or the cluster cannot be had.
        """
        if self.kind == "ray":
            yield from each_on_ray(function, tasks, self.address)
        elif self.kind == "processes":
            yield from each_on_processes(function, tasks)
        else:
            yield from ((i, function(task)) for i, task in enumerate(tasks))

    def all(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> list[Result]:
        """function(task) of every task, in the order of the tasks."""
        found = dict(self.each(function, tasks))
        return [found[i] for i in range(len(tasks))]

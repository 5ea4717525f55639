"""A sweep on a Ray cluster. Its nodes need the same moeplan, and one's own profiles under the same path."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from simulator.sweep.errors import SweepError

Task = TypeVar("Task")
Result = TypeVar("Result")
AHEAD = 3  # tasks under way for each core of the cluster: the next ones wait where they will run [assumed]
RETRIES = 5  # of a task whose worker or node dies [assumed]
ANSWER_S = 5.0  # that a cluster's address has to answer in [s; assumed]
ADDRESS = "RAY_ADDRESS"  # environment variable that Ray itself reads
ADOPTED = ("MOEPLAN_PROFILES",)  # environment variables that change results, taken along


def each_on_ray(
    function: Callable[[Task], Result], tasks: Sequence[Task], address: str | None
) -> Iterator[tuple[int, Result]]:
    """As `SweepExecutor.each`, on the cluster at `address`."""
    with _connected(address) as ray:
        environment = {name: os.environ.get(name) for name in ADOPTED}
        remote = ray.remote(max_retries=RETRIES)(_run)
        ahead = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
        todo = iter(enumerate(tasks))
        running: dict[Any, int] = {}
        while True:
            for i, task in todo:
                running[remote.remote(function, task, environment)] = i
                if len(running) >= ahead:
                    break
            if not running:
                return
            (ended,), _ = ray.wait(list(running), num_returns=1)
            i = running.pop(ended)
            try:
                result = ray.get(ended)
            except ray.exceptions.RayTaskError as error:
                raise error.as_instanceof_cause() from None
            except ray.exceptions.RayError as error:
                raise SweepError(
                    f"run {i + 1} of {len(tasks)} was lost {RETRIES + 1} times on the Ray cluster "
                    f"({type(error).__name__}); look at the memory of its nodes"
                ) from None
            yield i, result


def _run(function: Callable[[Task], Result], task: Task, environment: dict[str, str | None]) -> Result:
    """On a worker: function(task) under the caller's environment variables."""
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    return function(task)


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Ray, connected to the cluster for the length of the block."""
    wanted = address or os.environ.get(ADDRESS)
    if not wanted:
        raise SweepError(
            "--executor ray needs the --address HOST:PORT of a running cluster, which `ray start --head` prints; "
            "or use --executor processes"
        )
    try:
        import ray
    except ImportError:
        raise SweepError(
            "--executor ray needs the package ray; install it with `pip install 'moeplan[cluster]'`, or use "
            "--executor processes"
        ) from None
    _check_answers(wanted)
    try:
        ray.init(address=wanted, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise SweepError(
            f"--address {wanted}: the Ray cluster does not let us in ({' '.join(str(error).split())}); give the "
            "address that `ray start --head` printed"
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Refuse an address behind which nobody listens: Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal() or not host:
        raise SweepError(f"--address {address} is not HOST:PORT; give the address that `ray start --head` printed")
    try:
        socket.create_connection((host, int(port)), ANSWER_S).close()
    except (OSError, OverflowError):
        raise SweepError(
            f"--address {address}: no Ray cluster answers there; start one with `ray start --head`, or use "
            "--executor processes"
        ) from None

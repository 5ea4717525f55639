"""Functions that workers can import, for tests of sweeps."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def doubled(n: int) -> int:
    return 2 * n


def process_id(_: int) -> int:
    return os.getpid()


def row_of(n: int) -> dict[str, int]:
    return {"square": n * n}


def fails(n: int) -> int:
    if n % 2:
        raise ValueError(f"{n} is odd")
    return n


def die_once(task: tuple[int, str]) -> int:
    """The number; the first worker to come to 3 is killed there."""
    number, folder = task
    if number == 3:
        try:
            (Path(folder) / "died").touch(exist_ok=False)
        except FileExistsError:
            return number
        os.kill(os.getpid(), signal.SIGKILL)
    return number

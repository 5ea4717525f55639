"""Where results go: tables to stdout, progress to stderr, JSON and CSV to files."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.errors import InputError
from simulator.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console

PIPED_WIDTH = 120  # where no terminal says how wide it is [columns]
STDOUT = Path("-")


def stdout_console() -> Console:
    """Console for tables; plain text of a fixed width when piped."""
    from rich.console import Console

    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=PIPED_WIDTH if piped else None, highlight=False, markup=False, emoji=False)


def check_writable(path: Path | None, flag: str) -> None:
    """Refuse an output file before the long computation, not after it."""
    if path is None or path == STDOUT:
        return
    folder = path.parent
    if path.is_dir():
        raise InputError(f"{flag} {path} is a directory; give the name of a file in it")
    if not folder.is_dir():
        raise InputError(f"{flag} {path}: there is no directory {folder}; create it or write elsewhere")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise InputError(f"{flag} {path} cannot be written: permission denied; write elsewhere")


def write_json(data: Any, path: Path | None) -> None:
    """Write `data` to a file, or to stdout for "-"; figures that do not exist (NaN) become null."""
    if path is None:
        return
    text = json.dumps(plain(data), indent=2, allow_nan=False) + "\n"
    if path == STDOUT:
        sys.stdout.write(text)
    else:
        path.write_text(text, encoding="utf-8")


def plain(value: Any) -> Any:
    """The same data in JSON's own types.

    >>> plain({1: (2.0, float("nan"))})
    {'1': [2.0, None]}
    """
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "item"):  # NumPy scalar
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar on stderr that is gone when done; silent where stderr is not a terminal."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    with Bar(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def update(stage: str, done: int, of: int) -> None:
            bar.update(task, description=stage, completed=done, total=of)

        yield update

"""Results of a sweep as Parquet files that grow while it runs, so that memory does not and a killed sweep goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from simulator.progress import Progress
from simulator.sweep.errors import SweepError
from simulator.sweep.executor import SweepExecutor

if TYPE_CHECKING:
    import pandas as pd

Task = TypeVar("Task")
Row = Mapping[str, Any]  # column -> value
KEY = "key"  # column that tells runs apart
ROWS_A_FILE = 500  # [assumed: some 100 kB]
LONGEST_UNWRITTEN_S = 10.0  # what a kill can cost at most [s; assumed]


class ResultStore:
    """A folder of Parquet files; each is written whole, or not at all."""

    def __init__(self, folder: Path) -> None:
        """Raises SweepError where the folder or pyarrow cannot be had."""
        try:
            import pyarrow.parquet
        except ImportError:
            raise SweepError(
                "results of a sweep go to Parquet, which needs pyarrow; `pip install 'moeplan[cluster]'` brings it"
            ) from None
        self._parquet = pyarrow.parquet
        self._table = pyarrow.Table
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SweepError(f"{folder} cannot be made a folder of results: {error.strerror}; name another") from None
        self._rows: list[dict[str, Any]] = []
        self._written = time.monotonic()

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.parquet"))

    def keys(self) -> set[str]:
        """Of the runs that are on disk."""
        return {
            key for file in self.files for key in self._parquet.read_table(file, columns=[KEY]).column(KEY).to_pylist()
        }

    def add(self, key: str, row: Row) -> None:
        """Keep a row; it is on disk when the file is full, a few seconds later, or at `flush`."""
        self._rows.append({KEY: key, **row})
        if len(self._rows) >= ROWS_A_FILE or time.monotonic() - self._written > LONGEST_UNWRITTEN_S:
            self.flush()

    def flush(self) -> None:
        """Write what is not yet on disk."""
        self._written = time.monotonic()
        if not self._rows:
            return
        last = max((int(file.stem.rpartition("-")[2]) for file in self.files), default=0)
        path = self.folder / f"part-{last + 1:06d}.parquet"
        unfinished = path.with_suffix(".unfinished")
        self._parquet.write_table(self._table.from_pylist(self._rows), unfinished)
        os.replace(unfinished, path)
        self._rows = []

    def to_frame(self) -> pd.DataFrame:
        """All rows on disk, ordered by key."""
        import pandas as pd

        frames = [self._parquet.read_table(file).to_pandas() for file in self.files]
        return pd.concat(frames, ignore_index=True).sort_values(KEY, ignore_index=True) if frames else pd.DataFrame()


@contextmanager
def _flushed(store: ResultStore) -> Iterator[None]:
    try:
        yield
    finally:
        store.flush()


def sweep(
    function: Callable[[Task], Row],
    tasks: Mapping[str, Task],
    store: ResultStore,
    executor: SweepExecutor | None = None,
    progress: Progress | None = None,
) -> int:
    """Run every task that the store does not hold yet, and return how many that were.

    tasks: by a key that stays the same from start to start. Ctrl-C leaves what is done in the store.
    """
    known = store.keys()
    keys = [key for key in tasks if key not in known]
    with _flushed(store):
        for done, (i, row) in enumerate(
            (executor or SweepExecutor()).each(function, [tasks[key] for key in keys]), start=len(tasks) - len(keys) + 1
        ):
            store.add(keys[i], row)
            if progress is not None:
                progress("sweep", done, len(tasks))
    return len(keys)

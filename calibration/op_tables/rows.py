"""Rows of a table, with the ops that the simulator would price for each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from simulator.model.ops import Op

Rows = Iterator[tuple[Any, tuple[Op, ...]]]
LARGEST = 2000  # rows of a family: fits have 4-7 parameters a class, and hold-out needs no more


def each_row(frame: pd.DataFrame) -> Iterator[Any]:
    """Rows as named tuples, of large tables a sample; what the columns hold is the table's affair."""
    if len(frame) > LARGEST:
        frame = frame.sample(LARGEST, random_state=0).sort_index()
    return iter(frame.itertuples())

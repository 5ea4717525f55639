"""Tables of answers that were asked for before."""

from __future__ import annotations

from typing import TypeVar

MOST_ANSWERS = 1 << 16  # in one table; assumed: a run asks for fewer, and a full table takes about 20 MB
Key = TypeVar("Key")


def remember(table: dict[Key, float], key: Key, seconds: float) -> None:
    """Keep an answer; a full table starts anew."""
    if len(table) >= MOST_ANSWERS:
        table.clear()
    table[key] = seconds

"""Queues of what waits: first come first served, or by priority."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")


class Queue(Protocol[T]):
    """The next one is at index 0; a deque is first come first served."""

    def append(self, item: T, /) -> None: ...
    def popleft(self) -> T: ...
    def clear(self) -> None: ...
    def __getitem__(self, index: int, /) -> T: ...
    def __delitem__(self, index: int, /) -> None: ...
    def __iter__(self) -> Iterator[T]: ...
    def __len__(self) -> int: ...


class PriorityQueue(Generic[T]):
    """Higher levels first, first come first served inside.

    level_of: the level of an item.
    """

    def __init__(self, level_of: Callable[[T], int]) -> None:
        self._level_of = level_of
        self._queues: dict[int, deque[T]] = {}  # by level, the highest first

    def append(self, item: T) -> None:
        level = self._level_of(item)
        if level not in self._queues:
            self._queues[level] = deque()
            self._queues = dict(sorted(self._queues.items(), reverse=True))
        self._queues[level].append(item)

    def popleft(self) -> T:
        """The next item, taken out."""
        for queue in self._queues.values():
            if queue:
                return queue.popleft()
        raise IndexError("pop from an empty queue")

    def clear(self) -> None:
        for queue in self._queues.values():
            queue.clear()

    def __getitem__(self, index: int) -> T:
        for queue in self._queues.values():
            if index < len(queue):
                return queue[index]
            index -= len(queue)
        raise IndexError("queue index out of range")

    def __delitem__(self, index: int) -> None:
        for queue in self._queues.values():
            if index < len(queue):
                del queue[index]
                return
            index -= len(queue)
        raise IndexError("queue index out of range")

    def __iter__(self) -> Iterator[T]:
        for queue in self._queues.values():
            yield from queue

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))


def queue_of(priority: Sequence[int] | None, request_of: Callable[[T], int]) -> Queue[T]:
    """A queue of items that stand for requests; a plain one where requests have no priorities."""
    if priority is None:
        return deque()
    return PriorityQueue(lambda item: priority[request_of(item)])

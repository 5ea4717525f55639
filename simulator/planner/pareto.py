"""Which of several points nobody beats on every axis."""

from __future__ import annotations

from collections.abc import Sequence


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indexes of the points that no other point equals or beats on both axes, larger being better, by first axis.

    Of equal points the first is kept.

    >>> pareto_front([(1, 5), (2, 4), (2, 3), (3, 1), (1, 5)])
    [0, 1, 3]
    """
    order = sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1], i))
    front: list[int] = []
    best = float("-inf")
    for i in order:
        if points[i][1] > best:
            front.append(i)
            best = points[i][1]
    return front[::-1]

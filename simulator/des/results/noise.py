"""Noise of one run: how far a statistic of its requests may be off because the run is short.

Batch means (Law, "Simulation Modeling and Analysis", chapter 9): consecutive requests depend on each other, long
batches of them hardly.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from simulator.model.arrays import Floats

BATCHES = 10  # Law advises 10 to 30
FEWEST = 10  # requests of a batch; assumed


def relative_error(values: Floats, statistic: Callable[[Floats], float]) -> float:
    """Standard error of `statistic(values)` over its value; values in order of arrival, undefined ones left out.

    0 where the values do not fill two batches, which says nothing.
    """
    values = values[~np.isnan(values)]
    batches = min(BATCHES, len(values) // FEWEST)
    whole = statistic(values) if len(values) else 0.0
    if batches < 2 or whole <= 0:
        return 0.0
    parts = [statistic(part) for part in np.array_split(values, batches)]
    return float(np.std(parts, ddof=1) / np.sqrt(batches) / whole)


def student(values: int, confidence: float) -> float:
    """Half-width of Student's interval of a mean of `values` over its standard error.

    >>> round(student(10, 0.95), 3)
    2.262
    """
    from scipy.special import stdtrit  # SciPy takes a second to import, and plans need none of it

    return float(stdtrit(values - 1, (1 + confidence) / 2))

"""Waits of prompts for their prefill, mean and median: queues of one server on arrays of points."""

from __future__ import annotations

import numpy as np

from simulator.model.arrays import Floats

BUSIEST = 0.98  # utilisation above which prefill counts as saturated, for waits grow without bound (assumed)
STEP_ROUNDS = 6  # of the fixed point of a prefill step (assumed)


def waits(served_s: Floats, busy: Floats, ahead: Floats, bunching: Floats) -> tuple[Floats, Floats]:
    """Mean and median wait of a prompt. served_s: of one prompt; ahead: others of which it finds half if all come at
    once."""
    capped = np.minimum(busy, BUSIEST)
    mean = served_s * capped / (2 * (1 - capped))
    return _bounded(mean, _median_wait(mean, capped), served_s, ahead, bunching)


def _median_wait(mean: Floats, busy: Floats) -> Floats:
    """Of Poisson arrivals a share `busy` waits at all, W / busy in the mean; taken as exponential, the median of all is
    W / busy ln(2 busy), and nothing up to half busy."""
    median: Floats = mean / np.maximum(busy, 0.5) * np.log(np.maximum(2 * busy, 1.0))
    return median


def _bounded(mean: Floats, median: Floats, served_s: Floats, ahead: Floats, bunching: Floats) -> tuple[Floats, Floats]:
    """Both waits, at most that of all who are ahead coming at once, and at least the share `bunching` of it."""
    together = np.maximum(ahead, 0.0) * served_s / 2
    bunched = bunching * together
    return np.maximum(np.minimum(mean, together), bunched), np.maximum(np.minimum(median, together), bunched)


def waits_of_steps(
    own_s: Floats, served_s: Floats, most: Floats, rate: Floats, ahead: Floats, bunching: Floats
) -> tuple[Floats, Floats]:
    """Mean and median of what a prompt takes longer than alone, where steps take all prompts that came during the one
    before, at most `most`.

    own_s: step of one prompt; served_s: of a full step for each of its prompts; rate: prompts/s; ahead, bunching: as
    in `waits`. A step of n takes f + n m. With lambda arrivals/s, steps of S = (f + m P0) / (1 - lambda m) follow each
    other, P0 = exp(-lambda S) being the chance that one ends with nothing to do. A prompt waits for half of the step
    that runs (if one does), is served with the lambda S others that came in its time, and where even full steps hardly
    keep up it queues as in M/D/1 (rho^2 s / (2 (1 - rho)) beyond the prompt in service). Means are within 20% of a
    simulated queue, see the tests.
    """
    more = np.where(most > 1, np.maximum(0.0, most * served_s - own_s) / np.maximum(most - 1, 1), 0.0)
    fixed = np.maximum(0.0, own_s - more)
    busy = np.minimum(rate * served_s, BUSIEST)
    filling = np.minimum(rate * more, BUSIEST)
    step = own_s
    for _ in range(STEP_ROUNDS):
        found = (fixed + more * np.exp(-rate * step)) / (1 - filling)
        step = np.sqrt(step * np.minimum(found, np.maximum(own_s, most * served_s)))  # the mean keeps it from swinging
    idle = np.exp(-rate * step)
    running = np.maximum(busy, rate * step / (rate * step + idle))
    queue = served_s * busy**2 / (2 * (1 - busy))
    mean = running * step * (0.5 + filling) + queue
    in_median = np.maximum(0.0, running - 0.5) / np.maximum(running, 0.5)
    median = in_median * step + (running > 0.5) * filling * step + _median_wait(queue, busy)
    return _bounded(mean, median, served_s, ahead, bunching)

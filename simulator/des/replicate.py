"""Several independent runs of one scenario: means with confidence intervals, and where warm-up ends.

Intervals are Student's t over one number a run (Law, "Simulation Modeling and Analysis", chapter 9), so requests of
one run may depend on each other. MSER-5 (White 1997) cuts the warm-up where the standard error of the rest is least.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.des.results.noise import student
from simulator.des.results.result import SimulationResult
from simulator.des.simulate import simulate
from simulator.scenario import Scenario, ScenarioError

FEWEST = 3  # runs before the width of an interval is trusted
MSER_BATCH = 5  # values that are averaged first: the 5 of MSER-5
FEWEST_BATCHES = 4  # below it there is no first half to cut in


@dataclass(frozen=True)
class Estimate:
    """Mean over runs, with the half-width of its confidence interval."""

    mean: float
    half_width: float
    runs: int

    @property
    def relative(self) -> float:
        """Half-width over mean."""
        if self.half_width == 0:
            return 0.0
        return self.half_width / abs(self.mean) if self.mean else float("inf")


def estimate(values: list[float], confidence: float) -> Estimate:
    """Student's interval of the mean of independent values, at least two."""
    count = len(values)
    half = student(count, confidence) * float(np.std(values, ddof=1)) / np.sqrt(count)
    return Estimate(float(np.mean(values)), float(half), count)


@dataclass(frozen=True)
class Replications:
    """What several runs say. estimates: by key such as "metrics.ttft_s.p99"; those that some run lacks are left out."""

    confidence: float
    seeds: tuple[int, ...]
    estimates: dict[str, Estimate]
    warmup: tuple[int, ...]  # requests that MSER-5 would leave out of each run's TTFT

    def to_json(self) -> dict[str, Any]:
        return {
            "confidence": self.confidence,
            "seeds": list(self.seeds),
            "warmup_requests_mser5": list(self.warmup),
            "estimates": {
                key: {"mean": e.mean, "half_width": e.half_width} for key, e in sorted(self.estimates.items())
            },
        }


def seeds_of(first: int, count: int) -> list[int]:
    """Independent seeds; the first is the scenario's own, so that run 0 is what `simulate` shows."""
    children = np.random.SeedSequence(first).spawn(count)
    return [first, *(int(child.generate_state(1, np.uint64)[0]) for child in children)][:count]


def replicate(
    scenario: Scenario,
    *,
    runs: int,
    confidence: float = 0.95,
    tolerance: float | None = None,
    watched: str = "metrics.ttft_s.p99",
    progress: Callable[[int, int], None] | None = None,
) -> Replications:
    """Run the scenario up to `runs` times.

    tolerance: stop, after at least three runs, once the interval of `watched` is within this share of its mean.
    """
    if runs < 2:
        raise ScenarioError(f"runs={runs} gives no interval; ask for at least 2")
    if not 0 < confidence < 1:
        raise ScenarioError(f"confidence={confidence:g} is not between 0 and 1; give for example 0.95")
    rows: list[dict[str, float]] = []
    warmup = []
    seeds = seeds_of(scenario.seed, runs)
    for done, seed in enumerate(seeds, start=1):
        result = simulate(scenario, seed=seed)
        row = headline(result)
        if watched not in row:
            raise ScenarioError(f"watched='{watched}' is not a result; choose one of {', '.join(sorted(row))}")
        rows.append(row)
        warmup.append(mser5(result.ttft_s[~np.isnan(result.ttft_s)]))
        if progress is not None:
            progress(done, runs)
        tight = tolerance is not None and done >= FEWEST
        if tight and estimate([row[watched] for row in rows], confidence).relative <= (tolerance or 0.0):
            break
    keys = set.intersection(*(set(row) for row in rows))
    estimates = {key: estimate([row[key] for row in rows], confidence) for key in keys}
    return Replications(confidence, tuple(seeds[: len(rows)]), estimates, tuple(warmup))


def headline(result: SimulationResult) -> dict[str, float]:
    """Latencies, rates, utilisations and cost of a run, by dotted key."""
    summary = result.summary().to_json()
    flat: dict[str, float] = {}

    def walk(prefix: str, node: Any) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                walk(f"{prefix}.{key}", value)
        elif isinstance(node, (int, float)) and not isinstance(node, bool):
            flat[prefix] = float(node)

    for section in ("metrics", "throughput", "utilization", "cost"):
        walk(section, summary[section])
    return flat


def mser5(values: NDArray[np.float64]) -> int:
    """Leading values to leave out: of all cuts in the first half, the one with the least standard error behind it.

    Values are averaged by fives first.
    """
    batches = len(values) // MSER_BATCH
    if batches < FEWEST_BATCHES:
        return 0
    means = values[: batches * MSER_BATCH].reshape(batches, MSER_BATCH).mean(axis=1)
    left = np.arange(batches, 0, -1)
    tail = np.cumsum(means[::-1])[::-1] / left
    squares = np.cumsum(means[::-1] ** 2)[::-1] / left
    errors = np.maximum(squares - tail**2, 0.0) / left
    return MSER_BATCH * int(np.argmin(errors[: batches // 2]))

"""Lengths of requests as an equilibrium needs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from simulator.model.arrays import Floats

BINS = 5  # equally likely classes of prompts
DRAWS = 64  # of prompts spread over ranks
SPREAD_BY_TURNS = 96  # prompts that are dealt out one by one; of more, the busiest rank's lead stays the same


@dataclass(frozen=True)
class TrafficSample:
    """Paired token counts of equally likely requests.

    prompts: tokens that are computed; outputs: [requests]. cached: tokens in front of each prompt whose KV is there.
    """

    prompts: Floats
    outputs: Floats
    cached: float = 0.0

    @classmethod
    def of(
        cls, prompts: Sequence[float] | Floats, outputs: Sequence[float] | Floats, cached: float = 0.0
    ) -> TrafficSample:
        return cls(np.asarray(prompts, dtype=float), np.asarray(outputs, dtype=float), cached)

    @property
    def prompt(self) -> float:
        return float(self.prompts.mean())

    @property
    def output(self) -> float:
        return float(self.outputs.mean())

    @cached_property
    def bins(self) -> Floats:
        """Mean of each of BINS equally likely parts of the sorted prompts; their mean is that of all. [tokens]"""
        parts = np.array_split(np.sort(np.repeat(self.prompts, BINS)), BINS)
        return np.array([part.mean() for part in parts])

    def longest(self, k: float) -> tuple[Floats, Floats]:
        """The longest of k prompts: the chance that it is in each of BINS parts of the sorted prompts, and its mean
        there. P(longest is the i-th of n) = (i/n)^k - ((i-1)/n)^k. [-, tokens]"""
        found = self._longest.get(k)
        if found is None:
            found = self._longest[k] = self._longest_of(k)
        return found

    @cached_property
    def _longest(self) -> dict[float, tuple[Floats, Floats]]:
        return {}

    def _longest_of(self, k: float) -> tuple[Floats, Floats]:
        lengths = np.sort(np.repeat(self.prompts, BINS))
        chances = np.diff((np.arange(len(lengths) + 1) / len(lengths)) ** k)
        parts = np.array_split(chances, BINS), np.array_split(chances * lengths, BINS)
        share, tokens = (np.array([part.sum() for part in side]) for side in parts)
        return share, np.where(share > 0, tokens / np.maximum(share, 1e-300), self.bins)

    def lead(self, ranks: int, k: float) -> float:
        """Tokens that the busiest rank has beyond the mean, when k prompts go one by one to the rank with fewest. In
        the mean over draws with a fixed seed. [tokens]"""
        turns = min(round(k), max(SPREAD_BY_TURNS, ranks))
        if ranks == 1 or turns <= 1 or not self.prompts.std():
            return 0.0
        found = self._leads.get((ranks, turns))
        if found is None:
            drawn = np.random.default_rng(0).choice(self.prompts, size=(turns, DRAWS))
            loads, rows = np.zeros((DRAWS, ranks)), np.arange(DRAWS)
            for lengths in drawn:
                loads[rows, loads.argmin(axis=1)] += lengths
            found = self._leads[ranks, turns] = float((loads.max(axis=1) - loads.mean(axis=1)).mean())
        return found

    @cached_property
    def _leads(self) -> dict[tuple[int, int], float]:
        return {}

    @cached_property
    def context(self) -> tuple[float, float]:
        """Mean and standard deviation of the context of a running sequence, over the time that it runs. [tokens]

        A request of P and O tokens decodes O steps at contexts evenly between P and P + O.
        """
        weight = self.outputs / self.outputs.sum()
        middle = self.cached + self.prompts + self.outputs / 2
        mean = float((weight * middle).sum())
        square = float((weight * (middle**2 + self.outputs**2 / 12)).sum())
        return mean, max(0.0, square - mean**2) ** 0.5

    def capped(self, cap: int) -> float:
        """Mean of min(context, cap) over the time that sequences run. [tokens]"""
        low, high = self.cached + self.prompts, self.cached + self.prompts + self.outputs
        top = np.clip(cap, low, high)
        below = (top - low) * (low + top) / 2
        return float((below + (high - top) * cap).sum() / self.outputs.sum())

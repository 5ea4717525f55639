"""Lengths of requests as an equilibrium needs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from simulator.steady_state.arrays import Array

BINS = 5  # equally likely classes of prompts


@dataclass(frozen=True)
class Traffic:
    """Paired token counts of equally likely requests. prompts, outputs: [requests]"""

    prompts: Array
    outputs: Array

    @classmethod
    def of(cls, prompts: Sequence[float] | Array, outputs: Sequence[float] | Array) -> Traffic:
        return cls(np.asarray(prompts, dtype=float), np.asarray(outputs, dtype=float))

    @property
    def prompt(self) -> float:
        return float(self.prompts.mean())

    @property
    def output(self) -> float:
        return float(self.outputs.mean())

    @cached_property
    def bins(self) -> Array:
        """Mean of each of BINS equally likely parts of the sorted prompts; their mean is that of all. [tokens]"""
        parts = np.array_split(np.sort(np.repeat(self.prompts, BINS)), BINS)
        return np.array([part.mean() for part in parts])

    @cached_property
    def context(self) -> tuple[float, float]:
        """Mean and standard deviation of the context of a running sequence, over the time that it runs. [tokens]

        A request of P and O tokens decodes O steps at contexts evenly between P and P + O.
        """
        weight = self.outputs / self.outputs.sum()
        middle = self.prompts + self.outputs / 2
        mean = float((weight * middle).sum())
        square = float((weight * (middle**2 + self.outputs**2 / 12)).sum())
        return mean, max(0.0, square - mean**2) ** 0.5

    def capped(self, cap: int) -> float:
        """Mean of min(context, cap) over the time that sequences run. [tokens]"""
        low, high = self.prompts, self.prompts + self.outputs
        top = np.clip(cap, low, high)
        below = (top - low) * (low + top) / 2
        return float((below + (high - top) * cap).sum() / self.outputs.sum())

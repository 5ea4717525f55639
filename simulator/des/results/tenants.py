"""The requests of one tenant in a finished run: their latencies, and how they stand against the tenant's limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.scenario import Slo

PERCENTILES = (50, 90, 95, 99)
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def spread(values: Floats) -> dict[str, float | None]:
    """Mean and percentiles of the defined values; None where there are none."""
    values = values[~np.isnan(values)]
    keys = ("mean", *(f"p{p}" for p in PERCENTILES))
    if not len(values):
        return dict.fromkeys(keys)
    numbers = (float(np.mean(values)), *np.percentile(values, PERCENTILES).tolist())
    return dict(zip(keys, numbers, strict=True))


@dataclass(frozen=True)
class Share:
    """One tenant's part of the requests, which are columns of one entry a request.

    values: by metric, NaN where undefined. measured: requests behind the warm-up.
    """

    tenant: str
    priority: int
    offline: bool
    slo: Slo
    rows: slice  # of the run
    values: Mapping[str, Floats]
    finished: Mask
    measured: Mask

    @cached_property
    def met(self) -> dict[str, Mask]:
        """Per limit, the requests that kept it; one output token has no TPOT and keeps every TPOT limit."""
        kept = {}
        for name, limit in self.slo.limits.items():
            values = self.values[name]
            kept[name] = self.finished & ((values <= limit) | (np.isnan(values) if name == "tpot_s" else False))
        return kept

    @cached_property
    def good(self) -> Mask:
        """Requests that finished and kept every limit."""
        return np.logical_and.reduce([self.finished, *self.met.values()])

    @property
    def attainment(self) -> float | None:
        """Share of the measured requests that finished inside every limit; refused ones count as missed."""
        return float(np.mean(self.good[self.measured])) if self.measured.any() else None

    @property
    def meets_slo(self) -> bool:
        return self.attainment is None or self.attainment >= self.slo.percentile / 100

    def metrics(self) -> dict[str, dict[str, float | None]]:
        return {name: spread(values[self.measured & self.finished]) for name, values in self.values.items()}

    def slo_report(self) -> dict[str, Any]:
        """Per limit: the value at the wanted percentile of those that finished, and the share of all that keep it."""
        wanted = self.slo.percentile
        table: dict[str, Any] = {}
        for name, limit in self.slo.limits.items():
            values = self.values[name][self.measured & self.finished]
            values = values[~np.isnan(values)]
            table[name] = {
                "limit": limit,
                "at_percentile": float(np.percentile(values, wanted)) if len(values) else None,
                "attainment": float(np.mean(self.met[name][self.measured])) if self.measured.any() else None,
            }
        return {
            "percentile": wanted,
            "attainment": self.attainment,
            "meets_slo": self.meets_slo,
            "limits": table,
        }

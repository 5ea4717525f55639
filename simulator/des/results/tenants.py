"""The requests of one tenant in a finished run: their latencies, and how they stand against the tenant's limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from simulator.des.results.reports import LimitReport, Percentiles, SloReport, percentiles_of
from simulator.model.arrays import Floats, Mask
from simulator.scenario import Slo


@dataclass(frozen=True)
class TenantRequests:
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

    def metrics(self) -> dict[str, Percentiles]:
        return {name: percentiles_of(values[self.measured & self.finished]) for name, values in self.values.items()}

    def slo_report(self) -> SloReport:
        wanted = self.slo.percentile
        limits: dict[str, LimitReport] = {}
        for name, limit in self.slo.limits.items():
            values = self.values[name][self.measured & self.finished]
            values = values[~np.isnan(values)]
            limits[name] = LimitReport(
                limit,
                float(np.percentile(values, wanted)) if len(values) else None,
                float(np.mean(self.met[name][self.measured])) if self.measured.any() else None,
            )
        return SloReport(wanted, self.attainment, self.meets_slo, limits)

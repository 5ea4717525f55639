"""[slo] and [[tenants]]: who sends what, and what they were promised."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, FiniteFloat

from simulator.scenario.keys import Keys, Positive
from simulator.scenario.workload import Workload


class Slo(Keys):
    """Latency limits that the given share of requests must meet."""

    ttft_s: Positive | None = None
    tpot_s: Positive | None = None
    e2e_s: Positive | None = None
    percentile: Annotated[FiniteFloat, Field(gt=0, lt=100, strict=True)] = 90.0

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by metric."""
        named = {"ttft_s": self.ttft_s, "tpot_s": self.tpot_s, "e2e_s": self.e2e_s}
        return {name: limit for name, limit in named.items() if limit is not None}


class Tenant(Keys):
    """One of several users of the deployment."""

    name: str
    workload: Workload
    slo: Slo | None = None  # none: the scenario's; offline work has none
    # Who is higher is admitted first, in order of arrival among equals; what has begun is not interrupted for it.
    priority: Annotated[int, Field(ge=-1000, le=1000, strict=True)] = 0

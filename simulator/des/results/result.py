"""A finished simulation: every request, and what they add up to."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from simulator.des.results.groups import group_results
from simulator.des.results.measured import Measured, counts_of
from simulator.des.results.reports import Summary

if TYPE_CHECKING:
    import pandas as pd


class SimulationResult(Measured):
    """What `simulate` gives. `requests` is a table of one row a request, `summary` what a report shows."""

    @cached_property
    def requests(self) -> pd.DataFrame:
        from simulator.des.results.request_table import request_table  # brings pandas, which plans do without

        return request_table(self)

    def summary(self) -> Summary:
        log = self.run.log
        return Summary(
            counts_of(log.status),
            dict(self.rejections),
            int(sum(log.preemptions)),
            sum(log.retries),
            sum(log.cached_tokens),
            int(self.prompt_tokens[self.finished].sum()),
            int(self.output_tokens[self.finished].sum()),
            self.run.end.time_s,
            self.warmup,
            sum(usage.most_gpus for usage in self.groups.values()),
            self.metrics(),
            self.throughput(),
            self.slo_report(),
            self.tenants(),
            self.utilization(),
            group_results(self),
            self.lifecycle(),
            self.cost(),
            self.energy(),
            self.assumptions if self.too_short is None else (*self.assumptions, self.too_short),
        )

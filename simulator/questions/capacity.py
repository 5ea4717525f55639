"""The most traffic that a cluster carries inside its limits, what binds there, and what one instance more brings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from simulator.des.replicate import seeds_of
from simulator.progress import Progress
from simulator.questions.binding import Binding, binding_of, group_label
from simulator.questions.trial import RunFigures, Trial, at_rate, deployed, measure, rate_of
from simulator.scenario import Deployment, OpenLoop, Scenario
from simulator.sweep.executor import SweepExecutor

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

REPLICATIONS = 3  # runs at each rate [assumed]
TOLERANCE = 0.01  # relative width of the interval that holds the answer at the end [assumed]
FIRST_STEP = 1.5  # factor between the first rates that are tried [assumed]
MOST_STEPS = 40  # such factors from the first rate, either way, before the search gives up: 1e7
LEAST_SHARE_SERVED = 0.95  # of what comes in a window, below which a queue grows [assumed]
IDLE = 1e-4  # of the first rate, below which requests never meet: what is missed there is always missed [assumed]
LIGHT = 0.1  # of the scenario's rate, at which requests hardly meet [share; assumed]
TOLERANCE_OF_GAIN = 0.1  # of what one instance more could bring at most [share; assumed]
FIRST_RATE = 1.0  # tried where the scenario names none [requests/s; assumed]


@dataclass(frozen=True)
class RatePoint:
    """A rate that was tried: means over its runs."""

    rate: float
    holds: bool
    attainment: float
    served_per_s: float
    ttft_s: float | None
    tpot_s: float | None
    e2e_s: float | None
    tok_s_per_user: float | None
    total_tok_s_per_gpu: float
    usd_per_mtok_input: float | None
    usd_per_mtok_cached: float | None
    usd_per_mtok_output: float | None
    usd_per_mtok_blended: float | None


@dataclass(frozen=True)
class Gain:
    """What one instance more of a pool brings. rate_per_gpu: requests/s for each accelerator of it; 0 where other
    pools bind."""

    pool: str
    gpus: int
    rate: float
    rate_per_gpu: float


@dataclass(frozen=True)
class Capacity:
    """The most traffic of a deployment.

    rate: the highest that was seen to hold [requests/s], 0 where none did; above: the lowest that did not, None where
    none was tried. planned_rate: of the scenario. busy, kv: at `rate`, by group. complete: False where
    Ctrl-C cut it short.
    """

    name: str
    percentile: float
    rate: float
    above: float | None
    planned_rate: float | None
    gpus: int
    binding: Binding | None
    busy: dict[str, float]
    kv: dict[str, float]
    gains: tuple[Gain, ...]
    points: tuple[RatePoint, ...]
    replications: int
    complete: bool

    @property
    def headroom(self) -> float | None:
        """What more than the scenario's rate is carried, as a share of it."""
        return None if not self.planned_rate else self.rate / self.planned_rate - 1

    @property
    def best(self) -> RatePoint | None:
        """The point at `rate`."""
        return next((point for point in self.points if point.rate == self.rate), None)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"headroom": self.headroom}

    def to_frame(self) -> pd.DataFrame:
        """One row a rate that was tried, by rate."""
        import pandas as pd

        return pd.DataFrame([asdict(point) for point in self.points])

    def figure(self) -> go.Figure:
        """Share of the requests inside the limits against the rate."""
        from simulator.questions.charts import capacity_chart

        return capacity_chart(self.to_frame(), self.rate, self.percentile)


def capacity(
    scenario: Scenario,
    *,
    replications: int = REPLICATIONS,
    tolerance: float = TOLERANCE,
    gains: bool = True,
    executor: SweepExecutor | None = None,
    progress: Progress | None = None,
) -> Capacity:
    """The highest rate at which the scenario's deployment keeps its limits, by bisection over simulated runs.

    A rate holds if, in the mean over `replications` runs, the share of requests inside every limit reaches the
    percentile and no queue grows. All rates are played with the same seeds. Raises ScenarioError for what has no rate
    or no deployment. Ctrl-C returns what is known by then.
    """
    deployment = deployed(scenario)
    planned = rate_of(scenario.one_workload())
    search = _RateSearch(scenario, replications, tolerance, executor or SweepExecutor(), progress or (lambda *_: None))
    complete = True
    found: list[Gain] = []
    try:
        search.bisect(planned or FIRST_RATE)
        if gains and search.low > 0:
            for pool, groups in deployment.pools.items():
                for place, group in enumerate(groups):
                    if group.autoscale is None:
                        found.append(_gain(search, deployment, pool, place))
    except KeyboardInterrupt:
        complete = False
    return search.answer(planned, tuple(found), complete)


class _RateSearch:
    """Rates that were tried, and the interval that holds the answer."""

    def __init__(
        self, scenario: Scenario, replications: int, tolerance: float, executor: SweepExecutor, progress: Progress
    ) -> None:
        self.scenario = scenario
        self.seeds = seeds_of(scenario.seed, replications)
        self.tolerance = tolerance
        self.executor = executor
        self.progress = progress
        self.runs: dict[float, list[RunFigures]] = {}
        self.low = 0.0
        self.high: float | None = None

    def bisect(self, first: float, step: float = FIRST_STEP) -> None:
        """Close in on the answer by one run a rate, two rates at a time; then settle it with all runs at both ends.

        Rates go up or down from `first` by factors of `step` until the answer lies between two.
        """
        low, high = self._bracket(first, step)
        while low > 0 and high > low * (1 + self.tolerance):
            thirds = (low + (high - low) / 3, high - (high - low) / 3)
            held = self._try(thirds, 1)
            low, high = (
                (low, thirds[0]) if not held[0] else (thirds[0], thirds[1]) if not held[1] else (thirds[1], high)
            )
        if low > 0:
            self._settle(low, high)

    def holds(self, rate: float) -> bool:
        """With all runs."""
        return self._try((rate,), len(self.seeds))[0]

    def _bracket(self, first: float, step: float) -> tuple[float, float]:
        """The highest rate of a ladder that holds, 0 where none does, and the one above it."""
        low, high, rungs = 0.0, 0.0, (first, first * step)
        for _ in range(MOST_STEPS):
            held = self._try(rungs, 1)
            if held[0] and not held[1]:
                return rungs
            if held[1]:
                low = rungs[1]
                if high:
                    return low, high
                rungs = (rungs[1] * step, rungs[1] * step**2)
            else:
                high = rungs[0]
                if low:
                    return low, high
                rungs = (rungs[0] / step**2, rungs[0] / step)
                if rungs[1] < IDLE * first:
                    break
        return low, high

    def _settle(self, low: float, high: float) -> None:
        """With all runs: step down from a lower end that does not hold after all, up from an upper end that does."""
        every = len(self.seeds)
        ends = self._try((low, high), every)
        while not ends[0]:
            low, high, ends = low / (1 + self.tolerance), low, [False, False]
            ends[0] = self._try((low,), every)[0]
        while ends[1]:
            low, high = high, high * (1 + self.tolerance)
            ends[1] = self._try((high,), every)[0]
        self.low, self.high = low, high

    def _try(self, rates: Sequence[float], replications: int) -> list[bool]:
        """Whether each rate holds, in that many runs."""
        wanted = [(rate, seed) for rate in rates for seed in self.seeds[len(self.runs.get(rate, ())) : replications]]
        self.progress(f"{' and '.join(f'{rate:.4g}' for rate in rates)} requests/s", len(self.runs), 0)
        tasks = [Trial(at_rate(self.scenario, rate, self.lifetime_s), seed) for rate, seed in wanted]
        for (rate, _), seen in zip(wanted, self.executor.all(measure, tasks), strict=True):
            self.runs.setdefault(rate, []).append(seen)
        held = [holds(self.scenario, self.runs[rate][:replications]) for rate in rates]
        for rate, good in zip(rates, held, strict=True):  # what is known if it is cut short
            if good:
                self.low = max(self.low, rate)
            else:
                self.high = rate if self.high is None else min(self.high, rate)
        return held

    @cached_property
    def lifetime_s(self) -> float:
        """What a request may take inside the limits: as one that meets no other, with the TTFT and TPOT it may have."""
        slo = self.scenario.slo
        if slo.e2e_s is not None:
            return slo.e2e_s
        rate = rate_of(self.scenario.one_workload()) or FIRST_RATE
        alone = measure(Trial(at_rate(self.scenario, rate * LIGHT, None), self.seeds[0]))
        own = alone.e2e_s or 0.0
        slower = slo.tpot_s / alone.tpot_s if slo.tpot_s is not None and alone.tpot_s else 1.0
        return max(own, (slo.ttft_s or 0.0) + own * slower)

    def answer(self, planned: float | None, gains: tuple[Gain, ...], complete: bool) -> Capacity:
        deployment = deployed(self.scenario)
        at_low = self.runs.get(self.low, [])
        beyond = self.runs.get(self.high, []) if self.high is not None else []
        return Capacity(
            self.scenario.name,
            self.scenario.slo.percentile,
            self.low,
            self.high,
            planned,
            deployment.gpus,
            binding_of(deployment, beyond) if beyond else None,
            {name: _mean([run.busy[name] for run in at_low]) for name in at_low[0].busy} if at_low else {},
            {name: _mean([run.kv[name] for run in at_low]) for name in at_low[0].kv} if at_low else {},
            gains,
            tuple(_point(rate, runs, holds(self.scenario, runs)) for rate, runs in sorted(self.runs.items())),
            len(self.seeds),
            complete,
        )


def holds(scenario: Scenario, runs: Sequence[RunFigures]) -> bool:
    """Whether limits are kept, and no queue grows, in the mean over runs of a rate."""
    slo = scenario.slo
    if slo.limits and _mean([run.attainment for run in runs]) < slo.percentile / 100:
        return False
    # Arrivals last several lifetimes of a request inside the limits: where they did not, it took much longer.
    if isinstance(scenario.workload, OpenLoop) and any(run.too_short for run in runs):
        return False
    return _mean([run.requests_per_s for run in runs]) >= LEAST_SHARE_SERVED * _mean([run.came_per_s for run in runs])


def _gain(search: _RateSearch, deployment: Deployment, pool: str, place: int) -> Gain:
    """One instance more in a group of a pool."""
    groups = list(deployment.pools[pool])
    group = groups[place]
    groups[place] = group.model_copy(update={"instances": group.instances + 1})
    wider = deployment.model_copy(update={pool: groups[0] if len(groups) == 1 else tuple(groups)})
    scenario = search.scenario.model_copy(update={"deployment": wider})
    one_more = 1 / group.instances
    tolerance = min(search.tolerance, TOLERANCE_OF_GAIN * one_more)
    more = _RateSearch(scenario, len(search.seeds), tolerance, search.executor, search.progress)
    label, gpus = group_label(pool, group, len(groups)), group.gpus_per_instance
    assert search.high is not None
    if not more.holds(search.high):
        return Gain(label, gpus, search.low, 0.0)
    more.bisect(search.high, 1 + one_more / 2)
    return Gain(label, gpus, more.low, (more.low - search.low) / gpus)


def _point(rate: float, runs: Sequence[RunFigures], held: bool) -> RatePoint:
    def cost(kind: str) -> float | None:
        found = [getattr(run.cost, kind) for run in runs if run.cost is not None]
        return _mean(found) if found else None

    def tail(name: str) -> float | None:
        return _mean_of_known([getattr(run, name) for run in runs])

    return RatePoint(
        rate=rate,
        holds=held,
        attainment=_mean([run.attainment for run in runs]),
        served_per_s=_mean([run.requests_per_s for run in runs]),
        ttft_s=tail("ttft_s"),
        tpot_s=tail("tpot_s"),
        e2e_s=tail("e2e_s"),
        tok_s_per_user=tail("tok_s_per_user"),
        total_tok_s_per_gpu=_mean([run.total_tok_s_per_gpu for run in runs]),
        usd_per_mtok_input=cost("usd_per_mtok_input"),
        usd_per_mtok_cached=cost("usd_per_mtok_cached"),
        usd_per_mtok_output=cost("usd_per_mtok_output"),
        usd_per_mtok_blended=cost("usd_per_mtok_blended"),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _mean(known) if known else None

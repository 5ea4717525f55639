"""Months to come: accelerators to buy, with spares for faults, and what they cost, draw and emit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Any

from hw_profiles.catalog import load
from simulator.des.replicate import seeds_of
from simulator.planner.search import plan
from simulator.progress import Progress
from simulator.questions.binding import binding_of
from simulator.questions.capacity import holds
from simulator.questions.curves import layout
from simulator.questions.demand import MonthlyDemand
from simulator.questions.headroom import Headroom, headroom
from simulator.questions.money import (
    CONVENTIONS,
    FOLLOWS_DEMAND,
    GRAMS_CO2_PER_KWH,
    HOURS_A_MONTH,
    PUE,
    SECONDS_A_MONTH,
    ApiPrice,
    idle_w,
    overhead_w,
    stand_ins,
    usd_per_hour,
)
from simulator.questions.sides import usual_stack
from simulator.questions.token_cost import split
from simulator.questions.trial import RunFigures, Trial, at_rate, measure
from simulator.scenario import Deployment, Scenario, ScenarioError
from simulator.sweep.executor import SweepExecutor

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

AVAILABILITY = 0.999  # share of the time in which enough instances are up [assumed]
MOST_MENDED = 12  # instances that a month's deployment is given beyond its share of the planned one [assumed]
WATTS_PER_KW = 1e3


@dataclass(frozen=True)
class Generation:
    """An accelerator that can be bought from a month on; None: from the start."""

    gpu: str
    stack: str = "default"
    since: date | None = None

    @property
    def name(self) -> str:
        part = load(self.gpu, self.stack)
        return part.name if self.stack == "default" else f"{part.name}@{self.stack}"


@dataclass(frozen=True)
class Cohort:
    """What of a month's traffic one generation serves, at the peak, and on what."""

    generation: str
    peak_rate: float
    layout: str
    gpus: int
    spare: dict[str, int]
    spare_gpus: int


@dataclass(frozen=True)
class Month:
    """One month. gpus_needed: for its own peak, spares left out; gpus: that are there, bought up to now, spares
    included. utilisation: mean traffic over what is there for. USD by convention; USD/Mtok by the scenario's, at the
    mean traffic, everything that is there included."""

    month: date
    peak_rate: float
    mean_rate: float
    gpus_needed: int
    spare_gpus: int
    gpus: int
    bought: int
    utilisation: float
    usd: dict[str, float | None]
    usd_per_mtok_input: float | None
    usd_per_mtok_cached: float | None
    usd_per_mtok_output: float | None
    kwh: float | None
    co2_kg: float | None
    api_usd: float | None
    cohorts: tuple[Cohort, ...]


@dataclass(frozen=True)
class BreakEven:
    """Against an API. month: the first in which owning costs less, None: none. rate: mean requests/s at which the last
    month's fleet costs as much as the API."""

    month: date | None
    rate: float
    usd_own: float
    usd_api: float


@dataclass(frozen=True)
class Forecast:
    """complete: False where Ctrl-C cut it short: the months that were done are there."""

    scenario: str
    convention: str
    months: tuple[Month, ...]
    totals: dict[str, float | None]
    break_even: BreakEven | None
    availability: float
    fault_source: str
    assumptions: tuple[str, ...]
    complete: bool

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        for row in data["months"]:
            row["month"] = f"{row['month']:%Y-%m}"
        if data["break_even"] and data["break_even"]["month"]:
            data["break_even"]["month"] = f"{data['break_even']['month']:%Y-%m}"
        return data

    def to_frame(self) -> pd.DataFrame:
        """One row a month, a column for each convention."""
        import pandas as pd

        rows = []
        for month in self.months:
            row = asdict(month)
            usd, cohorts = row.pop("usd"), row.pop("cohorts")
            row |= {f"usd_{name}": value for name, value in usd.items()}
            rows.append(row | {"layouts": "; ".join(cohort["layout"] for cohort in cohorts)})
        return pd.DataFrame(rows)

    def figure(self) -> go.Figure:
        """Accelerators and money by month."""
        from simulator.questions.charts import forecast_chart

        return forecast_chart(self.to_frame(), self.convention)


@dataclass
class _Purchases:
    """Deployments of one generation at any rate: shares of the one that is planned for the highest."""

    scenario: Scenario
    generation: Generation
    planned: Deployment
    planned_rate: float
    usd_per_request: float
    lifetime_s: float  # of a request, by the plan
    seeds: Sequence[int]
    executor: SweepExecutor
    known: dict[float, tuple[Deployment, list[RunFigures]]] = field(default_factory=dict)

    def serving(self, rate: float) -> Deployment:
        """The pools of the planned deployment cut down to the rate, and instances added where simulation misses."""
        if rate not in self.known:
            self.known[rate] = self._mended(rate, self._share(rate))
        return self.known[rate][0]

    def _share(self, rate: float) -> Deployment:
        pools = {
            name: pool.model_copy(
                update={"instances": max(1, math.ceil(pool.instances * rate / self.planned_rate - 1e-9))}
            )
            for name, pool in self.planned.lone_pools.items()
        }
        return self.planned.model_copy(update=pools)

    def _mended(self, rate: float, deployment: Deployment) -> tuple[Deployment, list[RunFigures]]:
        for _ in range(MOST_MENDED):
            runs = self.runs(deployment, rate)
            if holds(self.scenario, runs):
                return deployment, runs
            short = binding_of(deployment, runs).pool
            pool = deployment.lone_pools[short]
            deployment = deployment.model_copy(
                update={short: pool.model_copy(update={"instances": pool.instances + 1})}
            )
        raise ScenarioError(
            f"{self.generation.name}: {MOST_MENDED} instances beyond the plan's share do not serve {rate:.4g} "
            "requests/s inside the limits; relax them"
        )

    def runs(self, deployment: Deployment, rate: float) -> list[RunFigures]:
        placed = self.scenario.model_copy(update={"deployment": deployment})
        at = at_rate(placed, rate, self.lifetime_s)
        return self.executor.all(measure, [Trial(at, seed) for seed in self.seeds])


def forecast(
    scenario: Scenario,
    demand: Sequence[MonthlyDemand],
    *,
    generations: Sequence[Generation] = (),
    availability: float = AVAILABILITY,
    api: ApiPrice | None = None,
    pue: float = PUE,
    grams_co2_per_kwh: float = GRAMS_CO2_PER_KWH,
    replications: int = 1,
    executor: SweepExecutor | None = None,
    progress: Progress | None = None,
) -> Forecast:
    """What has to be there in each month.

    generations: what can be bought; none: the accelerators of the scenario's [search]. Each is planned once, for the
    highest peak; a month's growth goes to the cheapest that is on sale then, and what was bought stays. Every
    month's deployment is simulated at its peak, `replications` times, and at its mean rate. Raises ScenarioError.
    """
    if not demand:
        raise ScenarioError("a forecast needs at least one month of demand")
    work, report = executor or SweepExecutor(), progress or (lambda *_: None)
    offered = list(generations) or [Generation(gpu, usual_stack(scenario, gpu)) for gpu in scenario.search.gpus]
    most = max(month.peak_rate for month in demand)
    seeds = seeds_of(scenario.seed, replications)
    months: list[Month] = []
    fleets: list[_Purchases] = []
    spare_of: dict[str, Headroom] = {}
    complete = True
    try:
        for done, generation in enumerate(offered):
            report(f"planning on {generation.name}", done, len(offered))
            fleets.append(_fleet(scenario, generation, most, seeds, work))
        shares: dict[str, float] = {}  # requests/s at the peak that each generation was bought for
        before = 0
        for done, need in enumerate(demand):
            report(f"{need.month:%Y-%m}", done, len(demand))
            best = _cheapest(fleets, need.month)
            missing = need.peak_rate - sum(shares.values())
            if missing > 1e-9 * need.peak_rate:
                name = best.generation.name
                shares[name] = shares.get(name, 0.0) + missing
            months.append(_month(scenario, need, fleets, shares, best, availability, spare_of, api, pue,
                                 grams_co2_per_kwh, before))  # fmt: skip
            before = months[-1].gpus
    except KeyboardInterrupt:
        complete = False
    sources = {room.source for room in spare_of.values()}
    return Forecast(
        scenario.name,
        scenario.price_convention,
        tuple(months),
        {name: _sum([month.usd[name] for month in months]) for name in CONVENTIONS},
        _break_even(scenario, months) if api is not None and months else None,
        availability,
        "; ".join(sorted(sources)),
        (
            *stand_ins({fleet.generation.name: fleet.planned for fleet in fleets}),
            f"PUE {pue:g}, {grams_co2_per_kwh:g} g CO2 per kWh (EPA eGRID2022, mean of the USA, unless given)",
        ),
        complete,
    )


def _fleet(
    scenario: Scenario, generation: Generation, most: float, seeds: Sequence[int], executor: SweepExecutor
) -> _Purchases:
    search = scenario.search.model_copy(update={"gpus": (generation.gpu,), "stacks": (generation.stack,)})
    asked = at_rate(scenario, most, None).model_copy(update={"search": search, "deployment": None})
    answer = plan(asked)
    best = next((design for design in answer.designs if design.meets_slo), None)
    if best is None:
        raise ScenarioError(
            f"{generation.name} serves {most:.4g} requests/s inside the limits in no design; "
            f"{answer.binding or 'relax them'}"
        )
    cost = best.cost.usd_per_request if best.cost is not None else math.inf
    lifetime_s = best.steady_state.e2e_mean_s
    return _Purchases(scenario, generation, best.deployment, most, cost, lifetime_s, seeds, executor)


def _cheapest(fleets: Sequence[_Purchases], month: date) -> _Purchases:
    on_sale = [fleet for fleet in fleets if fleet.generation.since is None or fleet.generation.since <= month]
    if not on_sale:
        first = min(fleet.generation.since for fleet in fleets if fleet.generation.since is not None)
        raise ScenarioError(f"nothing can be bought in {month:%Y-%m}: the first accelerator comes in {first:%Y-%m}")
    return min(on_sale, key=lambda fleet: fleet.usd_per_request)


def _month(
    scenario: Scenario,
    need: MonthlyDemand,
    fleets: Sequence[_Purchases],
    shares: Mapping[str, float],
    best: _Purchases,
    availability: float,
    spare_of: dict[str, Headroom],
    api: ApiPrice | None,
    pue: float,
    grams: float,
    before: int,
) -> Month:
    bought_for = sum(shares.values())
    cohorts, watts, kinds, api_s = [], 0.0, [], 0.0
    usd: dict[str, float | None] = dict.fromkeys(CONVENTIONS, 0.0)
    known_power = True
    needed = 0
    for fleet in fleets:
        share = shares.get(fleet.generation.name, 0.0)
        if share <= 0:
            continue
        there = fleet.serving(share)
        part = share / bought_for
        needed += fleet.serving(need.peak_rate * part).gpus if need.peak_rate < bought_for else there.gpus
        spare = _spares(scenario, there, availability, spare_of)
        spare_gpus = sum(there.lone_pools[pool].gpus_per_instance * more for pool, more in spare.items())
        whole = _with(there, spare)
        cohorts.append(Cohort(fleet.generation.name, share, layout(whole), there.gpus, spare, spare_gpus))
        mean = fleet.runs(there, need.mean_rate * part)[0]
        if mean.joule_per_token is None:
            known_power = False
        else:
            busy_w = mean.joule_per_token * mean.total_tok_s_per_gpu * mean.gpus
            watts += (busy_w + idle_w(there, spare) + overhead_w(whole)) * pue
        for convention in CONVENTIONS:
            kept = whole
            if convention in FOLLOWS_DEMAND and need.peak_rate < bought_for:
                kept = _with(fleet.serving(need.peak_rate * part), spare)
            hourly, total = usd_per_hour(kept, convention), usd[convention]
            usd[convention] = None if hourly is None or total is None else total + hourly * HOURS_A_MONTH
        if mean.cost is not None:
            kinds.append((mean.cost, usd_per_hour(whole, scenario.price_convention)))
            api_s += api.usd_per_s(mean.cost) if api is not None else 0.0
    spare_gpus = sum(cohort.spare_gpus for cohort in cohorts)
    gpus = sum(cohort.gpus for cohort in cohorts) + spare_gpus
    costs = _per_token(kinds)
    kwh = watts / WATTS_PER_KW * HOURS_A_MONTH if known_power else None
    return Month(
        need.month,
        need.peak_rate,
        need.mean_rate,
        needed,
        spare_gpus,
        gpus,
        max(0, gpus - before),
        need.mean_rate / bought_for,
        usd,
        *costs,
        kwh,
        None if kwh is None else kwh * grams / 1e3,
        api_s * SECONDS_A_MONTH if api is not None else None,
        tuple(cohorts),
    )


def _spares(
    scenario: Scenario, deployment: Deployment, availability: float, known: dict[str, Headroom]
) -> dict[str, int]:
    key = deployment.model_dump_json()
    if key not in known:
        known[key] = headroom(scenario.model_copy(update={"deployment": deployment}), availability)
    return known[key].spare


def _with(deployment: Deployment, spare: Mapping[str, int]) -> Deployment:
    pools = {
        name: pool.model_copy(update={"instances": pool.instances + spare.get(name, 0)})
        for name, pool in deployment.lone_pools.items()
    }
    return deployment.model_copy(update=pools)


def _per_token(kinds: Sequence[tuple[Any, float | None]]) -> tuple[float | None, float | None, float | None]:
    """USD/Mtok of input, cached input and output over all cohorts, everything that is there paid for."""
    if not kinds or any(hourly is None for _, hourly in kinds):
        return None, None, None
    paid = [
        split(
            hourly or 0.0,
            (cost.usd_per_mtok_input * cost.input_tok_s + cost.usd_per_mtok_cached * cost.cached_tok_s)
            * 3600 / 1e6 / cost.usd_per_hour,
            cost.input_tok_s, cost.cached_tok_s, cost.output_tok_s,
            cost.usd_per_mtok_cached / cost.usd_per_mtok_input if cost.usd_per_mtok_input else 0.0,
        )
        for cost, hourly in kinds
    ]  # fmt: skip

    def mean(value: str, weight: str) -> float:
        weights = [getattr(one, weight) for one in paid]
        if not sum(weights):
            weights = [one.input_tok_s for one in paid]
        return sum(getattr(one, value) * w for one, w in zip(paid, weights, strict=True)) / sum(weights)

    return (
        mean("usd_per_mtok_input", "input_tok_s"),
        mean("usd_per_mtok_cached", "cached_tok_s"),
        mean("usd_per_mtok_output", "output_tok_s"),
    )


def _break_even(scenario: Scenario, months: Sequence[Month]) -> BreakEven:
    own = [month.usd[scenario.price_convention] for month in months]
    asked = [month.api_usd or 0.0 for month in months]
    cheaper = (
        m.month for m, mine, theirs in zip(months, own, asked, strict=True) if mine is not None and mine < theirs
    )
    last = months[-1]
    rate = (own[-1] or 0.0) / asked[-1] * last.mean_rate if asked[-1] else math.inf
    return BreakEven(next(cheaper, None), rate, _sum(own) or 0.0, sum(asked))


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None

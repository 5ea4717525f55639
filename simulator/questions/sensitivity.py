"""What an answer hangs on: cost and chance against price, traffic, bandwidths and the parameters of the fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.progress import Progress
from simulator.questions.inputs import Input, changed, inputs_of
from simulator.questions.sobol import SobolIndex, base_samples, design, indices
from simulator.questions.trial import RunFigures, Trial, at_rate, deployed, measure, rate_of
from simulator.scenario import Scenario
from simulator.sweep.executor import SweepExecutor

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

SAMPLES = 512  # runs for the Sobol indices [assumed]
MOST_INPUTS = 6  # that the tornado hands on to them: of the others each moves cost and attainment less [assumed]
LIFETIMES_SHARE = 2 / 3  # of the length of a run that stands alone [assumed]


@dataclass(frozen=True)
class Swing:
    """One input at its ends, all others as they are. Costs are USD per million tokens, None without prices."""

    name: str
    low: float
    high: float
    cost_low: float | None
    cost_high: float | None
    attainment_low: float
    attainment_high: float


@dataclass(frozen=True)
class Sensitivity:
    """swings: by their effect on cost, widest first. chance: share of the samples in which the limits hold. costs: p10,
    p50, p90 over the samples. complete: False where Ctrl-C cut it short."""

    scenario: str
    cost: float | None
    attainment: float
    swings: tuple[Swing, ...]
    cost_indices: tuple[SobolIndex, ...]
    attainment_indices: tuple[SobolIndex, ...]
    chance: float | None
    costs: dict[str, float]
    samples: int
    complete: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def to_frame(self) -> pd.DataFrame:
        """One row an input: its swing, and its indices where it has them."""
        import pandas as pd

        frame = pd.DataFrame([asdict(swing) for swing in self.swings])
        for kind, found in (("cost", self.cost_indices), ("attainment", self.attainment_indices)):
            for order in ("first", "total"):
                values = {index.name: getattr(index, order) for index in found}
                frame[f"{kind}_sobol_{order}"] = frame["name"].map(values)
        return frame

    def figure(self) -> go.Figure:
        """Tornado of cost, and Sobol indices."""
        from simulator.questions.charts import sensitivity_chart

        return sensitivity_chart(self.to_frame(), self.cost)


@dataclass(frozen=True)
class _Variation:
    """A point of the space of inputs, for a worker."""

    scenario: Scenario
    factors: tuple[tuple[str, float], ...]
    lifetime_s: float


def sensitivity(
    scenario: Scenario,
    *,
    samples: int = SAMPLES,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    executor: SweepExecutor | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """Play the scenario's deployment at the ends of every input's range, then over all ranges of those that matter.

    samples: runs for the Sobol indices; 0: the tornado alone. ranges: of factors by input, see `inputs_of`. Raises
    ScenarioError. Ctrl-C returns what is known by then.
    """
    deployed(scenario)
    given = inputs_of(scenario, ranges)
    work, report = executor or SweepExecutor(), progress or (lambda *_: None)
    lifetime_s = _lifetime_s(scenario) * LIFETIMES_SHARE
    ends = [((one.name, factor),) for one in given for factor in (one.low, one.high)]
    seen: dict[int, RunFigures] = {}
    points = np.empty((0, 0))
    answers: dict[int, RunFigures] = {}
    chosen: tuple[Input, ...] = ()
    n = 0
    complete = True
    try:
        for i, found in work.each(play, [_Variation(scenario, factors, lifetime_s) for factors in ((), *ends)]):
            seen[i] = found
            report("each input at its ends", len(seen), len(ends) + 1)
        swings = _swings(given, seen)
        chosen = _mattering(given, swings)
        if samples:
            n = base_samples(samples, len(chosen))
            points = design(n, len(chosen), scenario.seed)
            tasks = [
                _Variation(
                    scenario, tuple((one.name, one.at(x)) for one, x in zip(chosen, row, strict=True)), lifetime_s
                )
                for row in points
            ]
            for i, found in work.each(play, tasks):
                answers[i] = found
                report("all inputs together", len(answers), len(tasks))
    except KeyboardInterrupt:
        complete = False
    swings = _swings(given, seen)
    base = seen.get(0)
    finished = bool(answers) and len(answers) == len(points)
    costs, inside = _columns(chosen, points, answers)
    names = tuple(one.name for one in chosen)
    at = scenario.slo.percentile / 100
    return Sensitivity(
        scenario.name,
        None if base is None or base.cost is None else base.cost.usd_per_mtok_blended,
        0.0 if base is None else base.attainment,
        tuple(sorted(swings, key=_width, reverse=True)),
        indices(names, n, costs, scenario.seed) if finished and len(costs) else (),
        indices(names, n, inside, scenario.seed) if finished else (),
        float(np.mean(inside[: 2 * n] >= at)) if len(inside) else None,
        {f"p{p}": float(np.percentile(costs, p)) for p in (10, 50, 90)} if len(costs) else {},
        len(answers),
        complete,
    )


def play(task: _Variation) -> RunFigures:
    """Measure one point; its price is put in afterwards."""
    scenario, profiles = changed(task.scenario, dict(task.factors))
    rate = rate_of(scenario.one_workload())
    assert rate is not None
    return measure(Trial(at_rate(scenario, rate, task.lifetime_s), scenario.seed, profiles))


def _lifetime_s(scenario: Scenario) -> float:
    """Of a request, by the limits; by a run where they do not say."""
    slo = scenario.slo
    if slo.e2e_s is not None:
        return slo.e2e_s
    rate = rate_of(scenario.one_workload())
    assert rate is not None
    alone = measure(Trial(at_rate(scenario, rate, None), scenario.seed))
    return alone.e2e_s or 1.0


def _cost(seen: RunFigures, price: float) -> float | None:
    return None if seen.cost is None else seen.cost.usd_per_mtok_blended * price


def _swings(given: Sequence[Input], seen: Mapping[int, RunFigures]) -> list[Swing]:
    """Of the inputs both of whose ends were played."""
    found = []
    for i, one in enumerate(given):
        low, high = seen.get(1 + 2 * i), seen.get(2 + 2 * i)
        if low is None or high is None:
            continue
        prices = (one.low, one.high) if one.name == "price" else (1.0, 1.0)
        found.append(
            Swing(
                one.name,
                one.low,
                one.high,
                _cost(low, prices[0]),
                _cost(high, prices[1]),
                low.attainment,
                high.attainment,
            )
        )
    return found


def _width(swing: Swing) -> float:
    """On cost, relative to its mean; on attainment where there are no prices."""
    if swing.cost_low is None or swing.cost_high is None:
        return abs(swing.attainment_high - swing.attainment_low)
    return abs(swing.cost_high - swing.cost_low) / (swing.cost_high + swing.cost_low)


def _mattering(given: Sequence[Input], swings: Sequence[Swing]) -> tuple[Input, ...]:
    """Those that move cost or attainment most, in turns."""
    by_cost = sorted(swings, key=_width, reverse=True)
    by_share = sorted(swings, key=lambda s: -abs(s.attainment_high - s.attainment_low))
    ranked = dict.fromkeys(
        name for pair in zip(by_cost, by_share, strict=True) for name in (pair[0].name, pair[1].name)
    )
    kept = list(ranked)[:MOST_INPUTS]
    return tuple(one for one in given if one.name in kept)


def _columns(chosen: Sequence[Input], points: Any, answers: Mapping[int, RunFigures]) -> tuple[Any, Any]:
    """Cost and attainment at the points that were played, in order."""
    price = next((i for i, one in enumerate(chosen) if one.name == "price"), None)
    order = sorted(answers)
    factors = [1.0 if price is None else chosen[price].at(points[i, price]) for i in order]
    costs = [_cost(answers[i], factor) for i, factor in zip(order, factors, strict=True)]
    known = [cost for cost in costs if cost is not None]
    return np.array(known if len(known) == len(costs) else []), np.array([answers[i].attainment for i in order])

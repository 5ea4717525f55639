"""Two to four designs, accelerators or stacks at equal speed for one user, and why one serves more than another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from hw_profiles.catalog import load
from simulator.progress import Progress
from simulator.questions.curves import Curve, CurvePoint, curve, point_at
from simulator.questions.published import PublishedPoint
from simulator.questions.sides import Side, distinct
from simulator.questions.waterfall import Waterfall, waterfall
from simulator.scenario import Scenario, ScenarioError
from simulator.sweep.executor import SweepExecutor

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

FEWEST, MOST = 2, 4  # sides
LEVELS = 8  # speeds at which sides are compared, equally far apart in logarithms [assumed]


@dataclass(frozen=True)
class Level:
    """Sides at one speed for one user. throughput: tok/s/GPU by side, None where a side does not reach the speed;
    ratio: of it to that of the first side."""

    tok_s_per_user: float
    throughput: dict[str, float | None]
    ratio: dict[str, float | None]


@dataclass(frozen=True)
class Comparison:
    """equal: the best point of each side at `tok_s_per_user`, None where it does not reach that; peaks: of each at its
    highest tok/s/GPU. complete: False where Ctrl-C cut it short."""

    scenario: str
    sides: tuple[str, ...]
    tok_s_per_user: float | None
    equal: dict[str, CurvePoint | None]
    peaks: dict[str, CurvePoint]
    levels: tuple[Level, ...]
    waterfalls: tuple[Waterfall, ...]
    points: tuple[CurvePoint, ...]
    published: tuple[PublishedPoint, ...]
    complete: bool

    def ratio(self, side: str, figure: str = "total_tok_s_per_gpu") -> float | None:
        """Of a figure at equal speed to that of the first side; None where either has none."""
        first, other = self.equal.get(self.sides[0]), self.equal.get(side)
        values = [getattr(point, figure) if point else None for point in (first, other)]
        return values[1] / values[0] if values[0] and values[1] is not None else None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def to_frame(self) -> pd.DataFrame:
        """One row a simulated point of a side."""
        import pandas as pd

        return pd.DataFrame([asdict(point) for point in self.points])

    def figure(self) -> go.Figure:
        """Curves of the sides, and the waterfall of each against the first."""
        from simulator.questions.charts import comparison_chart

        return comparison_chart(self.to_frame(), [asdict(each) for each in self.waterfalls], self.published)


def compare(
    scenario: Scenario,
    sides: Sequence[Side],
    *,
    tok_s_per_user: float | None = None,
    published: Sequence[PublishedPoint] = (),
    executor: SweepExecutor | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Compare sides under the scenario's lengths, as closed loops of clients, the way public benchmarks play them.

    tok_s_per_user: the speed at which they are equal; None: what the TPOT limit allows at least, or the middle of what
    all sides reach. Points of the wrong number of sides raise ScenarioError. Ctrl-C returns what is known by then.
    """
    if not FEWEST <= len(sides) <= MOST:
        raise ScenarioError(f"{len(sides)} sides cannot be compared; give {FEWEST} to {MOST}")
    named = distinct(tuple(sides))
    work = executor or SweepExecutor()
    curves: dict[str, Curve] = {}
    equal: dict[str, CurvePoint | None] = {}
    falls: list[Waterfall] = []
    speed, complete = tok_s_per_user, True
    try:
        for side in named:
            curves[side.name] = curve(scenario, side, work, progress)
        if speed is None:
            speed = _usual_speed(scenario, list(curves.values()))
        for side in named:
            equal[side.name] = point_at(scenario, side, curves[side.name], speed, speed, work)
        base, start = named[0], equal[named[0].name]
        for done, side in enumerate(named[1:]):
            end = equal[side.name]
            if progress is not None:
                progress(f"why {side.name} differs from {base.name}", done, len(named) - 1)
            if start is not None and end is not None:
                falls.append(waterfall(scenario, (base, start), (side, end, curves[side.name]), speed, work))
    except KeyboardInterrupt:
        complete = False
    names = {side.name for side in named}
    parts = {
        load(group.gpu, group.stack).name
        for side in named
        for deployment in side.deployments
        for group in deployment.groups
    }
    return Comparison(
        scenario.name,
        tuple(side.name for side in named),
        speed,
        equal,
        {name: each.peak for name, each in curves.items()},
        _levels(curves) if len(curves) == len(names) else (),
        tuple(falls),
        tuple(point for each in curves.values() for point in each.points),
        tuple(point for point in published if point.gpu in parts),
        complete,
    )


def _usual_speed(scenario: Scenario, curves: Sequence[Curve]) -> float:
    """1 / the TPOT limit where all reach it; else the geometric middle of what all reach."""
    low, high = max(each.slowest for each in curves), min(each.fastest for each in curves)
    if scenario.slo.tpot_s is not None and 1 / scenario.slo.tpot_s <= high:
        return 1 / scenario.slo.tpot_s
    return math.sqrt(min(low, high) * high)


def _levels(curves: dict[str, Curve]) -> tuple[Level, ...]:
    """From the slowest speed that all have to the fastest that one has."""
    low, high = max(each.slowest for each in curves.values()), max(each.fastest for each in curves.values())
    first = next(iter(curves))
    found = []
    for step in range(LEVELS):
        speed = low * (high / low) ** (step / (LEVELS - 1))
        best = {name: each.designs_at(speed) for name, each in curves.items()}
        throughput = {name: options[0][0] if options else None for name, options in best.items()}
        start = throughput[first]
        ratio = {name: value / start if value and start else None for name, value in throughput.items()}
        found.append(Level(speed, throughput, ratio))
    return tuple(found)

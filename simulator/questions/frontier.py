"""Speed for one user against tok/s/GPU and USD per million tokens, for accelerators and stacks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from hw_profiles.catalog import load
from simulator.model.parallelism import Parallelism
from simulator.planner.design import OperatingPoint
from simulator.planner.search import plan
from simulator.progress import Progress
from simulator.questions.published import PublishedPoint
from simulator.questions.sides import usual_stack
from simulator.questions.trial import RunFigures, Trial, measure, with_clients
from simulator.scenario import Deployment, Scenario, ScenarioError
from simulator.sweep.executor import SweepExecutor

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

VERIFIED = 4  # points of each curve that are simulated [assumed]
MOST_INSTANCES = 8  # of a pool, when points are made of whole instances [assumed]
MOST_CLIENTS = 8192  # of a simulated point [assumed: a CPU second or two]


@dataclass(frozen=True)
class FrontierPoint:
    """verified: simulated, on whole instances whose pools are matched as well as they can be; else estimated, with the
    fraction of a prefill instance that feeds one decode instance."""

    name: str
    gpu: str
    stack: str
    form: str
    layout: str
    sequences: int
    tok_s_per_user: float
    total_tok_s_per_gpu: float
    output_tok_s_per_gpu: float
    usd_per_mtok_blended: float | None
    usd_per_mtok_input: float | None
    usd_per_mtok_cached: float | None
    usd_per_mtok_output: float | None
    verified: bool


@dataclass(frozen=True)
class Frontier:
    """Points by accelerator, stack and form. complete: False where Ctrl-C cut it short."""

    scenario: str
    points: tuple[FrontierPoint, ...]
    published: tuple[PublishedPoint, ...]
    skipped: dict[str, str]  # accelerator or stack -> why it has no point
    complete: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def to_frame(self) -> pd.DataFrame:
        """One row a point."""
        import pandas as pd

        return pd.DataFrame([asdict(point) for point in self.points], columns=list(FrontierPoint.__dataclass_fields__))

    def figure(self) -> go.Figure:
        from simulator.questions.charts import frontier_chart

        return frontier_chart(self.to_frame(), self.published)


def frontier(
    scenario: Scenario,
    parts: Sequence[tuple[str, str | None]] = (),
    *,
    verified: int = VERIFIED,
    published: Sequence[PublishedPoint] = (),
    executor: SweepExecutor | None = None,
    progress: Progress | None = None,
) -> Frontier:
    """Pareto points of each (accelerator, stack), some of them simulated.

    parts: with None for the scenario's stack; none at all: the accelerators of the scenario's [search]. Raises
    ScenarioError where none of them serves the model. Ctrl-C returns what is known by then.
    """
    asked = list(parts) or [(gpu, None) for gpu in scenario.search.gpus]
    points: list[FrontierPoint] = []
    tasks: list[tuple[FrontierPoint, Deployment, int]] = []
    skipped: dict[str, str] = {}
    complete = True
    try:
        for done, (gpu, stack) in enumerate(asked):
            stack = stack or usual_stack(scenario, gpu)
            part = load(gpu, stack)
            name = part.name if stack == "default" else f"{part.name}@{stack}"
            if progress is not None:
                progress(f"estimating {name}", done, len(asked))
            search = scenario.search.model_copy(update={"gpus": (gpu,), "stacks": (stack,), "simulate_top": 0})
            answer = plan(scenario.model_copy(update={"search": search}))
            mine = [_estimated(name, stack, point) for point in answer.frontier]
            if not mine:
                skipped[name] = answer.binding or "no cut of the model fits"
            points += mine
            for form in dict.fromkeys(point.form for point in mine):
                curve = [point for point in mine if point.form == form]
                pools = {design.form: design.deployment for design in reversed(answer.designs)}
                tasks += [
                    (point, *made) for point in _spread(curve, verified) if (made := _made(point, pools.get(form)))
                ]
        trials = [
            Trial(with_clients(scenario, n).model_copy(update={"deployment": d}), scenario.seed) for _, d, n in tasks
        ]
        for done, (i, seen) in enumerate((executor or SweepExecutor()).each(measure, trials), 1):
            if progress is not None:
                progress("simulating points", done, len(trials))
            if seen.tok_s_per_user is not None:
                point, _, clients = tasks[i]
                points.append(_simulated(point, clients, seen))
    except KeyboardInterrupt:
        complete = False
    if not points and complete:
        raise ScenarioError("; ".join(f"{name}: {why}" for name, why in skipped.items()))
    return Frontier(scenario.name, tuple(points), tuple(published), skipped, complete)


def _estimated(name: str, stack: str, point: OperatingPoint) -> FrontierPoint:
    return FrontierPoint(
        name, point.gpu, stack, point.form, point.cut, point.sequences_per_instance, point.tok_s_per_user,
        point.total_tok_s_per_gpu, point.output_tok_s_per_gpu, point.usd_per_mtok_blended, None, None, None, False,
    )  # fmt: skip


def _simulated(point: FrontierPoint, clients: int, seen: RunFigures) -> FrontierPoint:
    assert seen.tok_s_per_user is not None
    cost = seen.cost
    return replace(
        point,
        sequences=clients,
        tok_s_per_user=seen.tok_s_per_user,
        total_tok_s_per_gpu=seen.total_tok_s_per_gpu,
        output_tok_s_per_gpu=seen.output_tok_s_per_gpu,
        usd_per_mtok_blended=cost.usd_per_mtok_blended if cost else None,
        usd_per_mtok_input=cost.usd_per_mtok_input if cost else None,
        usd_per_mtok_cached=cost.usd_per_mtok_cached if cost else None,
        usd_per_mtok_output=cost.usd_per_mtok_output if cost else None,
        verified=True,
    )


def _spread(curve: list[FrontierPoint], wanted: int) -> list[FrontierPoint]:
    """So many points of a curve, its ends among them."""
    ordered = sorted(curve, key=lambda point: point.tok_s_per_user)
    if wanted < 2 or len(ordered) <= wanted:
        return ordered[: max(0, wanted)]
    return [ordered[round(i * (len(ordered) - 1) / (wanted - 1))] for i in range(wanted)]


def _made(point: FrontierPoint, like: Deployment | None) -> tuple[Deployment, int] | None:
    """A deployment of whole instances at the point, and its clients. like: one of the same form, from which all but
    the cut and the numbers is taken; its prefill instances are the matched ones.

    With p prefill and d decode instances, p / d comes as near as it can to what the estimate joins.
    """
    if like is None:
        return None
    cut = parallelism_of(point.layout)
    if "colocated" in like.lone_pools:
        pool = like.lone_pools["colocated"].model_copy(
            update={"instances": 1, "max_sequences": max(point.sequences, cut.dp), **_sizes(cut)}
        )
        return like.model_copy(update={"colocated": pool}), min(MOST_CLIENTS, point.sequences)
    prefill, decode = like.lone_pools["prefill"], like.lone_pools["decode"]
    # output tok/s of one decode instance over that of all its accelerators, fraction of prefill included
    whole = point.sequences * point.tok_s_per_user / point.output_tok_s_per_gpu
    fraction = max(0.0, whole - cut.gpus) / prefill.gpus_per_instance
    count = min(range(1, MOST_INSTANCES + 1), key=lambda d: _waste(d, fraction, cut.gpus, prefill.gpus_per_instance))
    feeding = max(1, round(count * fraction))
    clients = min(MOST_CLIENTS, count * point.sequences)
    pools = {
        "prefill": prefill.model_copy(update={"instances": feeding}),
        "decode": decode.model_copy(
            update={"instances": count, "max_sequences": max(point.sequences, cut.dp), **_sizes(cut)}
        ),
    }
    return like.model_copy(update=pools), clients


def _waste(count: int, fraction: float, gpus: int, prefill_gpus: int) -> float:
    """Accelerators for each decode instance, over those that the match asks for, and a little for each instance."""
    feeding = max(1, round(count * fraction))
    short = max(1.0, count * fraction / feeding)  # decode waits where prefill is rounded down
    return short * (count * gpus + feeding * prefill_gpus) / (count * (gpus + fraction * prefill_gpus)) + 1e-3 * count


def _sizes(cut: Parallelism) -> dict[str, int]:
    return {"tp": cut.tp, "dp": cut.dp, "ep": cut.ep, "pp": cut.pp, "cp": cut.cp}


def parallelism_of(text: str) -> Parallelism:
    """The cut that `str` of one shows.

    >>> parallelism_of("TP2 DP4 EP8").gpus
    8
    """
    sizes = {name.lower(): int(size) for name, size in re.findall(r"(TP|DP|EP|PP|CP)(\d+)", text)}
    return Parallelism(**sizes)

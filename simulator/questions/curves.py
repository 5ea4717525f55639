"""Speed for one user against throughput: deployments played as closed loops of more and more clients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from hw_profiles.profile import HardwareProfile
from simulator.progress import Progress
from simulator.questions.sides import Side
from simulator.questions.trial import RunFigures, Trial, measure, with_clients
from simulator.scenario import Deployment, Scenario
from simulator.sweep.executor import SweepExecutor

CLIENT_STEPS = 5  # numbers of clients that each deployment is played with [assumed]
CLIENT_FACTOR = 2.5  # between them [assumed]
MOST_CLIENTS = 8192  # of a run [assumed: a CPU second or two]


@dataclass(frozen=True)
class CurvePoint:
    """A deployment under a number of clients, as simulated. Money and energy are None where prices or power are not
    known; joules are of the accelerators alone."""

    side: str
    design: int  # which of the side's deployments
    layout: str
    gpus: int
    clients: int
    tok_s_per_user: float
    total_tok_s_per_gpu: float
    output_tok_s_per_gpu: float
    ttft_s: float | None
    usd_per_gpu_hour: float | None
    usd_per_mtok_input: float | None
    usd_per_mtok_cached: float | None
    usd_per_mtok_output: float | None
    usd_per_mtok_blended: float | None
    joule_per_token: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def layout(deployment: Deployment) -> str:
    """'prefill 3 x b300_sxm TP8 EP8, decode ...'."""
    parts = []
    for pool, groups in deployment.pools.items():
        for group in groups:
            stack = "" if group.stack == "default" else f"@{group.stack}"
            parts.append(f"{pool} {group.instances} x {group.gpu}{stack} {group.parallelism}")
    return ", ".join(parts)


def play(
    scenario: Scenario,
    side: Side,
    wanted: Sequence[tuple[int, int]],
    executor: SweepExecutor,
    progress: Progress | None = None,
    profiles: Mapping[str, HardwareProfile] | None = None,
) -> list[CurvePoint]:
    """Points of (number of a deployment, clients), in order; those in which nothing was served are left out."""
    tasks = [
        Trial(
            with_clients(scenario, clients).model_copy(update={"deployment": side.deployments[design]}),
            scenario.seed,
            profiles or {},
        )
        for design, clients in wanted
    ]
    seen: dict[int, RunFigures] = {}
    for i, found in executor.each(measure, tasks):
        seen[i] = found
        if progress is not None:
            progress(f"simulating {side.name}", len(seen), len(tasks))
    return [
        _point(side, design, clients, seen[i]) for i, (design, clients) in enumerate(wanted) if seen[i].tok_s_per_user
    ]


def ladder(deployment: Deployment) -> list[int]:
    """Numbers of clients for a deployment, from all that it may run at once downwards."""
    decoding = deployment.pools.get("decode", deployment.pools.get("colocated", ()))
    most = min(MOST_CLIENTS, sum(group.instances * group.sequence_limit for group in decoding))
    return sorted({max(1, round(most / CLIENT_FACTOR**step)) for step in range(CLIENT_STEPS)})


def _point(side: Side, design: int, clients: int, seen: RunFigures) -> CurvePoint:
    deployment, cost = side.deployments[design], seen.cost
    assert seen.tok_s_per_user is not None
    return CurvePoint(
        side.name,
        design,
        layout(deployment),
        deployment.gpus,
        clients,
        seen.tok_s_per_user,
        seen.total_tok_s_per_gpu,
        seen.output_tok_s_per_gpu,
        seen.ttft_s,
        None if cost is None else cost.usd_per_hour / seen.gpus,
        None if cost is None else cost.usd_per_mtok_input,
        None if cost is None else cost.usd_per_mtok_cached,
        None if cost is None else cost.usd_per_mtok_output,
        None if cost is None else cost.usd_per_mtok_blended,
        seen.joule_per_token,
    )


@dataclass(frozen=True)
class Curve:
    """Points of one side."""

    points: tuple[CurvePoint, ...]
    by_design: dict[int, list[CurvePoint]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        found: dict[int, list[CurvePoint]] = {}
        for point in sorted(self.points, key=lambda p: p.tok_s_per_user):
            found.setdefault(point.design, []).append(point)
        object.__setattr__(self, "by_design", found)

    @property
    def slowest(self) -> float:
        return min(point.tok_s_per_user for point in self.points)

    @property
    def fastest(self) -> float:
        return max(point.tok_s_per_user for point in self.points)

    @property
    def peak(self) -> CurvePoint:
        """The most tok/s/GPU, whatever the speed for one user."""
        return max(self.points, key=lambda p: p.total_tok_s_per_gpu)

    def front(self) -> list[CurvePoint]:
        """Points that no other beats in both speeds, slowest for one user first."""
        best, kept = -math.inf, []
        for point in sorted(self.points, key=lambda p: (-p.tok_s_per_user, -p.total_tok_s_per_gpu)):
            if point.total_tok_s_per_gpu > best:
                best = point.total_tok_s_per_gpu
                kept.append(point)
        return kept[::-1]

    def designs_at(self, speed: float) -> list[tuple[float, int]]:
        """(tok/s/GPU, number of the deployment) of those that give each user that speed, best first; interpolated
        between two numbers of clients in logarithms."""
        found = []
        for design, points in self.by_design.items():
            enough = [point for point in points if point.tok_s_per_user >= speed]
            if not enough:
                continue
            at = max(point.total_tok_s_per_gpu for point in enough)
            slower = [point for point in points if point.tok_s_per_user < speed]
            if slower:
                at = max(at, _between(slower[-1], enough[0], speed))
            found.append((at, design))
        return sorted(found, key=lambda pair: (-pair[0], pair[1]))

    def bracket(self, design: int, speed: float) -> tuple[int, int]:
        """(clients with whom a deployment gives that speed, clients with whom it does not); the same number twice where
        it always does."""
        points = self.by_design[design]
        enough = max(point.clients for point in points if point.tok_s_per_user >= speed)
        slower = [point.clients for point in points if point.tok_s_per_user < speed and point.clients > enough]
        return enough, min(slower, default=enough)


def _between(slow: CurvePoint, fast: CurvePoint, speed: float) -> float:
    share = math.log(speed / slow.tok_s_per_user) / math.log(fast.tok_s_per_user / slow.tok_s_per_user)
    return float(
        math.exp((1 - share) * math.log(slow.total_tok_s_per_gpu) + share * math.log(fast.total_tok_s_per_gpu))
    )


def curve(scenario: Scenario, side: Side, executor: SweepExecutor, progress: Progress | None = None) -> Curve:
    """The side's deployments under their ladders of clients."""
    wanted = [(i, clients) for i, deployment in enumerate(side.deployments) for clients in ladder(deployment)]
    return Curve(tuple(play(scenario, side, wanted, executor, progress)))


def point_at(
    scenario: Scenario,
    side: Side,
    known: Curve,
    seen_at: float,
    speed: float,
    executor: SweepExecutor,
    profiles: Mapping[str, HardwareProfile] | None = None,
) -> CurvePoint | None:
    """The deployment with the most tok/s/GPU that gives each user `speed`, under the most clients with whom it does;
    None where none does. Of the two most promising by the curve, looked at where it has the speed `seen_at`, each is
    played."""
    best = None
    for _, design in known.designs_at(seen_at)[:CLOSELY]:
        found = _most_clients(scenario, side, design, known, speed, executor, profiles)
        if found is not None and (best is None or found.total_tok_s_per_gpu > best.total_tok_s_per_gpu):
            best = found
    return best


CLOSELY = 2  # deployments that are played at a speed [assumed]
CLOSE = 0.01  # relative distance of two numbers of clients at which the search ends [assumed]


def _most_clients(
    scenario: Scenario,
    side: Side,
    design: int,
    known: Curve,
    speed: float,
    executor: SweepExecutor,
    profiles: Mapping[str, HardwareProfile] | None,
) -> CurvePoint | None:
    """Numbers of clients between two of the curve, in thirds."""
    if profiles:  # the curve is of another accelerator: numbers all the way
        low, high = 0, 2 * max(point.clients for point in known.by_design[design])
    else:
        low, high = known.bracket(design, speed)
    best = None if profiles else next(p for p in known.by_design[design] if p.clients == low)
    while high - low > max(1, CLOSE * low):
        inner = sorted({max(low + 1, low + round((high - low) * share)) for share in (1 / 3, 2 / 3)} - {high})
        points = play(scenario, side, [(design, clients) for clients in inner], executor, None, profiles)
        for point in points:
            if point.tok_s_per_user >= speed:
                low, best = point.clients, point
            else:
                high = point.clients
                break
        else:
            if not points:
                break
    return best

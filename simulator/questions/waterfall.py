"""Why one side serves more tokens than another: factors that multiply to the whole.

From A's deployment at A's clients, A's accelerators take on B's compute, memory bandwidth, network and host times. The
share of each is its Shapley value on logarithms: the mean gain over all orders in which they may come. Then the
number of clients, the cut and the form are chosen anew (batch), within A's memory; then with B's (capacity). What an
accelerator-hour costs comes last (price).

Reference: Shapley, "A value for n-person games", Contributions to the Theory of Games II, 1953.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from hw_profiles.catalog import load
from hw_profiles.profile import HardwareProfile
from simulator.model.memory import DoesNotFitError
from simulator.questions.curves import Curve, CurvePoint, play, point_at
from simulator.questions.hybrids import Respect, hybrid
from simulator.questions.sides import Side
from simulator.scenario import Deployment, Pool, Scenario
from simulator.sweep.executor import SweepExecutor

SPEEDS: tuple[Respect, ...] = ("compute", "memory", "network", "host")
PARTS = (*SPEEDS, "batch", "capacity", "price")


@dataclass(frozen=True)
class Waterfall:
    """factors: by part, of tok/s/GPU of `side` over that of `base` where each user gets `tok_s_per_user`; that of
    price is of tokens for a USD. throughput, value: the products without and with price; value is None without prices.
    """

    base: str
    side: str
    tok_s_per_user: float
    factors: dict[str, float]
    throughput: float
    value: float | None


def waterfall(
    scenario: Scenario,
    base: tuple[Side, CurvePoint],
    other: tuple[Side, CurvePoint, Curve],
    speed: float,
    executor: SweepExecutor,
) -> Waterfall:
    """Of the better point of `other` over that of `base`, both where each user gets `speed`."""
    (side, start), (against, end, known) = base, other
    deployment, target = side.deployments[start.design], against.deployments[end.design]
    marked = Side(side.name, (_marked(deployment),))
    gains: dict[frozenset[Respect], float] = {}
    for respects in subsets(SPEEDS):
        profiles = _hybrids(deployment, target, respects)
        (point,) = play(scenario, marked, [(0, start.clients)], executor, None, profiles)
        gains[respects] = math.log(point.total_tok_s_per_gpu / start.total_tok_s_per_gpu)
    logs: dict[str, float] = {str(part): log for part, log in shapley(gains).items()}
    swapped = gains[frozenset(SPEEDS)]
    whole = math.log(end.total_tok_s_per_gpu / start.total_tok_s_per_gpu)
    small = _within_memory(scenario, marked, deployment, target, (start, end), known, speed, executor)
    fitting = math.log(small / start.total_tok_s_per_gpu)
    logs |= {"batch": fitting - swapped, "capacity": whole - fitting}
    prices = (start.usd_per_gpu_hour, end.usd_per_gpu_hour)
    value = None
    if prices[0] and prices[1]:
        logs["price"] = math.log(prices[0] / prices[1])
        value = math.exp(whole + logs["price"])
    return Waterfall(
        side.name, against.name, speed, {part: math.exp(log) for part, log in logs.items()}, math.exp(whole), value
    )


def subsets(respects: tuple[Respect, ...]) -> Iterator[frozenset[Respect]]:
    for size in range(len(respects) + 1):
        yield from map(frozenset, itertools.combinations(respects, size))


def shapley(gains: Mapping[frozenset[Respect], float]) -> dict[Respect, float]:
    """Value of each player from the value of every coalition; they add up to that of all.

    phi_i = sum over S without i of |S|! (n - |S| - 1)! / n! (v(S + i) - v(S))

    >>> one, two = frozenset({"compute"}), frozenset({"memory"})
    >>> shapley({frozenset(): 0.0, one: 1.0, two: 2.0, one | two: 5.0})
    {'compute': 2.0, 'memory': 3.0}
    """
    players = sorted(frozenset().union(*gains))
    n = len(players)
    return {
        player: sum(
            math.factorial(len(s))
            * math.factorial(n - len(s) - 1)
            / math.factorial(n)
            * (gains[s | {player}] - gains[s])
            for s in gains
            if player not in s
        )
        for player in players
    }


def _marked(deployment: Deployment) -> Deployment:
    """The deployment with accelerators named by the pool they serve, so that pools may get unlike hybrids."""
    return deployment.model_copy(
        update={
            pool: tuple(_renamed(pool, i, group) for i, group in enumerate(groups))
            if len(groups) > 1
            else _renamed(pool, 0, groups[0])
            for pool, groups in deployment.pools.items()
        }
    )


def _renamed(pool: str, place: int, group: Pool) -> Pool:
    return group.model_copy(update={"gpu": f"{pool}-{place}"})


def _hybrids(deployment: Deployment, target: Deployment, respects: frozenset[Respect]) -> dict[str, HardwareProfile]:
    """By the names of `_marked`: A's accelerator of each group with respects of B's accelerator of the same pool, of
    B's decode pool where it has no such."""
    found = {}
    for pool, groups in deployment.pools.items():
        theirs = target.pools.get(pool) or target.pools.get("decode") or target.pools["colocated"]
        for place, group in enumerate(groups):
            match = theirs[min(place, len(theirs) - 1)]
            profile = hybrid(load(group.gpu, group.stack), load(match.gpu, match.stack), respects)
            found[f"{pool}-{place}@{group.stack}"] = profile
    return found


def _within_memory(
    scenario: Scenario,
    marked: Side,
    deployment: Deployment,
    target: Deployment,
    points: tuple[CurvePoint, CurvePoint],
    known: Curve,
    speed: float,
    executor: SweepExecutor,
) -> float:
    """tok/s/GPU at that speed on B's accelerators with A's memory: the better of B's deployment, if it fits, and A's
    with another number of clients."""
    start, end = points
    theirs = _hybrids(target, deployment, frozenset({"capacity"}))
    if all(_room(profile) == _room(group) for profile, group in zip(theirs.values(), _profiles(target), strict=True)):
        return end.total_tok_s_per_gpu
    mine = [_anew(start)]
    found = point_at(
        scenario, marked, Curve(tuple(mine)), 0.0, speed, executor, _hybrids(deployment, target, frozenset(SPEEDS))
    )
    best = found.total_tok_s_per_gpu if found else start.total_tok_s_per_gpu
    on_target = Side(end.side, (_marked(target),))
    of_design = Curve(tuple(_anew(point) for point in known.points if point.design == end.design))
    try:
        found = point_at(scenario, on_target, of_design, 0.0, speed, executor, theirs)
    except DoesNotFitError:
        found = None
    return max(best, found.total_tok_s_per_gpu if found else 0.0)


def _room(profile: HardwareProfile) -> tuple[float, float]:
    """What fits on an accelerator, and the share of it that the stack may fill."""
    return profile.memory_bytes, profile.efficiency.memory_utilisation


def _profiles(deployment: Deployment) -> list[HardwareProfile]:
    """Of each group, in the order of `_hybrids`."""
    return [load(group.gpu, group.stack) for group in deployment.groups]


def _anew(point: CurvePoint) -> CurvePoint:
    """The point as one of the first deployment of its side."""
    return replace(point, design=0)

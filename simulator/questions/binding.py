"""What keeps a cluster from carrying more: a limit, the pool that answers for it, and what that pool is short of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from simulator.questions.trial import RunFigures
from simulator.scenario import Deployment, Pool

Resource = Literal["time", "KV room", "places for sequences", "speed of a step"]
FULL = 0.9  # of a resource, from which it counts as used up [share; assumed]
ANSWERS_FOR = {"ttft_s": ("prefill", "colocated"), "tpot_s": ("decode", "colocated"), "e2e_s": ("decode", "colocated")}
QUEUE = "queue"  # stands for a limit where none is set, or none is missed: what comes is not served in time


@dataclass(frozen=True)
class Binding:
    """limit: "ttft_s", "tpot_s", "e2e_s", or "queue" where more comes than is served. inside: share of the requests
    that keep it, beyond the capacity. busy, kv, places: shares in use of the pool, in the mean over its groups."""

    limit: str
    pool: str
    resource: Resource
    inside: float
    busy: float
    kv: float
    places: float

    @property
    def sentence(self) -> str:
        what = "more comes than is served" if self.limit == QUEUE else f"{self.limit} is missed first"
        how = {
            "time": f"its instances compute {self.busy:.0%} of the time",
            "KV room": f"{self.kv:.0%} of its KV room is in use",
            "places for sequences": f"{self.places:.0%} of the sequences it may run are running",
            "speed of a step": "its steps are too slow for the limit at that many sequences, with room left",
        }[self.resource]
        return f"{what}; the {self.pool} pool binds: {how}"


def binding_of(deployment: Deployment, runs: Sequence[RunFigures]) -> Binding:
    """What binds in runs at a rate that is too high."""
    limits = {name: _mean([run.inside[name] for run in runs]) for name in runs[0].inside}
    served = _mean([run.requests_per_s for run in runs]) / max(1e-12, _mean([run.came_per_s for run in runs]))
    limit = min(limits, key=lambda name: limits[name], default=QUEUE)
    inside = limits.get(limit, min(1.0, served))
    state = {name: _state(deployment, name, runs) for name in deployment.pools}
    if limit == QUEUE:
        pool = max(state, key=lambda name: max(state[name]))
    else:
        pool = next(name for name in ANSWERS_FOR[limit] if name in state)
    busy, kv, places = state[pool]
    return Binding(limit, pool, _resource(pool, busy, kv, places), inside, busy, kv, places)


def _resource(pool: str, busy: float, kv: float, places: float) -> Resource:
    """Room first: a pool without any is busy as well. A pool that decodes is busy whenever one sequence runs."""
    if max(kv, places) >= FULL:
        return "KV room" if kv >= places else "places for sequences"
    return "time" if pool == "prefill" and busy >= FULL else "speed of a step"


def _state(deployment: Deployment, pool: str, runs: Sequence[RunFigures]) -> tuple[float, float, float]:
    """Busy, KV and places of a pool, weighed by the accelerators of its groups."""
    groups = deployment.pools[pool]
    names = [group_label(pool, group, len(groups)) for group in groups]
    total = sum(group.gpus for group in groups)

    def share(values: list[float]) -> float:
        return sum(value * group.gpus for value, group in zip(values, groups, strict=True)) / total

    return (
        share([_mean([run.busy[name] for run in runs]) for name in names]),
        share([_mean([run.kv[name] for run in runs]) for name in names]),
        share(
            [
                _mean([run.batch[name] for run in runs]) / group.sequence_limit
                for name, group in zip(names, groups, strict=True)
            ]
        ),
    )


def group_label(pool: str, group: Pool, groups: int) -> str:
    """Of one of so many groups of a pool, in results."""
    return pool if groups == 1 else f"{pool}.{group.name or group.gpu}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

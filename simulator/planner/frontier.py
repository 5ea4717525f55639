"""Operating points of every cut at every batch: tok/s/user against tok/s/GPU and USD per million tokens."""

from __future__ import annotations

from collections.abc import Iterator

from simulator.des.results.cost import PoolCost, cost_of
from simulator.model.limits import TOKENS_PER_STEP
from simulator.planner.design import OperatingPoint
from simulator.planner.estimate import pool_cost
from simulator.planner.pareto import pareto_front
from simulator.planner.priced_instance import PricedInstance, in_form
from simulator.planner.steady_state import mixed_point, prefill_times
from simulator.planner.traffic import Traffic
from simulator.scenario import Pool, Scenario

COLOCATED_BUDGET = 2048  # new tokens of a step where decode shares it, each attention rank [tokens; assumed]


def frontier(scenario: Scenario, traffic: Traffic, candidates: list[PricedInstance]) -> tuple[OperatingPoint, ...]:
    """Rate-matched operating points that lie on either Pareto front, per form and accelerator.

    A disaggregated point joins one decode instance with the fraction of the best prefill instance of the same
    accelerator that feeds it; latency limits are not applied, so the fronts show what the limits cost.
    """
    points: list[OperatingPoint] = []
    for gpu in dict.fromkeys(priced.hardware.name for priced in candidates):
        mine = [priced for priced in candidates if priced.hardware.name == gpu]
        cost = pool_cost(Pool(gpu=gpu), mine[0].hardware, scenario.price_convention, 0.0)
        for form, found in (
            ("disaggregated", _disaggregated(traffic, mine)),
            ("colocated", _colocated(traffic, mine)),
        ):
            if form in scenario.search.forms:
                points += _fronts([_point(form, gpu, cost, traffic, *row) for row in found])
    return tuple(points)


def _batches(limit: int) -> Iterator[int]:
    n = 1
    while n <= limit:
        yield n
        n *= 2


def _disaggregated(traffic: Traffic, candidates: list[PricedInstance]) -> Iterator[tuple[str, int, float, float]]:
    """(cut, batch, seconds per token, requests per second and GPU) of decode with the best prefill beside it."""
    candidates = [in_form(priced, "disaggregated") for priced in candidates]
    prefill_rate = max(
        priced.ranks / prefill_times(priced, traffic, TOKENS_PER_STEP).mean_s / priced.parallelism.gpus
        for priced in candidates
    )
    for priced in candidates:
        for batch in _batches(priced.sequence_limit(traffic)):
            tpot = priced.tpot_s(traffic, batch)
            rate = batch / (traffic.mean_output * tpot)
            gpus = priced.parallelism.gpus + rate / prefill_rate
            yield str(priced.parallelism), batch, tpot, rate / gpus


def _colocated(traffic: Traffic, candidates: list[PricedInstance]) -> Iterator[tuple[str, int, float, float]]:
    for priced in candidates:
        for batch in _batches(priced.sequence_limit(traffic)):
            mixed = mixed_point(priced, traffic, COLOCATED_BUDGET, batch)
            yield str(priced.parallelism), batch, mixed.tpot_s, mixed.rate / priced.parallelism.gpus


def _point(
    form: str, gpu: str, cost: PoolCost | None, traffic: Traffic, cut: str, batch: int, tpot: float, rate: float
) -> OperatingPoint:
    tokens = traffic.mean_prompt + traffic.mean_output
    return OperatingPoint(
        form=form,
        gpu=gpu,
        cut=cut,
        sequences_per_instance=batch,
        tok_s_per_user=1 / tpot,
        total_tok_s_per_gpu=rate * tokens,
        output_tok_s_per_gpu=rate * traffic.mean_output,
        usd_per_mtok_blended=cost_of((cost,), rate * tokens, 0.0, rate).usd_per_mtok_blended if cost else None,
    )


def _fronts(points: list[OperatingPoint]) -> list[OperatingPoint]:
    """Cost per token falls as tok/s/GPU rises on one accelerator, so one front serves both charts."""
    keep = pareto_front([(point.tok_s_per_user, point.total_tok_s_per_gpu) for point in points])
    return [points[i] for i in keep]

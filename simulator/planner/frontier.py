"""Operating points of cuts at every batch: tok/s/user against tok/s/GPU and USD per million tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from simulator.des.results.cost import PoolCost, cost_of
from simulator.model.arrays import Floats
from simulator.planner.design import OperatingPoint
from simulator.planner.estimate import drawn_w, pool_cost
from simulator.planner.pareto import pareto_front
from simulator.planner.pools import PoolTable, Pricing
from simulator.scenario import Scenario
from simulator.steady_state.closed_loop import closed_loop

BATCHES = 12  # sequences of an instance that are looked at, from one to what fits


def frontier(scenario: Scenario, pricing: Pricing, tables: Sequence[PoolTable]) -> tuple[OperatingPoint, ...]:
    """Rate-matched operating points that lie on either Pareto front, per form and accelerator.

    A disaggregated point joins one decode instance with the fraction of the best prefill instance of the same
    accelerator that feeds it; latency limits are not applied, so the fronts show what the limits cost. Electricity
    is charged at the draw of decode.
    """
    prompts = _prompts_per_gpu_s(tables)
    found: dict[tuple[str, str], list[OperatingPoint]] = {}
    for table in tables:
        role = table.choices[0].role
        if role == "prefill":
            continue
        form = "colocated" if role == "colocated" else "disaggregated"
        for row, batch, rate, tpot in _points(pricing, table):
            choice = table.choices[row]
            gpu = choice.engine.offer.gpu
            per_gpu = rate / choice.engine.gpus
            if role == "decode":
                if gpu not in prompts:
                    continue
                per_gpu = rate / (choice.engine.gpus + rate / prompts[gpu])
            cost = pool_cost(
                choice.pool(1, 1).model_copy(update={"tp": 1, "dp": 1, "ep": 1, "pp": 1, "cp": 1}),
                choice.engine.hardware, scenario, 0.0, drawn_w(choice.engine, 1.0, float(batch), 0.0),
            )  # fmt: skip
            point = _point(
                form, gpu, cost, pricing, scenario.costs.utilisation, str(choice.engine.cut), batch, tpot, per_gpu
            )
            found.setdefault((form, gpu), []).append(point)
    return tuple(point for points in found.values() for point in _fronts(points))


def _prompts_per_gpu_s(tables: Sequence[PoolTable]) -> dict[str, float]:
    """Of the best prefill instance of each accelerator."""
    best: dict[str, float] = {}
    for table in tables:
        if table.choices[0].role == "prefill":
            rates = 1 / (table.steps.full_s[:, 0, 0] * table.gpus[:, 0])
            for choice, rate in zip(table.choices, rates.tolist(), strict=True):
                best[choice.engine.offer.gpu] = max(rate, best.get(choice.engine.offer.gpu, 0.0))
    return best


def _points(pricing: Pricing, table: PoolTable) -> Iterator[tuple[int, int, float, float]]:
    """(choice, batch, requests per second of an instance, seconds per token)."""
    clients: Floats = np.unique(np.geomspace(1.0, table.most.max(), BATCHES).round())[None, :]
    one = np.ones((len(table), 1))
    found = closed_loop(pricing.alone(table, one, table.most), np.minimum(clients, table.most))
    for row in range(len(table)):
        for column, batch in enumerate(clients[0].tolist()):
            if batch <= table.most[row, 0]:
                yield row, int(batch), float(found.rate[row, column]), float(found.mean_tpot_s[row, column])


def _point(
    form: str,
    gpu: str,
    cost: PoolCost | None,
    pricing: Pricing,
    used: float,
    cut: str,
    batch: int,
    tpot: float,
    rate: float,
) -> OperatingPoint:
    traffic = pricing.traffic
    tokens = traffic.mean_prompt + traffic.mean_output
    return OperatingPoint(
        form=form,
        gpu=gpu,
        cut=cut,
        sequences_per_instance=batch,
        tok_s_per_user=1 / tpot,
        total_tok_s_per_gpu=rate * tokens,
        output_tok_s_per_gpu=rate * traffic.mean_output,
        usd_per_mtok_blended=cost_of((cost,), rate * tokens, 0.0, rate, used).usd_per_mtok_blended if cost else None,
    )


def _fronts(points: list[OperatingPoint]) -> list[OperatingPoint]:
    """Cost per token falls as tok/s/GPU rises on one accelerator, so one front serves both charts."""
    keep = pareto_front([(point.tok_s_per_user, point.total_tok_s_per_gpu) for point in points])
    return [points[i] for i in keep]

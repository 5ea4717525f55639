"""Points and draws are axes: many at once give what each gives alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from hw_profiles.catalog import load
from simulator.model.parallelism import Parallelism
from simulator.model.presets import load_model
from simulator.model.step import StepOps
from simulator.steady_state.closed_loop import closed_loop
from simulator.steady_state.cluster import ClusterArrays, Equilibrium, PoolArrays
from simulator.steady_state.open_loop import open_loop
from simulator.steady_state.parameters import EngineParameters, constant
from simulator.steady_state.stations import DemandArrays, HandoverArrays, KvArrays
from simulator.steady_state.step_table import StepTable, price
from simulator.steady_state.traffic import TrafficSample

TRAFFICS = [TrafficSample.of([1000.0, 2000.0], [100.0, 300.0]), TrafficSample.of([500.0], [200.0])]
MEMORY = np.array([[1.0, 0.7, 0.5]])
LOADS = np.array([[40.0], [10.0]])


def cluster_of(rows: list[int], memory: np.ndarray, *, apart: bool) -> ClusterArrays:
    """Points `rows` of TRAFFICS, under draws of the memory rate."""
    hardware, cut = load("h200"), Parallelism(tp=2)
    ops = StepOps(load_model("qwen3-30b-a3b"), hardware, cut, 0)
    given = replace(EngineParameters.of([hardware]), memory=memory)

    def pool(*, decodes: bool, prefills: bool) -> PoolArrays:
        table = StepTable.of([price(ops, t, 8192, decodes=decodes, prefills=prefills) for t in TRAFFICS]).take(rows)
        room = KvArrays(constant(5e10), constant(5e4), constant(0.0))
        return PoolArrays(table.seconds(given), constant(2.0), constant(256.0), room)

    overhead = constant(0.05)
    demand = DemandArrays.of([TRAFFICS[row] for row in rows])
    if not apart:
        return ClusterArrays(pool(decodes=True, prefills=True), demand, constant(1.0), overhead)
    handover = HandoverArrays(*(constant(value) for value in (0.001, 0.002, 0.002, 0.0, 48.0, 1000.0)))
    prefill, decode = pool(decodes=False, prefills=True), pool(decodes=True, prefills=False)
    return ClusterArrays(prefill, demand, constant(1.0), overhead, decode, handover)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("loop", [closed_loop, open_loop])
def test_many_points_and_draws_are_each_alone(loop: Callable[..., Equilibrium], apart: bool) -> None:
    together = loop(cluster_of([0, 1], MEMORY, apart=apart), LOADS)
    assert together.rate.shape == together.ttft_s.shape == together.limit.shape == (2, 3)
    for point in range(2):
        for draw in range(3):
            alone = loop(cluster_of([point], MEMORY[:, draw : draw + 1], apart=apart), LOADS[point : point + 1])
            for name in ("rate", "tpot_s", "mean_tpot_s", "ttft_s", "mean_ttft_s", "running"):
                assert getattr(together, name)[point, draw] == pytest.approx(getattr(alone, name).item(), rel=1e-9)


@pytest.mark.parametrize("apart", [False, True])
def test_slower_memory_is_never_better(apart: bool) -> None:
    found = closed_loop(cluster_of([0, 1], MEMORY, apart=apart), LOADS)
    assert (np.diff(found.rate, axis=1) < 0).all()
    assert (np.diff(found.tpot_s, axis=1) > 0).all()


@pytest.mark.parametrize("apart", [False, True])
def test_a_closed_loop_keeps_littles_law(apart: bool) -> None:
    cluster = cluster_of([0, 1], MEMORY, apart=apart)
    found = closed_loop(cluster, LOADS)
    lifetime_s = found.mean_ttft_s + found.mean_tpot_s * cluster.demand.further
    np.testing.assert_allclose(found.rate * lifetime_s, np.broadcast_to(LOADS, (2, 3)), rtol=0.01)

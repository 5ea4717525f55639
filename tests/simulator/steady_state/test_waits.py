"""Waits against queueing theory."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.steady_state.arrays import Place
from simulator.steady_state.waits import Response, queueing


def test_single_server_is_pollaczek_khinchine() -> None:
    busy = np.array([0.3, 0.6, 0.9])
    chance, wait_s = queueing(np.ones(3), busy, 2 * np.ones(3), 0.0)
    np.testing.assert_allclose(chance * wait_s, busy * 2 / (2 * (1 - busy)))


def test_several_servers_are_near_erlang_c() -> None:
    chance, _ = queueing(np.array(8.0), np.array(0.8), np.array(1.0), 1.0)
    assert float(chance) == pytest.approx(0.46, abs=0.05)  # Erlang C of 6.4 in 8


def response(**fields: float | list[float]) -> Response:
    names = ("fixed_s", "in_step", "step_s", "in_queue", "queue_s", "backlog_s")
    values = {name: np.array([[fields.get(name, 0.0)]]) for name in names}
    return Response(own_s=np.array([[fields.get("own_s", [0.0])]]), **values)


def test_percentiles_of_an_exponential_wait() -> None:
    waits = response(in_queue=1.0, queue_s=2.0, fixed_s=0.5)
    assert waits.percentile_s(90.0).item() == pytest.approx(0.5 + 2 * np.log(10), rel=1e-4)
    assert waits.mean_s.item() == pytest.approx(2.5)


def test_percentiles_of_a_uniform_wait_and_unlike_prompts() -> None:
    waits = response(own_s=[1.0, 2.0, 3.0, 4.0, 5.0], in_step=1.0, step_s=1.0)
    assert waits.percentile_s(50.0).item() == pytest.approx(3.5, rel=1e-4)
    assert waits.mean_s.item() == pytest.approx(3.5)


def test_a_backlog_takes_chance_out() -> None:
    waits = response(in_queue=1.0, queue_s=2.0).backlogged(np.array([[7.0]]), np.array([[True]]))
    assert waits.percentile_s(99.0).item() == pytest.approx(9.0)


def test_places_go_on_beyond_the_grid() -> None:
    grid, curve = np.array([[[0.0, 1.0, 4.0]]]), np.array([[[0.0, 2.0, 8.0]]])
    np.testing.assert_allclose(Place.on(grid, np.array([[0.5, 3.0, 5.0]])).of(curve), [[1.0, 6.0, 10.0]])

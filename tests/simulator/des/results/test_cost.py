import math

import pytest

from simulator.des.results.cost import PoolCost, cost_of


def test_pools_pay_for_their_side_of_the_tokens() -> None:
    """8 GPUs at 2 USD/h take in 10,000 tok/s; 16 at 3 USD/h emit 4,000 tok/s.

    16 USD/h / 36 Mtok/h = 0.444 per Mtok in; 48 / 14.4 = 3.333 out; 64 / 50.4 = 1.270 blended.
    """
    cost = cost_of((PoolCost(8, 2.0, 1.0), PoolCost(16, 3.0, 0.0)), 10_000, 4_000, 2.0)
    assert cost.usd_per_hour == 64.0
    assert cost.usd_per_mtok_input == pytest.approx(16 / 36)
    assert cost.usd_per_mtok_output == pytest.approx(48 / 14.4)
    assert cost.usd_per_mtok_blended == pytest.approx(64 / 50.4)
    assert cost.usd_per_request == pytest.approx(64 / 7200)
    assert "pool" in cost.split_rule


def test_input_and_output_cost_add_up_to_the_whole() -> None:
    cost = cost_of((PoolCost(4, 2.5, 0.37),), 5_000, 700, 1.0)
    paid = (cost.usd_per_mtok_input * 5_000 + cost.usd_per_mtok_output * 700) * 3600 / 1e6
    assert paid == pytest.approx(10.0)


def test_energy_is_all_in_power_over_tokens() -> None:
    """10 GPUs x 2 kW: 20 kW; at 4,000 tok/s each token takes 5 J, and a million 5 MJ = 1.389 kWh."""
    cost = cost_of((PoolCost(10, 1.0, 0.5, all_in_w=2000.0),), 3_000, 1_000, 1.0)
    assert cost.power_kw == 20.0
    assert cost.joule_per_token == 5.0
    assert cost.joule_per_output_token == 20.0
    assert cost.kwh_per_mtok == pytest.approx(5e6 / 3.6e6)


def test_energy_is_unknown_where_one_pool_has_no_power_figure() -> None:
    cost = cost_of((PoolCost(1, 1.0, 1.0, all_in_w=900.0), PoolCost(1, 1.0, 0.0)), 1.0, 1.0, 1.0)
    assert cost.power_kw is None
    assert cost.joule_per_token is None


def test_serving_nothing_costs_infinitely_per_token_and_is_null_in_json() -> None:
    cost = cost_of((PoolCost(1, 1.0, 0.5),), 0.0, 0.0, 0.0)
    assert math.isinf(cost.usd_per_mtok_output)
    assert cost.to_json()["usd_per_mtok_output"] is None
    assert cost.to_json()["usd_per_hour"] == 1.0

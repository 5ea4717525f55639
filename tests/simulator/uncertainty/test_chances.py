"""Chances of limits, and plans that demand them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from simulator.planner.design import Plan
from simulator.planner.search import plan
from simulator.scenario import Slo, parse_scenario
from simulator.uncertainty.bands import Bands
from simulator.uncertainty.chances import Certainty, demand
from simulator.uncertainty.spreads import Spread, Uncertainty

SLO = Slo(ttft_s=2.0, tpot_s=0.04)
Z80 = 0.8416212335729143  # standard normal: 80% lie below


def known(sigma: float) -> Uncertainty:
    half = 1.2815515655446004 * sigma
    spread = Spread(p10=-half, p50=0.0, p90=half)
    return Uncertainty("", "", "", {"tpot_s": spread, "ttft_s": spread, "total_tok_s_per_gpu": spread})


def certain(ttft: float = 1.0, tpot: float = 0.03, load: float = 0.1, sigma: float = 0.3) -> Certainty:
    values = {"ttft_s": ttft, "tpot_s": tpot, "e2e_s": 10.0}
    return Certainty(Bands(known(sigma), known(sigma)), SLO, values, {}, {"prefill": load, "decode": load})


def test_at_the_limit_the_chances_are_even() -> None:
    assert certain(ttft=2.0).chance("ttft_s") == pytest.approx(0.5)


def test_a_prediction_below_the_limit_by_a_quantile_has_that_chance() -> None:
    assert certain(tpot=0.04 * math.exp(-Z80 * 0.3)).chance("tpot_s") == pytest.approx(0.8)


def test_a_pool_near_its_capacity_spoils_every_limit() -> None:
    """Loaded to exp(-Z80 sigma) it keeps up on the four of five machines that are at least that fast."""
    loaded = certain(ttft=0.01, load=math.exp(-Z80 * 0.3))
    assert loaded.chance("ttft_s") == pytest.approx(0.8)
    assert loaded.keeps_up("decode") == pytest.approx(0.8)


def test_overload_has_no_chance() -> None:
    assert certain(ttft=math.inf).chance("ttft_s") == 0.0


def test_what_a_pool_is_sized_for_has_just_the_chance_demanded() -> None:
    asked = demand(SLO, 0.9, known(0.3), 0.8)
    assert asked.slo.ttft_s is not None
    assert asked.slo.tpot_s is not None
    sized = certain(asked.slo.ttft_s, asked.slo.tpot_s, asked.load)
    assert sized.chance("ttft_s") == pytest.approx(0.8)
    assert sized.chance("tpot_s") == pytest.approx(0.8)
    assert sized.keeps_up("prefill") == pytest.approx(0.8)
    assert certain(asked.slo.ttft_s * 1.01).misses(0.8) == pytest.approx({"ttft_s": 1.01})


def test_no_demand_is_looser_than_none() -> None:
    slow = Spread(p10=-0.9, p50=-0.5, p90=-0.1)  # measured is always below predicted
    pessimist = Uncertainty("", "", "", {"tpot_s": slow, "ttft_s": slow, "total_tok_s_per_gpu": slow.inverse})
    assert demand(SLO, 0.9, pessimist, 0.5) == demand(SLO, 0.9, pessimist, None)


def ask(confidence: float | None, **changes: Any) -> Plan:
    search = {"gpus": ["h200", "b200"], "simulate_top": 0, "max_gpus": 512, "confidence": confidence}
    return plan(
        parse_scenario(
            {
                "model": "qwen3-30b-a3b",
                "workload": {"kind": "open_loop", "rate": 50.0, "prompt": 2000, "output": 200},
                "slo": {"ttft_s": 4.0, "tpot_s": 0.06},
                "search": search | changes,
            }
        )
    )


def test_a_higher_confidence_never_costs_less() -> None:
    costs = []
    for confidence in (None, 0.5, 0.7, 0.9):
        best = ask(confidence).designs[0]
        assert best.cost is not None
        assert best.meets_slo
        costs.append(best.cost.usd_per_hour)
        if confidence is not None:
            assert min(best.certainty.chance(limit) for limit in SLO.limits) >= confidence - 1e-9
    assert costs == sorted(costs)
    assert costs[-1] > costs[0]


def test_a_simulated_design_holds_the_demanded_chance_noise_counted() -> None:
    best = ask(0.7, simulate_top=1).designs[0]
    assert best.simulated is not None
    assert best.meets_slo
    data = best.to_json()["uncertainty"]
    assert min(limit["chance"] for limit in data["limits"].values()) >= 0.7
    assert set(data["keeps_up"]) == {"prefill", "decode"}
    estimated = ask(0.7).designs[0].to_json()["uncertainty"]["bands"]
    for name in ("ttft_s", "tpot_s"):
        band, alone = data["bands"][name], estimated[name]
        assert band["p10"] < band["p50"] < band["p90"]
        assert band["p90"] / band["p10"] > alone["p90"] / alone["p10"]


def test_a_chance_that_nothing_reaches_names_the_limit_and_what_it_would_take() -> None:
    answer = ask(0.9999999)
    assert answer.designs == ()
    assert answer.binding is not None
    assert "the chance demanded" in answer.binding

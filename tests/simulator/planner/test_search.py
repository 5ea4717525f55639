import json
from typing import Any

import pytest

from simulator.des.simulate import simulate
from simulator.planner.capacity import most_traffic
from simulator.planner.design import Plan
from simulator.planner.search import plan
from simulator.scenario import ScenarioError, parse_scenario


def ask(model: str = "qwen3-30b-a3b", rate: float = 10.0, **changes: Any) -> Plan:
    slo = {"ttft_s": 2.0, "tpot_s": 0.03} | changes.pop("slo", {})
    search = {"gpus": ["h200", "b200"], "simulate_top": 2, "max_gpus": 256} | changes.pop("search", {})
    return plan(
        parse_scenario(
            {
                "model": model,
                "workload": {"kind": "open_loop", "rate": rate, "prompt": 2000, "output": 200},
                "slo": slo,
                "search": search,
            }
            | changes
        )
    )


def test_the_first_design_was_simulated_and_holds_the_limits() -> None:
    answer = ask()
    best = answer.designs[0]
    assert best.simulated is not None
    assert best.meets_slo
    assert best.simulated["ttft_s"]["p90"] <= 2.0
    assert best.simulated["tpot_s"]["p90"] <= 0.03
    assert best.simulated["requests"]["finished"] == best.simulated["requests"]["total"]
    assert answer.binding is None


def test_the_json_has_the_keys_that_scripts_rely_on_and_no_infinity() -> None:
    data = ask(search={"simulate_top": 1}).to_json()
    json.loads(json.dumps(data, allow_nan=False))
    keys = {"gpus_total", "steady_state", "simulated", "usd_per_hour", "usd_per_mtok_input", "usd_per_mtok_output"}
    keys |= {"usd_per_mtok_blended", "meets_slo", "assumptions"}
    for design in data["designs"]:
        assert keys <= set(design)
        pools = [design[role] for role in ("prefill", "decode", "colocated") if role in design]
        assert len(pools) in (1, 2)
        for pool in pools:
            assert pool["tp"] * pool["dp"] * pool["cp"] == pool["gpus_per_instance"]
        assert design["gpus_total"] == sum(p["instances"] * p["gpus_per_instance"] for p in pools)
        carried = (design["simulated"] or design["steady_state"])["total_tok_s_per_gpu"] * design["gpus_total"]
        assert design["usd_per_mtok_blended"] == pytest.approx(design["usd_per_hour"] / (carried * 3600 / 1e6))
    assert {point["form"] for point in data["frontier"]} == {"disaggregated", "colocated"}


def test_frontier_points_are_beaten_by_none_of_their_form_and_accelerator() -> None:
    points = ask(search={"simulate_top": 0}).frontier
    for a in points:
        for b in points:
            if a is not b and (a.form, a.gpu) == (b.form, b.gpu):
                faster = b.tok_s_per_user >= a.tok_s_per_user
                assert not (faster and b.total_tok_s_per_gpu >= a.total_tok_s_per_gpu)


def test_rows_not_simulated_are_in_order_of_cost() -> None:
    designs = ask(search={"simulate_top": 0}).designs
    costs = [design.cost.usd_per_hour for design in designs if design.cost]
    assert len(costs) > 2
    assert costs == sorted(costs)
    assert all(design.to_json()["checked_by"] == "steady state only" for design in designs)


def test_an_impossible_limit_is_named_with_how_far_it_is() -> None:
    answer = ask(slo={"tpot_s": 1e-5})
    assert answer.designs == ()
    assert answer.binding is not None
    assert "tpot_s: the limit is 1e-05 s" in answer.binding
    assert "times the limit" in answer.binding


def test_a_model_too_large_for_every_group_says_what_it_needs() -> None:
    answer = ask(model="deepseek-v4-pro", search={"gpus": ["l40s"], "max_gpus": 4})
    assert answer.designs == ()
    assert answer.binding is not None
    assert "deepseek-v4-pro" in answer.binding
    assert "at least 32 l40s would do" in answer.binding


def test_more_traffic_never_costs_less() -> None:
    costs = []
    for rate in (2.0, 20.0, 200.0):
        best = ask(rate=rate, search={"simulate_top": 0}).designs[0].cost
        assert best is not None
        costs.append(best.usd_per_hour)
    assert costs == sorted(costs)


def test_a_tighter_limit_never_costs_less() -> None:
    costs = []
    for tpot in (0.05, 0.02, 0.012):
        best = ask(slo={"tpot_s": tpot}, search={"simulate_top": 0}).designs[0].cost
        assert best is not None
        costs.append(best.usd_per_hour)
    assert costs == sorted(costs)


def test_any_percentile_can_be_asked_and_the_share_meets_all_limits_together() -> None:
    best = ask(slo={"percentile": 80.5}, search={"simulate_top": 1}).designs[0]
    assert best.simulated is not None
    assert best.meets_slo
    assert best.simulated["ttft_s"]["p80.5"] <= 2.0
    assert best.simulated["attainment"] >= 0.805


def test_traffic_beyond_max_gpus_says_how_many_it_needs() -> None:
    answer = ask(rate=2000.0, search={"max_gpus": 16, "simulate_top": 0})
    assert answer.designs == ()
    assert answer.binding is not None
    needed = int(answer.binding.split("needs about ")[1].split(";")[0])
    roomy = ask(rate=2000.0, search={"max_gpus": round(1.2 * needed), "simulate_top": 0})
    assert 0.9 * needed <= min(design.deployment.gpus for design in roomy.designs) <= 1.2 * needed


def test_prompts_of_a_million_tokens_are_cut_by_sequence_to_keep_a_minute() -> None:
    """No tensor-parallel group of H200 prefills them in a minute: every rank scores all pairs of the indexer."""
    answer = plan(
        parse_scenario(
            {
                "model": "deepseek-v4-pro",
                "workload": {"kind": "open_loop", "rate": 0.05, "prompt": 1_000_000, "output": 500},
                "slo": {"ttft_s": 60.0, "tpot_s": 0.05},
                "search": {"gpus": ["h200"], "simulate_top": 1, "max_gpus": 256},
            }
        )
    )
    best = answer.designs[0]
    assert best.simulated is not None
    assert best.meets_slo
    assert best.simulated["ttft_s"]["p90"] <= 60.0
    prefills = [design.deployment.prefill for design in answer.designs]
    assert prefills
    assert all(pool is not None and pool.cp > 1 for pool in prefills)


def test_designs_are_checked_at_the_highest_rate_of_the_day() -> None:
    """The day begins at its trough, where the check would see a tenth of the traffic."""
    day = {"kind": "open_loop", "rate": 10.0, "prompt": 2000, "output": 200, "diurnal": {"trough": 0.1}}
    data = {
        "model": "qwen3-30b-a3b",
        "slo": {"ttft_s": 2.0, "tpot_s": 0.03},
        "search": {"gpus": ["h200"], "simulate_top": 1, "forms": ["colocated"]},
    }
    best = plan(parse_scenario(data | {"workload": day})).designs[0]
    assert best.simulated is not None
    assert best.simulated["requests_per_s"] == pytest.approx(10.0, rel=0.1)


def test_a_plan_says_that_it_reads_no_deployment() -> None:
    pool = {"gpu": "h200_sxm", "tp": 2, "long_prefill_token_threshold": 4096}
    assert not any("[deployment]" in text for text in ask().assumptions)
    assert any("[deployment]" in text for text in ask(deployment={"colocated": pool}).assumptions)


def price(**changes: Any) -> float:
    """Of the best design by the estimate alone, on accelerators with stacks that are fitted."""
    search = {"simulate_top": 0, "gpus": ["h200"], "stacks": ["vllm"]} | changes.pop("search", {})
    best = ask(search=search, **changes).designs[0].cost
    assert best is not None
    return best.usd_per_hour


def test_more_accelerators_on_offer_never_cost_more_and_their_order_does_not_matter() -> None:
    one = price()
    both = price(search={"gpus": ["h200", "b200"]})
    assert both <= one
    assert price(search={"gpus": ["b200", "h200"]}) == both


def test_doubling_the_rate_of_many_instances_leaves_latency_and_doubles_cost() -> None:
    first, second = (ask(rate=rate, search={"simulate_top": 0, "max_gpus": 4096}).designs[0] for rate in (400.0, 800.0))
    assert 1.8 * first.price <= second.price <= 2.06 * first.price  # whole instances waste less of a larger cluster
    assert second.steady_state.tpot_mean_s == pytest.approx(first.steady_state.tpot_mean_s, rel=0.15)


def test_the_same_seed_gives_the_same_answer() -> None:
    assert ask(search={"gpus": ["h200"]}).to_json() == ask(search={"gpus": ["h200"]}).to_json()


def test_every_value_that_is_shown_lies_inside_its_band() -> None:
    for design in ask(search={"gpus": ["h200"]}).designs:
        data = design.to_json()
        shown = data["simulated"] or data["steady_state"]
        for key, band in data["uncertainty"]["bands"].items():
            value = design.certainty.values.get(key, data.get(key))
            assert band["p10"] <= value * (1 + 1e-9)
            assert value <= band["p90"] * (1 + 1e-9)
        assert shown["total_tok_s_per_gpu"] > 0


def test_a_stack_that_is_fitted_is_the_default_and_is_named() -> None:
    stacks = {design.to_json()["stack"] for design in ask(search={"gpus": ["h200"], "simulate_top": 0}).designs}
    assert stacks <= {"vllm", "sglang", "trtllm"}


def test_prompts_that_begin_alike_need_less() -> None:
    work = {"kind": "open_loop", "rate": 60.0, "prompt": 4096, "output": 64}
    whole = price(workload=work)
    shared = price(workload=work | {"shared_prefix": {"tokens": 3072, "groups": 2}})
    assert shared < whole


def test_growth_is_refused_with_the_way_out() -> None:
    day = {"kind": "open_loop", "rate": 10.0, "prompt": 200, "output": 20, "diurnal": {"growth_per_day": 0.01}}
    with pytest.raises(ScenarioError, match=r"growth_per_day=0.01: plan sizes for one rate"):
        ask(workload=day)


def test_drafts_are_refused_where_the_model_ships_no_head() -> None:
    with pytest.raises(ScenarioError, match="ships no draft head"):
        ask(search={"draft_tokens": 2})


def test_each_design_is_a_scenario_that_can_be_simulated() -> None:
    answer = ask(search={"gpus": ["h200"], "simulate_top": 1, "forms": ["colocated"]})
    best = answer.designs[0]
    assert best.simulated is not None
    again = simulate(answer.scenarios[0]).summary().metrics["tpot_s"].p90
    assert again == pytest.approx(best.simulated["tpot_s"]["p90"], rel=1e-9)


def test_a_budget_is_used_whole_at_the_highest_rate_that_holds() -> None:
    asked = parse_scenario(
        {
            "model": "qwen3-30b-a3b",
            "workload": {"kind": "open_loop", "rate": 10.0, "prompt": 1000, "output": 100},
            "slo": {"ttft_s": 2.0, "tpot_s": 0.05},
            "search": {"gpus": ["h200"], "stacks": ["vllm"], "simulate_top": 1, "forms": ["colocated"]},
        }
    )
    answer = most_traffic(asked, 2)
    best = answer.designs[0]
    assert best.meets_slo
    assert best.simulated is not None
    assert best.deployment.gpus == 2 or answer.idle
    assert best.simulated["requests_per_s"] > 20

"""What an operator sets reaches every command: memory share, KV type, power cap, prices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simulator.des.simulate import simulate
from simulator.model.presets import ModelError, load_model
from simulator.planner.search import plan
from simulator.scenario import Costs, ScenarioError, hardware_of, parse_scenario

POOL: dict[str, Any] = {"gpu": "h100"}


def asked(pool: dict[str, Any] | None = None, **keys: Any) -> dict[str, Any]:
    """Field case 18 without the key that is refused."""
    return {
        "model": "qwen3-30b-a3b",
        "workload": {"kind": "open_loop", "rate": 1.0, "requests": 20, "prompt": 1000, "output": 100},
        "deployment": {"colocated": POOL | (pool or {})},
        **keys,
    }


def run(pool: dict[str, Any] | None = None, **keys: Any) -> dict[str, Any]:
    return simulate(parse_scenario(asked(pool, **keys))).summary().to_json()


def test_the_operators_knobs_are_used() -> None:
    pool = {"memory_utilisation": 0.95, "kv_dtype": "fp8", "power_cap_w": 400.0, "usd_per_hour": 1.2}
    scenario = parse_scenario(asked(pool, price_convention="spot"))
    group = scenario.deployment.groups[0]  # type: ignore[union-attr]
    assert group.memory_share == 0.95
    hardware = hardware_of(group)
    assert hardware.efficiency.memory_utilisation == 0.95
    assert hardware.power_limit_w == 400.0
    found = run(pool, price_convention="spot")
    assert found["cost"]["usd_per_hour"] == pytest.approx(1.2)
    plain = run(price_convention="spot")
    assert plain["cost"]["usd_per_hour"] == pytest.approx(2.46)
    assert found["metrics"]["ttft_s"]["mean"] > plain["metrics"]["ttft_s"]["mean"]  # the cap slows prefill
    # half the bytes a token in more room
    assert found["utilization"]["colocated"]["kv_occupancy"] < 0.5 * plain["utilization"]["colocated"]["kv_occupancy"]


def test_adapters_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="'lora': LoRA adapters are not modelled"):
        parse_scenario(asked({"lora": {"adapters": 16, "rank": 64}}))
    with pytest.raises(ScenarioError, match="'max_loras': LoRA adapters are not modelled"):
        parse_scenario(asked(search={"max_loras": 2}))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "Q/B"}))
    with pytest.raises(ModelError, match="is a LORA adapter, and adapters are not modelled; give Q/B"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("pool", "said"),
    [
        ({"memory_share": 1.5}, "memory_share"),
        ({"kv_dtype": "fp16"}, "kv_dtype='fp16'"),
        ({"power_cap_w": 0}, "power_cap_w=0"),
        ({"usd_per_hour": -1}, "usd_per_hour=-1"),
    ],
)
def test_what_cannot_be_is_refused_by_key(pool: dict[str, Any], said: str) -> None:
    with pytest.raises(ScenarioError, match=said):
        parse_scenario(asked(pool))


def test_pools_that_hand_over_kv_keep_it_alike() -> None:
    pools = {"prefill": POOL | {"kv_dtype": "fp8"}, "decode": POOL}
    with pytest.raises(ScenarioError, match="kv_dtype is fp8 and the model's own in pools of one deployment"):
        parse_scenario(asked() | {"deployment": pools})


def test_electricity_comes_on_top_and_unused_hours_are_paid_for() -> None:
    """What a run draws, times PUE and price; half of the paid hours used doubles what tokens cost."""
    plain = run()
    costs = {"usd_per_hour": {"h100": 2.0}, "usd_per_kwh": 0.2, "pue": 1.5, "utilisation": 0.5}
    found = run(costs=costs)
    watts = plain["energy"]["power_kw"] * 1e3
    hourly = 2.0 + watts / 1e3 * 1.5 * 0.2
    assert found["cost"]["usd_per_hour"] == pytest.approx(hourly)
    ratio = found["cost"]["usd_per_mtok_blended"] / plain["cost"]["usd_per_mtok_blended"]
    assert ratio == pytest.approx(2 * hourly / plain["cost"]["usd_per_hour"])
    assert sum("electricity" in text or "paid hours" in text for text in found["assumptions"]) == 2
    assert Costs().electricity_usd_per_hour(1e3) == 0


def test_plans_take_the_same_knobs() -> None:
    search = {"gpus": ["h100"], "forms": ["colocated"], "simulate_top": 0, "max_gpus": 8}
    knobs = {"memory_share": 0.8, "kv_dtype": "fp8", "power_cap_w": 500.0}
    keys = {"slo": {"ttft_s": 5.0, "tpot_s": 0.2}}
    mine = plan(parse_scenario(asked(**keys, search=search | knobs, costs={"usd_per_hour": {"h100_sxm": 1.0}})))
    best = mine.designs[0]
    pool = best.deployment.lone_pools["colocated"]
    assert (pool.memory_share, pool.kv_dtype, pool.power_cap_w) == (0.8, "fp8", 500.0)
    assert best.cost is not None
    assert best.cost.usd_per_hour == pytest.approx(best.deployment.gpus * 1.0)
    assert any("cap of 500" in text for text in mine.assumptions)

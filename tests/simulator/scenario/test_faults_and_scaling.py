"""Keys of faults and autoscaling, and the example scenarios."""

from pathlib import Path
from typing import Any

import pytest

from simulator.des.simulate import simulate
from simulator.scenario import ScenarioError, load_scenario, parse_scenario

EXAMPLES = Path(__file__).resolve().parents[3] / "docs" / "scenarios"
POOL = {"gpu": "h200", "tp": 8, "instances": 2}
SCALE = {"metric": "queue", "target": 2.0, "maximum": 4}


def scenario(deployment: dict[str, Any]) -> Any:
    load = {"kind": "open_loop", "rate": 1.0, "requests": 5, "prompt": 100, "output": 5}
    return parse_scenario({"model": "qwen3-235b-a22b", "workload": load, "deployment": deployment})


@pytest.mark.parametrize("name", ["faults", "autoscale"])
def test_examples_play(name: str) -> None:
    whole = load_scenario(EXAMPLES / f"{name}.toml")
    short = whole.model_copy(update={"workload": whole.workload.model_copy(update={"requests": 3000})})
    summary = simulate(short).summary().to_json()
    assert summary["requests"]["finished"] == 3000
    life = summary["lifecycle"]
    if name == "faults":
        assert life["decode"]["faults"]["node"] == 1
        assert summary["retries"] > 0
        # two of four instances are away for 120 s and their start-up
        assert life["decode"]["availability"] < 1 - 2 / 4 * 50 / summary["duration_s"]
    else:
        assert sum(pool["gpu_hours"] for pool in life.values()) * 3600 <= summary["gpus_total"] * summary["duration_s"]


def test_chats_pass_prompts_of_a_million_tokens() -> None:
    """The chats of the first five minutes, with and without a bound on the share of long prompts."""
    whole = load_scenario(EXAMPLES / "long_context.toml")
    tenants = [
        tenant.model_copy(update={"workload": tenant.workload.model_copy(update={"duration_s": 300.0})})
        for tenant in whole.tenants
    ]
    free = {"long_prefill_token_threshold": None, "max_long_partial_prefills": None}
    p99 = []
    for limits in ({}, free):
        prefill = whole.deployment.prefill.model_copy(update=limits)
        deployment = whole.deployment.model_copy(update={"prefill": prefill})
        result = simulate(whole.model_copy(update={"tenants": tenants, "deployment": deployment}))
        assert result.finished.all()
        assert result.prompt_tokens.max() == 1_000_000
        p99.append(result.tenants()["chat"].metrics["ttft_s"].p99)
    assert p99[0] < p99[1]


def test_weights_load_over_the_slower_of_storage_and_host_link() -> None:
    faults = {"events": [{"kind": "instance", "pool": "colocated", "at_s": 1.0, "duration_s": 0.0}]}
    told = [
        simulate(scenario({"colocated": POOL, "faults": faults, "startup": startup})).assumptions[-1]
        for startup in ({"start_s": 10.0, "load_s": 5.0}, {"start_s": 0.0, "weight_bandwidth": 1e15})
    ]
    assert "15 s after" in told[0]
    assert "1 s after" in told[1]  # 235 GB in bf16 over 8 host links of 64 GB/s: 0.9 s


@pytest.mark.parametrize(
    ("deployment", "told"),
    [
        ({"colocated": POOL, "faults": {"link": {"mtbf_s": 1.0, "mttr_s": 1.0}}}, "faults of links need transfers"),
        ({"colocated": POOL, "faults": {"slow": {"mtbf_s": 1.0, "mttr_s": 1.0}}}, "slow.speed=0"),
        (
            {"colocated": POOL, "faults": {"events": [{"kind": "node", "pool": "decode", "at_s": 1, "duration_s": 1}]}},
            "events.0.pool=decode is not a pool",
        ),
        ({"colocated": POOL | {"autoscale": {"metric": "queue"}}}, "metric=queue needs target and maximum"),
        ({"colocated": POOL | {"autoscale": {}}}, "give either metric"),
        ({"colocated": POOL | {"autoscale": SCALE | {"maximum": 1}}}, "instances=2"),
        ({"colocated": POOL | {"autoscale": SCALE | {"metric": "attainment", "target": 0.9}}}, "set ttft_s"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(deployment: dict[str, Any], told: str) -> None:
    with pytest.raises(ScenarioError, match=told):
        simulate(scenario(deployment))

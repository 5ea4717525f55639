"""The mean-field estimate against the discrete-event model of the same deployment, and against itself."""

import pytest

from simulator.des.simulate import simulate
from simulator.model.parameter_counts import params_active_no_embedding
from simulator.model.presets import load_model
from simulator.planner.estimate import estimate
from simulator.planner.priced_instance import price_instance
from simulator.planner.sizing import size_decode, size_prefill
from simulator.planner.steady_state import decode_state, mixed_point, prefill_state, prefill_times
from simulator.planner.traffic import Traffic, traffic_of
from simulator.scenario import Deployment, Scenario, parse_scenario

SLO = {"ttft_s": 2.0, "tpot_s": 0.03, "percentile": 90}


def scenario(deployment: dict[str, object], rate: float, model: str = "qwen3-30b-a3b") -> Scenario:
    return parse_scenario(
        {
            "model": model,
            "workload": {"kind": "open_loop", "rate": rate, "requests": 1500, "prompt": 2000, "output": 200},
            "slo": SLO,
            "deployment": deployment,
            "warmup_fraction": 0.3,
        }
    )


def pool(instances: int, **cut: object) -> dict[str, object]:
    return {"gpu": "h200_sxm", "instances": instances, **cut}


@pytest.mark.parametrize(
    ("deployment", "rate"),
    [
        ({"prefill": pool(2), "decode": pool(1, tp=2)}, 12.0),
        ({"prefill": pool(1, dp=2, ep=2), "decode": pool(1, dp=4, ep=4)}, 10.0),
        ({"colocated": pool(4, max_tokens_per_step=2048)}, 12.0),
        ({"colocated": pool(1, dp=8, ep=8, max_tokens_per_step=2048)}, 8.0),
        ({"colocated": pool(1, dp=8, ep=8, max_tokens_per_step=2048)}, 20.0),
    ],
)
def test_estimate_and_simulation_agree(deployment: dict[str, object], rate: float) -> None:
    """Two models of one cluster, one solved for its equilibrium, one played request by request."""
    asked = scenario(deployment, rate)
    assert asked.deployment is not None
    design = estimate(asked, load_model(asked.model), traffic_of(asked.workload, 0), asked.deployment)
    metrics = simulate(asked).summary().metrics
    assert design.steady_state.tpot_mean_s == pytest.approx(metrics["tpot_s"].mean, rel=0.15)
    assert design.steady_state.ttft_mean_s == pytest.approx(metrics["ttft_s"].mean, rel=0.35)


def test_sized_pools_hold_the_limits_and_one_instance_less_does_not() -> None:
    asked = scenario({"prefill": pool(1), "decode": pool(1)}, 60.0)
    assert asked.deployment is not None
    assert asked.deployment.prefill is not None
    traffic = traffic_of(asked.workload, 0)
    priced = price_instance(load_model(asked.model), asked.deployment.prefill, "disaggregated")
    times = prefill_times(priced, traffic, 8192)
    count = size_prefill(priced, traffic, times, asked.slo)
    assert count is not None
    assert count > 1
    assert prefill_state(priced, traffic, times, count, 90).ttft_percentile_s <= 2.0
    fewer = prefill_state(priced, traffic, times, count - 1, 90)
    assert fewer.ttft_percentile_s > 2.0 or fewer.utilisation > 0.9
    size = size_decode(priced, traffic, 0.0, asked.slo)
    assert size is not None
    assert size.instances > 1
    assert decode_state(priced, traffic, size.instances, size.max_sequences, 0.0, 90).tpot_percentile_s <= 0.03
    fewer_decode = decode_state(priced, traffic, size.instances - 1, size.max_sequences, 0.0, 90)
    assert fewer_decode.utilisation > 0.85 or fewer_decode.tpot_percentile_s > 0.03


def test_more_instances_are_never_slower_and_cost_in_proportion() -> None:
    asked = scenario({"prefill": pool(2), "decode": pool(1, tp=2)}, 12.0)
    assert asked.deployment is not None
    model, traffic = load_model(asked.model), traffic_of(asked.workload, 0)
    costs, ttft, tpot = [], [], []
    for n in (1, 2, 3, 5, 8):
        wider = Deployment.model_validate({"prefill": pool(2 * n), "decode": pool(n, tp=2)})
        design = estimate(asked, model, traffic, wider)
        assert design.cost is not None
        costs.append(design.cost.usd_per_hour / n)
        ttft.append(design.steady_state.ttft_percentile_s)
        tpot.append(design.steady_state.tpot_percentile_s)
    assert costs == pytest.approx([costs[0]] * 5)
    assert ttft == sorted(ttft, reverse=True)
    assert tpot == sorted(tpot, reverse=True)


def test_an_overloaded_pool_has_no_finite_latency() -> None:
    asked = scenario({"prefill": pool(1), "decode": pool(1)}, 500.0)
    assert asked.deployment is not None
    design = estimate(asked, load_model(asked.model), traffic_of(asked.workload, 0), asked.deployment)
    assert design.steady_state.ttft_mean_s == float("inf")
    assert not design.meets_slo


@pytest.mark.parametrize("cut", [{"tp": 8}, {"dp": 8, "ep": 8}, {"tp": 4, "dp": 8, "ep": 32}])
@pytest.mark.parametrize(("prompt", "output"), [(512, 64), (4000, 16), (100, 1000)])
def test_no_batch_exceeds_what_the_matrix_units_can_do(cut: dict[str, int], prompt: int, output: int) -> None:
    """Throughput times the FLOPs that a token cannot do without stays below the datasheet peak."""
    asked = scenario({"colocated": pool(1, **cut)}, 1.0)
    assert asked.deployment is not None
    assert asked.deployment.colocated is not None
    model = load_model(asked.model)
    priced = price_instance(model, asked.deployment.colocated, "colocated")
    traffic = Traffic(1.0, 1.0, (prompt,), (output,), "")
    for batch in (1, 16, 256, 2048, 8192):
        tokens_per_s = mixed_point(priced, traffic, 2048, batch).rate * (prompt + output)
        flops = 2 * (params_active_no_embedding(model) - model.lm_head.params) * tokens_per_s
        assert flops / priced.parallelism.gpus < priced.hardware.matrix_peak("bf16")

"""The estimate against the discrete-event model of the same deployment, and against itself."""

import numpy as np
import pytest

from simulator.des.simulate import simulate
from simulator.model.presets import load_model
from simulator.planner.estimate import estimates
from simulator.planner.pools import Pricing
from simulator.planner.sizing import smallest
from simulator.planner.traffic import traffic_of
from simulator.scenario import Deployment, Scenario, Transfer, parse_scenario


def scenario(deployment: dict[str, object], rate: float) -> Scenario:
    return parse_scenario(
        {
            "model": "qwen3-30b-a3b",
            "workload": {"kind": "open_loop", "rate": rate, "requests": 1500, "prompt": 2000, "output": 200},
            "slo": {"ttft_s": 2.0, "tpot_s": 0.03, "percentile": 90},
            "deployment": deployment,
            "warmup_fraction": 0.3,
        }
    )


def pricing_of(asked: Scenario) -> Pricing:
    traffic = traffic_of(asked.one_workload(), 0)
    return Pricing(load_model(asked.model), traffic, asked.price_convention, Transfer())


def pool(instances: int, **cut: object) -> dict[str, object]:
    return {"gpu": "h200_sxm", "instances": instances, **cut}


@pytest.mark.parametrize(
    ("deployment", "rate"),
    [
        ({"prefill": pool(2), "decode": pool(1, tp=2)}, 12.0),
        ({"prefill": pool(1, dp=2, ep=2), "decode": pool(1, dp=4, ep=4)}, 10.0),
        ({"colocated": pool(4, max_tokens_per_step=2048)}, 12.0),
        ({"colocated": pool(1, dp=8, ep=8, max_tokens_per_step=512)}, 20.0),
        ({"colocated": pool(1, dp=4, ep=4, batching="prefill_first")}, 10.0),
    ],
)
def test_estimate_and_simulation_agree(deployment: dict[str, object], rate: float) -> None:
    """Two models of one cluster, one solved for its equilibrium, one played request by request."""
    asked = scenario(deployment, rate)
    assert asked.deployment is not None
    (design,) = estimates(asked, pricing_of(asked), [asked.deployment])
    metrics = simulate(asked).summary().metrics
    assert design.steady_state.tpot_mean_s == pytest.approx(metrics["tpot_s"].mean, rel=0.1)
    assert design.steady_state.ttft_mean_s == pytest.approx(metrics["ttft_s"].mean, rel=0.25)


def test_more_instances_are_never_slower_and_cost_in_proportion() -> None:
    asked = scenario({"prefill": pool(2), "decode": pool(1, tp=2)}, 12.0)
    wider = [Deployment.model_validate({"prefill": pool(2 * n), "decode": pool(n, tp=2)}) for n in (1, 2, 3, 5, 8)]
    designs = estimates(asked, pricing_of(asked), wider)
    costs = [design.price / n for design, n in zip(designs, (1, 2, 3, 5, 8), strict=True)]
    assert costs == pytest.approx([costs[0]] * 5)
    for name in ("ttft_s", "tpot_s"):
        values = [design.at_limits[name] for design in designs]
        assert values == sorted(values, reverse=True)


def test_an_overloaded_pool_has_no_finite_latency() -> None:
    asked = scenario({"prefill": pool(1), "decode": pool(1)}, 500.0)
    assert asked.deployment is not None
    (design,) = estimates(asked, pricing_of(asked), [asked.deployment])
    assert design.steady_state.ttft_mean_s == float("inf")
    assert not design.meets_slo


def test_smallest_finds_each_rows_own_count() -> None:
    wanted = np.array([[7.0], [1.0], [33.0], [1e9]])
    found = smallest(np.array([[1.0], [1.0], [30.0], [1.0]]), lambda n: n >= wanted)
    assert found.ravel().tolist() == [7.0, 1.0, 33.0, 0.0]

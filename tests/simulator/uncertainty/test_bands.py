"""Bands of runs: the model's error alone where a run has no noise, more with it, by pool where pools differ."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest

from hw_profiles.catalog import load
from simulator.des.replicate import Replications, estimate
from simulator.des.simulate import simulate
from simulator.model.parallelism import Parallelism
from simulator.model.presets import load_model
from simulator.scenario import Deployment, Pool, Scenario, parse_scenario
from simulator.uncertainty.bands import Bands, bands_of, of_run, of_runs
from simulator.uncertainty.spreads import Role, Spread, Uncertainty, uncertainty_of

RATE = "total_tok_s_per_gpu"
MODEL = load_model("qwen3-30b-a3b")


def known(gpu: str, stack: str = "default", role: Role = "colocated", tp: int = 2) -> Uncertainty:
    return uncertainty_of(load(gpu, stack), MODEL, Parallelism(tp=tp), 0, role)


def scenario(requests: int = 400, **changes: Any) -> Scenario:
    return parse_scenario(
        {
            "model": "qwen3-30b-a3b",
            "workload": {"kind": "open_loop", "rate": 5.0, "requests": requests, "prompt": 500, "output": 20},
            "slo": {"ttft_s": 2.0, "tpot_s": 0.05},
            "deployment": {"colocated": {"gpu": "h200_sxm", "tp": 2}},
        }
        | changes
    )


def test_a_run_widens_the_band_of_the_model_by_its_own_noise() -> None:
    asked = scenario()
    result = simulate(asked)
    found = of_run(result, asked)
    model = known("h200_sxm")
    p90 = result.summary().to_json()["metrics"]["ttft_s"]["p90"]
    band = found["bands"]["metrics.ttft_s.p90"]
    spread = model.spreads["ttft_s"]
    assert band["p50"] == pytest.approx(p90 * math.exp(spread.p50))
    assert band["p90"] > p90 * math.exp(spread.p90)
    assert band["p10"] < p90 * math.exp(spread.p10)
    assert found["reasons"] == {"NVIDIA H200 SXM": model.reason}


def test_rates_of_a_closed_loop_have_the_band_of_the_model_and_costs_its_reciprocal() -> None:
    closed = {"kind": "closed_loop", "concurrency": 8, "requests": 200, "prompt": 500, "output": 20}
    asked = scenario(workload=closed)
    result = simulate(asked)
    bands, summary = of_run(result, asked)["bands"], result.summary().to_json()
    spread = known("h200_sxm").spreads[RATE]
    rate, cost = summary["throughput"][RATE], summary["cost"]["usd_per_mtok_blended"]
    assert bands[f"throughput.{RATE}"] == pytest.approx(spread.band(rate))
    assert bands["cost.usd_per_mtok_blended"]["p90"] == pytest.approx(cost * math.exp(-spread.p10))
    assert bands["cost.usd_per_mtok_blended"]["p10"] == pytest.approx(cost * math.exp(-spread.p90))


def test_a_limit_at_the_median_of_its_band_has_even_chances() -> None:
    asked = scenario()
    at = of_run(simulate(asked), asked)["bands"]["metrics.tpot_s.p90"]["p50"]
    again = scenario(slo={"ttft_s": 2.0, "tpot_s": at})
    assert of_run(simulate(again), again)["limits"]["tpot_s"]["chance"] == pytest.approx(0.5)


@pytest.mark.parametrize("runs", [3, 12])
def test_several_runs_have_the_noise_of_their_mean(runs: int) -> None:
    """A third each of 0.9, 1.0 and 1.1 s: the standard error of the mean is s / sqrt(runs)."""
    values = [0.9, 1.0, 1.1] * (runs // 3)
    key = "metrics.ttft_s.p90"
    seen = Replications(0.95, tuple(range(runs)), {key: estimate(values, 0.95)}, ())
    noise = statistics.stdev(values) / math.sqrt(runs)
    spread = known("h200_sxm").spreads["ttft_s"].with_noise(noise)
    assert of_runs(seen, scenario())["bands"][key] == pytest.approx(spread.band(1.0))


def test_pools_on_different_stacks_answer_for_their_own_latency() -> None:
    deployment = Deployment(prefill=Pool(gpu="b200_sxm", stack="sglang"), decode=Pool(gpu="h200_sxm"))
    bands = bands_of(deployment, MODEL)
    fitted = known("b200_sxm", "sglang", "prefill", 1)
    assumed = known("h200_sxm", role="decode", tp=1)
    assert bands.spread("ttft_s").band(1.0) == pytest.approx(fitted.spreads["ttft_s"].band(1.0))
    assert bands.spread("tpot_s").band(1.0) == pytest.approx(assumed.spreads["tpot_s"].band(1.0))
    assert list(bands.grounds()["reasons"].values()) == [fitted.reason, assumed.reason]


def test_rates_are_as_unsure_as_the_less_known_pool() -> None:
    def alike(half: float) -> Uncertainty:
        spread = Spread(p10=-half, p50=0.0, p90=half)
        return Uncertainty(f"{half}", "", "", {"tpot_s": spread, "ttft_s": spread, "total_tok_s_per_gpu": spread})

    for bands in (Bands(alike(0.1), alike(0.4)), Bands(alike(0.4), alike(0.1))):
        assert bands.whole.kind == "0.4"
        assert bands.spread(RATE).p90 == 0.4


def test_every_tenant_has_chances_of_its_own() -> None:
    stream = {"kind": "open_loop", "rate": 2.0, "requests": 100, "prompt": 500, "output": 20}
    tenants = [
        {"name": "strict", "workload": stream, "slo": {"ttft_s": 0.05}},
        {"name": "easy", "workload": stream, "slo": {"ttft_s": 50.0}},
    ]
    asked = scenario(workload=None, tenants=tenants)
    limits = of_run(simulate(asked), asked)["limits"]
    assert set(limits) == {"strict.ttft_s", "easy.ttft_s"}
    assert limits["strict.ttft_s"]["chance"] < limits["easy.ttft_s"]["chance"]


def test_what_is_offered_is_never_exceeded_and_slow_engines_leave_some_behind() -> None:
    """Loaded to u = 0.5, engines at e^-0.8 of their speed still carry e^-0.8 / 0.5 = 90% of the load."""
    spread = Spread(p10=-0.8, p50=0.0, p90=0.8)
    pool = Uncertainty("", "", "", {"tpot_s": spread, "ttft_s": spread, "total_tok_s_per_gpu": spread})
    bands = Bands(pool, pool)
    expected = math.exp(-0.8) / 0.5
    assert bands.offered(RATE, 100.0, load=0.5) == pytest.approx({"p10": 100 * expected, "p50": 100.0, "p90": 100.0})
    cost = bands.offered("usd_per_mtok_output", 2.0, load=0.5)
    assert cost == pytest.approx({"p10": 2.0, "p50": 2.0, "p90": 2.0 / expected})
    assert bands.offered(RATE, 100.0, load=0.1)["p10"] == 100.0
    assert bands.offered("tpot_s", 1.0, load=0.1) == pytest.approx(spread.band(1.0))


def test_an_open_loop_promises_no_more_than_arrived() -> None:
    asked = scenario()
    result = simulate(asked)
    found, summary = of_run(result, asked)["bands"], result.summary().to_json()
    assert found[f"throughput.{RATE}"]["p90"] == summary["throughput"][RATE]
    assert found["cost.usd_per_mtok_blended"]["p10"] == summary["cost"]["usd_per_mtok_blended"]

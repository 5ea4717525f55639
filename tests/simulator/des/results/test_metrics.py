"""Metrics of runs small enough to work out by hand."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.clusters import FormulaTimes, colocated, make_instance, play

from simulator.des.results.measured import METRICS, GroupPrice, warmup_count
from simulator.des.results.reports import Percentiles, percentiles_of
from simulator.des.results.result import SimulationResult
from simulator.scenario import Slo

MS = 1e-3


@pytest.fixture
def steady() -> Any:
    """A request a second for 100 s; each takes 0.1 s of prefill (100 tokens) and 20 steps of 10 ms (21 tokens)."""

    def run(**options: Any) -> SimulationResult:
        spec = colocated(make_instance(FormulaTimes(per_prompt_token_s=MS, decode_base_s=10 * MS), gpus=2))
        result: SimulationResult = play(spec, [100] * 100, [21] * 100, np.arange(100.0), **options)
        return result

    return run


def test_latencies_follow_their_definitions(steady: Any) -> None:
    result = steady()
    metrics = result.summary().to_json()["metrics"]
    assert tuple(metrics) == METRICS
    for name, value in {"ttft_s": 0.1, "tpot_s": 0.01, "e2e_s": 0.3, "tok_s_per_user": 100.0}.items():
        assert tuple(metrics[name]) == ("mean", "p50", "p90", "p95", "p99")
        assert list(metrics[name].values()) == pytest.approx([value] * 5)


def test_throughput_counts_departures_over_the_window(steady: Any) -> None:
    """The window is that of the measured arrivals, from the 11th (10 s) to the last (99 s): 89 departures."""
    result = steady(warmup=10)
    window = result.window
    assert (window.start_s, window.end_s) == (10.0, 99.0)
    assert window.requests == 89
    rates = result.throughput()
    assert rates.requests_per_s == pytest.approx(1.0)
    assert rates.output_tok_s_per_gpu == pytest.approx(21 / 2)
    assert rates.total_tok_s_per_gpu == pytest.approx(121 / 2)
    assert result.too_short is None


def test_a_backlog_that_drains_is_no_throughput() -> None:
    """Three requests a second where two can be served, then one a second: the window holds what came in it.

    By 60 s 120 of 180 have left; from then on 2/s leave and 1/s come until 120 s.
    """
    spec = colocated(make_instance(FormulaTimes(per_prompt_token_s=MS), max_sequences=1))
    arrivals = [*(np.arange(180) / 3), *(60.0 + np.arange(60))]
    result = play(spec, [500] * 240, [1] * 240, arrivals, warmup=180)
    assert (result.window.start_s, result.window.end_s) == (60.0, 119.0)
    assert result.throughput().requests_per_s == pytest.approx(1.0)


@settings(max_examples=25)
@given(
    rate=st.sampled_from([0.5, 3.0, 30.0, 300.0]),
    count=st.sampled_from([60, 400]),
    batching=st.sampled_from(["chunked", "prefill_first", "inflight"]),
    budget=st.sampled_from([64, 2048]),
    warmup=st.sampled_from([0, 20]),
    seed=st.integers(0, 1000),
)
def test_an_open_loop_never_shows_more_than_was_offered(
    rate: float, count: int, batching: str, budget: int, warmup: int, seed: int
) -> None:
    """Offered: what came in the same time. Far above capacity, prompts first or not, however short the run."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / rate, count))
    instance = make_instance(
        FormulaTimes(1e-4, 0.01, 1e-4), capacity=20_000.0, max_tokens_per_step=budget, batching=batching
    )
    prompts = rng.integers(10, 600, count).tolist()
    result = play(colocated(instance, 2), prompts, rng.integers(1, 200, count).tolist(), arrivals, warmup=warmup)
    window = result.window
    offered = int(((arrivals >= window.start_s) & (arrivals <= window.end_s)).sum())
    assert window.requests <= offered
    assert window.end_s - window.start_s >= arrivals[-1] - arrivals[warmup] - 1e-9


def test_a_burst_that_ends_before_the_first_departure_is_measured_to_its_end() -> None:
    """Ten requests at once, one at a time, 1 s each: 1 request/s over the whole run, which says that it is short."""
    spec = colocated(make_instance(FormulaTimes(per_prompt_token_s=MS), max_sequences=1))
    result = play(spec, [1000] * 10, [1] * 10, [0.0] * 10, warmup=2)
    assert result.window.requests == 10
    assert result.throughput().requests_per_s == pytest.approx(1.0)
    assert "send more requests" in result.summary().assumptions[-1]


def test_utilization_is_the_share_of_time_inside_steps(steady: Any) -> None:
    """0.3 s of every second are busy, and 0.2 s of them decode one sequence."""
    pool = steady(warmup=10).utilization()["colocated"]
    assert pool.busy_fraction == pytest.approx(0.3)
    assert pool.batch_mean == pytest.approx(2 / 3)
    assert pool.gpus == 2


def test_attainment_goodput_and_slo() -> None:
    """Prompts of 100 and 300 tokens alternate: a TTFT limit of 0.2 s is kept by half, TPOT by all."""
    spec = colocated(make_instance(FormulaTimes(per_prompt_token_s=MS, decode_base_s=10 * MS)))
    result = play(spec, [100, 300] * 50, [2] * 100, np.arange(100.0), warmup=10, slo=Slo(ttft_s=0.2, tpot_s=0.02))
    report = result.summary().to_json()["slo"]
    assert report["attainment"] == pytest.approx(0.5)
    assert report["limits"]["ttft_s"]["at_percentile"] == pytest.approx(0.3)
    assert report["limits"]["tpot_s"]["attainment"] == 1.0
    assert not result.meets_slo
    assert result.summary().to_json()["throughput"]["goodput_requests_per_s"] == pytest.approx(0.5, rel=0.02)
    easy = play(spec, [100, 300] * 50, [2] * 100, np.arange(100.0), slo=Slo(ttft_s=0.31, e2e_s=0.32))
    assert easy.meets_slo


def test_refused_requests_miss_the_slo_and_single_tokens_have_no_tpot() -> None:
    result = play(
        colocated(make_instance(capacity=50.0)),
        [10, 100, 10, 10],
        [1, 1, 1, 1],
        [0.0, 1.0, 2.0, 3.0],
        slo=Slo(tpot_s=0.001),
    )
    assert result.attainment == 0.75
    assert result.summary().to_json()["metrics"]["tpot_s"] == dict.fromkeys(("mean", "p50", "p90", "p95", "p99"))
    assert result.summary().to_json()["requests"] == {"total": 4, "finished": 3, "failed": 0, "rejected": 1}


def test_nothing_served_is_a_result_too() -> None:
    result = play(colocated(make_instance(capacity=5.0)), [10, 20], [1, 1], [0.0, 1.0])
    summary = result.summary().to_json()
    assert summary["requests"]["rejected"] == 2
    assert summary["throughput"]["requests_per_s"] == 0.0
    assert summary["metrics"]["ttft_s"]["p99"] is None


def test_colocated_cost_is_split_by_busy_time(steady: Any) -> None:
    """Of 0.3 busy seconds 0.1 are prefill: a third of 2 x 3 USD/h pays for 100 tokens/s of input."""
    result = steady()
    result.prices = {"colocated": GroupPrice(3.0, all_in_w=1500.0)}
    cost = result.cost()
    w = result.window
    assert cost.usd_per_hour == 6.0
    assert cost.usd_per_mtok_input == pytest.approx(6.0 / 3 / 3600 / w.rate(w.tokens_in) * 1e6)
    assert cost.usd_per_mtok_output == pytest.approx(6.0 * 2 / 3 / 3600 / w.rate(w.tokens_out) * 1e6)
    assert cost.power_kw == 3.0


def test_percentiles_interpolate_as_numpy_does() -> None:
    spread = percentiles_of(np.array([np.nan, *range(101)]))
    assert spread == Percentiles(mean=50.0, p50=50.0, p90=90.0, p95=95.0, p99=99.0)


def test_a_warmup_of_everything_still_measures_the_last_request(steady: Any) -> None:
    result = steady(warmup=1000)
    assert result.measured.sum() == 1
    assert result.summary().to_json()["warmup_requests"] == 99
    assert result.attainment == 1.0


def test_warmup_leaves_a_request() -> None:
    assert warmup_count(0.0, 10) == 0
    assert warmup_count(0.99, 10) == 9
    assert warmup_count(0.5, 1) == 0

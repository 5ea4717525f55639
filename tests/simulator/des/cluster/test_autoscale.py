"""Autoscaling: schedules to the letter, accelerator-hours and cost by hand, constant load that settles."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.clusters import FormulaTimes, colocated, disaggregated, make_instance, play

from simulator.des.cluster.group import Moment, integrate
from simulator.des.cluster.spec import ClusterSpec
from simulator.des.results.measured import GroupPrice
from simulator.des.results.result import SimulationResult
from simulator.scenario import Autoscale, FirstToken, ScheduledCount, Slo, Transfer

MS = 1e-3
QUICK = Transfer(efficiency=1.0, handshake_s=0.001, half_rate_bytes=0.0)


def scaled(spec: ClusterSpec, begins_with: int, startup_s: float = 0.0, slo: Slo | None = None, **keys: Any) -> Any:
    """The cluster with an entry pool that scales and has at most the instances that `spec` gives it."""
    entry = replace(spec.entry[0], begins_with=begins_with, startup_s=startup_s, autoscale=Autoscale(**keys))
    return replace(spec, entry=(entry,), slos=(slo or Slo(),))


def planned(*steps: tuple[float, int]) -> tuple[ScheduledCount, ...]:
    return tuple(ScheduledCount(at_s=at_s, instances=instances) for at_s, instances in steps)


def sizes(result: SimulationResult, pool: str = "colocated") -> list[tuple[float, int, int]]:
    return [(moment.time_s, moment.allocated, moment.serving) for moment in result.run.sizes[pool]]


def test_a_schedule_is_followed_exactly_and_its_gpu_hours_are_paid() -> None:
    """Short requests; 1 instance of 4 accelerators, 3 from 100 s on (serving 20 s later), 2 from 300 s on.

    To the end at 400 s: 100 * 1 + 200 * 3 + 100 * 2 = 900 instance-seconds, so 1 accelerator-hour.
    """
    spec = scaled(
        colocated(make_instance(FormulaTimes(per_prompt_token_s=MS), gpus=4), 3),
        1,
        20.0,
        schedule=planned((100, 3), (300, 2)),
    )
    arrivals = np.arange(800) / 2
    prompts = np.full(800, 10)
    prompts[-1] = 500  # from 399.5 s to 400 s
    result = play(spec, prompts, [1] * 800, arrivals)
    assert result.run.end.time_s == pytest.approx(400.0)
    assert sizes(result) == [(0.0, 1, 1), (100.0, 3, 1), (120.0, 3, 3), (300.0, 2, 2)]
    life = result.summary().to_json()["lifecycle"]["colocated"]
    assert life["gpu_hours"] == pytest.approx(1.0)
    assert (life["instances_least"], life["instances_most"], life["availability"]) == (1, 3, 1.0)


def test_the_cost_is_that_of_the_instances_that_were_there() -> None:
    """One request of 1000 tokens a second for 200 s; half the time 1, half the time 3 instances of 2 accelerators.

    Throughput counts from the first arrival at 0 s to the last at 199 s: (100 * 1 + 99 * 3) / 199 * 2 accelerators
    at 3 USD/h. All is charged to input, which comes at 199 requests / 199 s (the last one ends after the window).
    """
    spec = scaled(
        colocated(make_instance(FormulaTimes(per_prompt_token_s=0.0004), gpus=2), 3), 1, schedule=planned((100, 3))
    )
    run = play(spec, [1000] * 200, [1] * 200, np.arange(200.0)).run
    result = SimulationResult(spec, run, Slo(), {"colocated": GroupPrice(3.0)})
    cost = result.cost()
    assert cost is not None
    gpus = (100 * 1 + 99 * 3) / 199 * 2
    assert cost.usd_per_hour == pytest.approx(gpus * 3.0)
    assert cost.usd_per_request == pytest.approx(gpus * 3.0 / 3600)
    assert cost.usd_per_mtok_input == pytest.approx(gpus * 3.0 / 3600 / 1000 * 1e6)
    assert result.throughput().total_tok_s_per_gpu == pytest.approx(1001 / gpus)


def test_a_schedule_repeats_with_its_period() -> None:
    spec = scaled(
        colocated(make_instance(FormulaTimes(per_prompt_token_s=MS)), 2),
        1,
        schedule=planned((10, 2), (30, 1)),
        period_s=50.0,
    )
    result = play(spec, [10] * 120, [1] * 120, np.arange(120.0))
    assert [(t, n) for t, n, _ in sizes(result)] == [(0, 1), (10, 2), (30, 1), (60, 2), (80, 1), (110, 2)]


def test_a_leaving_instance_finishes_what_it_holds_and_hands_back_what_it_has_not_begun() -> None:
    """Two instances of one sequence each; requests 0 to 3 of 10 s at 0 s. Instance 1 is to leave at 5 s.

    It ends request 1 at 10 s and is gone then; request 3 waited there and goes to instance 0, after request 2.
    """
    server = make_instance(FormulaTimes(per_prompt_token_s=MS), max_sequences=1, max_tokens_per_step=10**6)
    spec = scaled(colocated(server, 2, "round_robin"), 2, schedule=planned((5, 1)))
    result = play(spec, [10_000] * 4, [1] * 4, [0.0] * 4)
    assert result.finish_s == pytest.approx([10.0, 10.0, 20.0, 30.0])
    assert result.requests["prefill_instance"].tolist() == [0, 1, 0, 0]
    assert result.summary().to_json()["retries"] == 0
    assert sizes(result) == [(0.0, 2, 2), (10.0, 1, 1)]


def test_an_instance_that_is_wanted_again_while_it_drains_serves_on_at_once() -> None:
    server = make_instance(FormulaTimes(per_prompt_token_s=MS), max_sequences=1, max_tokens_per_step=10**6)
    spec = scaled(colocated(server, 2, "round_robin"), 2, 60.0, schedule=planned((5, 1), (8, 2)))
    result = play(spec, [10_000] * 4, [1] * 4, [0.0, 0.0, 9.0, 9.0])
    assert result.finish_s == pytest.approx([10.0, 10.0, 20.0, 20.0])
    assert [n for _, n, _ in sizes(result)] == [2] * len(sizes(result))


def test_a_prefill_instance_leaves_only_when_its_kv_has_gone() -> None:
    """Prefill ends at 0.1 s on both, the wire at 2 KB/s takes 5 s for each request's 10 KB."""
    server = make_instance(FormulaTimes(per_prompt_token_s=MS, decode_base_s=10 * MS), nic_bandwidth=2e3)
    spec = disaggregated(server, server, (2, 2), router="round_robin", transfer_bytes=lambda tokens: 10_000.0)
    transfer = spec.transfer.model_copy(update={"efficiency": 1.0, "handshake_s": 0.0, "half_rate_bytes": 0.0})
    spec = scaled(replace(spec, transfer=transfer), 2, schedule=planned((1, 1)))
    result = play(spec, [100, 100], [11, 200], [0.0, 0.0])
    assert result.finish_s == pytest.approx([5.1 + 0.1, 5.1 + 1.99])
    assert [(round(t, 6), n) for t, n, _ in sizes(result, "prefill")][-1] == (5.1, 1)


@pytest.mark.parametrize("router", ["shared_queue", "least_loaded"])
def test_constant_load_settles_at_the_least_size_that_keeps_the_target(router: str) -> None:
    """10 requests/s of 0.5 s keep 5 instances busy (one sequence each) however many there are; 5 / 0.7 = 7.1."""
    server = make_instance(FormulaTimes(per_prompt_token_s=MS), max_sequences=1, max_tokens_per_step=10**6)
    keys = {"metric": "utilization", "target": 0.7, "maximum": 16, "window_s": 20.0, "cooldown_s": 60.0}
    for begins_with in (2, 16):
        spec = scaled(colocated(server, 16, router), begins_with, 10.0, **keys)
        arrivals = np.arange(18_000) / 10
        result = play(spec, [500] * 18_000, [1] * 18_000, arrivals)
        log = result.run.sizes["colocated"]
        assert log[-1].allocated == 8
        late = integrate(log, 1200.0, 1800.0)
        assert late.allocated == pytest.approx(8 * 600.0)
        assert result.summary().to_json()["requests"]["finished"] == 18_000


def test_a_queue_is_worked_off_by_more_instances() -> None:
    """An instance serves 2 requests/s and 7 come: one, then two, then four instances, as each window doubles them."""
    server = make_instance(FormulaTimes(per_prompt_token_s=MS), max_sequences=1, max_tokens_per_step=10**6)
    keys = {"metric": "queue", "target": 2.0, "maximum": 8, "window_s": 10.0, "cooldown_s": 1e6}
    spec = scaled(colocated(server, 8, "shared_queue"), 1, **keys)
    count = 7 * 300
    result = play(spec, [500] * count, [1] * count, np.arange(count) / 7)
    grown = sizes(result)
    assert [n for _, n, _ in grown[:3]] == [1, 2, 4]
    assert [t for t, _, _ in grown[:3]] == pytest.approx([0.0, 10.0, 20.0])
    assert grown[-1][1] >= 4
    assert result.ttft_s[-1] < 1.0 < np.max(result.ttft_s)


def test_missed_limits_add_instances_until_they_are_kept() -> None:
    """7 requests/s of 0.5 s under a limit of 1 s of which 90% must be kept: 4 instances are the fewest that do."""
    server = make_instance(FormulaTimes(per_prompt_token_s=MS), max_sequences=1, max_tokens_per_step=10**6)
    keys = {"metric": "attainment", "target": 0.9, "maximum": 8, "window_s": 10.0, "cooldown_s": 50.0}
    spec = scaled(colocated(server, 8, "shared_queue"), 1, slo=Slo(ttft_s=1.0), **keys)
    count = 7 * 900
    result = play(spec, [500] * count, [1] * count, np.arange(count) / 7)
    late = result.ttft_s[-7 * 300 :]
    assert np.mean(late <= 1.0) >= 0.9
    allocated = integrate(result.run.sizes["colocated"], 600.0, 900.0).allocated / 300.0
    assert 4 <= allocated <= 6  # 3.5 / 0.7 is 5: the pool does not shrink below


def test_pools_answer_for_the_part_of_a_late_first_token_that_is_theirs() -> None:
    """One place to decode, 0.9 s a request, is too few for one request a second with hand-overs; prompts are quick. The
    decode pool grows, the prefill pool does not."""
    times = FormulaTimes(per_prompt_token_s=MS, decode_base_s=0.1)
    server = make_instance(times, max_sequences=1, max_tokens_per_step=10**6)
    keys = {"metric": "attainment", "target": 0.9, "maximum": 4, "window_s": 10.0, "cooldown_s": 1e6}
    handover = Transfer(efficiency=1.0, handshake_s=0.5)
    spec = disaggregated(server, server, (4, 4), transfer=handover, first_token="decode")
    spec = scaled(spec, 1, slo=Slo(ttft_s=1.0), **keys)
    spec = replace(spec, decode=(replace(spec.entry[0], pool="decode"),))
    result = play(spec, [100] * 100, [10] * 100, np.arange(100) * 1.0)
    assert [moment.allocated for moment in result.run.sizes["prefill"]] == [1]
    assert result.run.sizes["decode"][-1].allocated > 1
    assert result.ttft_s[-1] < 1.0 < np.max(result.ttft_s)


def test_between_two_times_the_log_is_integrated_by_hand() -> None:
    log = [Moment(0.0, 4, 4, 0), Moment(10.0, 4, 3, 1), Moment(30.0, 5, 3, 1), Moment(40.0, 5, 5, 0)]
    assert integrate(log, 0.0, 50.0) == (40 + 80 + 50 + 50, 40 + 60 + 30 + 50, 20 + 10)
    assert integrate(log, 12.0, 13.0) == (4.0, 3.0, 1.0)
    assert integrate(log, 45.0, 60.0) == (75.0, 75.0, 0.0)


@settings(max_examples=50)
@given(
    data=st.data(),
    metric=st.sampled_from(["queue", "utilization", "attainment", None]),
    router=st.sampled_from(["round_robin", "least_loaded", "power_of_two", "shared_queue"]),
    split=st.sampled_from([None, "prefill", "decode"]),  # who sends first tokens
    startup_s=st.sampled_from([0.0, 0.3]),
)
def test_no_request_is_lost_however_pools_grow_and_shrink(
    data: st.DataObject,
    metric: Any,
    router: str,
    split: FirstToken | None,
    startup_s: float,
) -> None:
    server = make_instance(
        FormulaTimes(1e-3, 0.01, 1e-4, 1e-6, caps=(16, 64)),
        capacity=data.draw(st.sampled_from([150.0, 10_000.0])),
        max_tokens_per_step=64,
        max_sequences=4,
        nic_bandwidth=1e4,
    )
    if metric is None:
        steps = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
        keys: dict[str, Any] = {"schedule": planned(*((0.3 * i, n) for i, n in enumerate(steps)))}
    else:
        target = data.draw(st.floats(0.1, 0.95))
        keys = {"metric": metric, "target": target, "maximum": 4, "window_s": 0.2, "cooldown_s": 0.3}
    begins = data.draw(st.integers(1, 4))
    slo = Slo(ttft_s=0.2, tpot_s=0.02)
    if split:
        spec = disaggregated(
            server,
            server,
            (4, 4),
            router=router,
            transfer_bytes=lambda tokens: 20.0 * tokens,
            transfer=QUICK,
            first_token=split,
        )
        spec = scaled(spec, begins, startup_s, slo, **keys)
        spec = replace(spec, decode=(replace(spec.entry[0], pool="decode"),))
    else:
        spec = scaled(colocated(server, 4, router), begins, startup_s, slo, **keys)
    count = data.draw(st.integers(1, 60))
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    prompts, outputs = rng.integers(1, 60, count).tolist(), rng.integers(1, 40, count).tolist()
    arrivals = np.cumsum(rng.exponential(0.05, count))
    result = play(spec, prompts, outputs, arrivals)
    summary = result.summary().to_json()
    assert summary["requests"]["finished"] == count
    assert summary["retries"] == 0
    for pool in spec.groups:
        log = result.run.sizes[pool.name]
        assert all(1 <= moment.allocated <= 4 and moment.serving <= moment.allocated for moment in log)
        assert summary["lifecycle"][pool.name]["gpu_hours"] <= 4 * result.run.end.time_s / 3600 * (1 + 1e-9)
    json.dumps(summary, allow_nan=False)
    assert play(spec, prompts, outputs, arrivals).requests.equals(result.requests)

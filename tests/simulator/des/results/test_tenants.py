"""Several tenants on one cluster: priorities against Cobham's formula, and what is kept apart in the results."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.clusters import FormulaTimes, colocated, disaggregated, make_instance, play, serve

from simulator.des.primitives.queues import PriorityQueue
from simulator.des.replicate import estimate
from simulator.des.simulate import simulate
from simulator.des.workload.requests import Requests
from simulator.scenario import ScenarioError, Slo, parse_scenario

TOKEN_S = 1e-4
MEAN_TOKENS = 5000  # 0.5 s
REQUESTS = 6000


def stream(rng: np.random.Generator, rate: float, priority: int, tenant: str) -> Requests:
    count = round(REQUESTS * rate)
    return Requests(
        np.maximum(1, np.rint(rng.exponential(MEAN_TOKENS, count))).astype(np.int64),
        np.ones(count, dtype=np.int64),
        np.cumsum(rng.exponential(1 / rate, count)),
        tenant=tenant,
        priority=priority,
    )


def test_non_preemptive_priorities_wait_as_cobham_says() -> None:
    """M/M/1 with three classes: W_k = R / ((1 - s_{k-1}) (1 - s_k)), s_k the load of classes 1 to k."""
    rates = {"high": 0.4, "middle": 0.6, "low": 0.7}
    service_s = TOKEN_S * MEAN_TOKENS
    residual_s = sum(rates.values()) * service_s**2
    expected, above = {}, 0.0
    for name, rate in rates.items():
        upto = above + rate * service_s
        expected[name] = residual_s / ((1 - above) * (1 - upto))
        above = upto
    spec = colocated(
        make_instance(FormulaTimes(per_prompt_token_s=TOKEN_S), max_sequences=1, max_tokens_per_step=10**9)
    )
    waits: dict[str, list[float]] = {name: [] for name in rates}
    for seed in np.random.SeedSequence(3).spawn(12):
        rng = np.random.default_rng(seed)
        streams = [stream(rng, rate, -k, name) for k, (name, rate) in enumerate(rates.items())]
        result = serve(spec, streams, warmup=800)
        table = result.requests[result.measured]
        for name, mean in table.groupby("tenant", observed=True)["queue_s"].mean().items():
            waits[str(name)].append(mean)
    for name, theory in expected.items():
        found = estimate(waits[name], 0.999)
        assert abs(found.mean - theory) < found.half_width, name
        assert found.half_width < 0.35 * theory
    assert expected["low"] > 5 * expected["high"]


@settings(max_examples=100)
@given(st.lists(st.one_of(st.integers(0, 3), st.none()), max_size=60))
def test_the_queue_equals_a_sorted_list(actions: list[int | None]) -> None:
    """A number joins with that priority; None takes the next one."""
    queue: PriorityQueue[tuple[int, int]] = PriorityQueue(lambda item: item[1])
    plain: list[tuple[int, int]] = []
    for number, priority in enumerate(actions):
        if priority is not None:
            queue.append((number, priority))
            plain.append((number, priority))
            plain.sort(key=lambda item: (-item[1], item[0]))
        elif plain:
            assert queue.popleft() == plain.pop(0)
        assert list(queue) == [queue[i] for i in range(len(queue))] == plain
        assert len(queue) == len(plain)


@settings(max_examples=40)
@given(
    counts=st.tuples(st.integers(1, 25), st.integers(1, 25), st.integers(0, 25)),
    priorities=st.tuples(st.integers(-1, 1), st.integers(-1, 1)),
    headroom=st.sampled_from([0.0, 0.3, 0.8]),
    capacity=st.sampled_from([120.0, 300.0, 1e4]),
    batching=st.sampled_from(["chunked", "prefill_first", "inflight"]),
    ranks=st.integers(1, 2),
    split=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_every_tenants_requests_end_once(
    counts: tuple[int, int, int],
    priorities: tuple[int, int],
    headroom: float,
    capacity: float,
    batching: str,
    ranks: int,
    split: bool,
    seed: int,
) -> None:
    """An open loop, a closed loop and offline work; the run itself refuses lost requests and KV left behind."""
    rng = np.random.default_rng(seed)
    ways: list[dict[str, Any]] = [
        {"arrival_s": np.cumsum(rng.exponential(0.05, counts[0])), "priority": priorities[0]},
        {"concurrency": 3, "priority": priorities[1]},
        {"headroom": headroom},
    ]
    streams = [
        Requests(rng.integers(1, 130, count), rng.integers(1, 40, count), tenant=name, **way)
        for name, count, way in zip(("a", "b", "c"), counts, ways, strict=True)
        if count
    ]
    server = make_instance(
        FormulaTimes(1e-3, 0.01, 1e-4),
        capacity,
        max_tokens_per_step=64,
        max_sequences=6,
        batching=batching,
        ranks=ranks,
    )
    spec = disaggregated(server, server, counts=(2, 2)) if split else colocated(server, 2)
    result = serve(spec, streams, slo=Slo(ttft_s=0.2, tpot_s=0.02))
    summary = result.summary().to_json()
    assert set(summary["tenants"]) == {stream.tenant for stream in streams}
    for part in ("total", "finished", "rejected", "failed"):
        assert summary["requests"][part] == sum(t["requests"][part] for t in summary["tenants"].values())
    for part in ("output_tok_s", "requests_per_s", "goodput_requests_per_s"):
        assert summary["throughput"][part] == pytest.approx(
            sum(t["throughput"][part] for t in summary["tenants"].values())
        )
    good = sum(share.good[share.measured].sum() for share in result.shares)
    assert summary["slo"]["attainment"] == pytest.approx(good / result.measured.sum())
    assert serve(spec, streams, slo=Slo(ttft_s=0.2, tpot_s=0.02)).summary().to_json() == summary


def test_tenants_of_equal_priority_are_served_as_one_stream() -> None:
    rng = np.random.default_rng(1)
    prompts, outputs, arrivals = rng.integers(1, 900, 80), rng.integers(1, 60, 80), np.cumsum(rng.exponential(0.1, 80))
    spec = colocated(make_instance(FormulaTimes()), 2)
    halves = [Requests(prompts[part], outputs[part], arrivals[part], tenant=str(k)) for k, part in enumerate(
        (slice(0, 80, 2), slice(1, 80, 2))
    )]  # fmt: skip
    whole = play(spec, prompts, outputs, arrivals).requests
    parts = serve(spec, halves).requests.sort_values("arrival_s").drop(columns="tenant").reset_index(drop=True)
    assert parts.equals(whole)


TENANTS = [
    {
        "name": "chat",
        "priority": 1,
        "workload": {"kind": "open_loop", "rate": 2.0, "duration_s": 30.0, "prompt": 500, "output": 60},
        "slo": {"ttft_s": 1.0, "tpot_s": 0.1},
    },
    {
        "name": "agents",
        "workload": {"kind": "open_loop", "rate": 1.0, "duration_s": 30.0, "prompt": 3000, "output": 90},
        "slo": {"ttft_s": 1e-4},
    },
]
DEPLOYMENT = {"colocated": {"gpu": "h200_sxm", "tp": 8, "ep": 8}}


def test_each_tenant_is_held_to_its_own_limits() -> None:
    data = {"model": "qwen3-235b-a22b", "tenants": TENANTS, "deployment": DEPLOYMENT}
    summary = simulate(parse_scenario(data)).summary().to_json()
    chat, agents = summary["tenants"]["chat"], summary["tenants"]["agents"]
    assert chat["slo"]["attainment"] == 1.0
    assert agents["slo"]["attainment"] == 0.0
    assert not summary["slo"]["meets_slo"]
    assert 40 <= chat["requests"]["total"] <= 80
    assert set(chat["metrics"]) == {"ttft_s", "tpot_s", "e2e_s", "tok_s_per_user"}
    assert chat["throughput"]["requests_per_s"] == pytest.approx(2.0, rel=0.4)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"workload": TENANTS[0]["workload"]}, r"either \[workload\] or \[\[tenants\]\]"),
        ({"tenants": [TENANTS[0], TENANTS[0]]}, "two tenants are called 'chat'"),
        ({"tenants": [TENANTS[0] | {"name": ""}]}, "give it a name"),
        ({"tenants": [TENANTS[0] | {"priority": 1.5}]}, "priority=1.5"),
        (
            {"tenants": [
                {"name": n, "workload": {"kind": "offline", "requests": 2, "prompt": 1, "output": 1}} for n in "ab"
            ]},
            "more than one tenant is offline",
        ),
    ],
)  # fmt: skip
def test_wrong_tenants_are_refused_in_one_sentence(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ScenarioError, match=told):
        parse_scenario({"model": "qwen3-235b-a22b", "tenants": TENANTS} | changes)


def test_no_traffic_is_said() -> None:
    with pytest.raises(ScenarioError, match="no traffic"):
        simulate(parse_scenario({"model": "qwen3-235b-a22b", "deployment": DEPLOYMENT}))

"""Each mechanism against the discrete-event model on a small cluster. Tolerances: throughput, TPOT, TTFT (medians)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

UNIFORM = {"kind": "uniform", "low": 1600, "high": 2000}
ANSWERS = {"kind": "uniform", "low": 160, "high": 200}
SPREAD = {"kind": "lognormal", "median": 1500.0, "sigma": 0.6, "maximum": 15_000}
POLICIES = ("chunked", "prefill_first", "inflight")
Judge = Callable[..., Any]


def colocated(**keys: Any) -> dict[str, Any]:
    return {"colocated": {"gpu": "h200", "tp": 2, **keys}}


SENDERS = ("prefill", "decode")  # of first tokens


def apart(prefill: dict[str, Any] | None = None, decode: dict[str, Any] | None = None, **keys: Any) -> dict[str, Any]:
    pool = {"gpu": "h200", "tp": 2}
    return {"prefill": pool | (prefill or {}), "decode": pool | (decode or {}), **keys}


@pytest.mark.parametrize("policy", POLICIES)
def test_one_client_has_the_instance_to_itself(both: Judge, policy: str) -> None:
    assert both(colocated(batching=policy), UNIFORM, ANSWERS, clients=1, requests=60).agree(0.02, 0.01, 0.01)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("clients", [8, 64])
def test_colocated_loops_under_each_policy(both: Judge, policy: str, clients: int) -> None:
    assert both(colocated(batching=policy), UNIFORM, ANSWERS, clients=clients).agree(0.05, 0.06, 0.15)


@pytest.mark.parametrize("policy", POLICIES)
def test_more_clients_than_sequences_wait_for_a_place(both: Judge, policy: str) -> None:
    found = both(colocated(batching=policy, max_sequences=16), UNIFORM, ANSWERS, clients=64)
    assert found.steady.saturated.all()
    assert found.agree(0.05, 0.05, 0.06)


def test_prompts_longer_than_the_budget(both: Judge) -> None:
    assert both(colocated(max_tokens_per_step=512), UNIFORM, ANSWERS, clients=16).agree(0.04, 0.04, 0.2)


def test_lengths_that_vary_much(both: Judge) -> None:
    assert both(colocated(), SPREAD, {"kind": "exponential", "mean": 200.0}, clients=32).agree(0.05, 0.06, 0.1)


@pytest.mark.parametrize("policy", ["chunked", "prefill_first"])
def test_data_parallel_ranks_wait_for_the_busiest(both: Judge, policy: str) -> None:
    pool = {"colocated": {"gpu": "b200", "dp": 4, "ep": 4, "batching": policy}}
    assert both(pool, UNIFORM, ANSWERS, clients=64, model="deepseek-v4-flash").agree(0.06, 0.06, 0.15)


def test_drafts_emit_several_tokens_a_step(both: Judge) -> None:
    pool = {"colocated": {"gpu": "b200", "tp": 4, "draft_tokens": 3, "acceptance_length": 2.5}}
    assert both(pool, UNIFORM, ANSWERS, clients=16, model="deepseek-v4-flash").agree(0.05, 0.05, 0.1)


@pytest.mark.parametrize("sender", SENDERS)
def test_apart_decode_is_not_held_up(both: Judge, sender: str) -> None:
    assert both(apart(first_token=sender), UNIFORM, ANSWERS, clients=16).agree(0.03, 0.03, 0.1)


def test_apart_and_bound_by_prefill(both: Judge) -> None:
    found = both(apart(decode={"instances": 4}), UNIFORM, {"kind": "uniform", "low": 40, "high": 50}, clients=64)
    assert found.steady.limit.item() == 1
    assert found.agree(0.03, 0.06, 0.06)


@pytest.mark.parametrize("sender", SENDERS)
def test_apart_and_short_of_sequences_to_decode(both: Judge, sender: str) -> None:
    """Prompts are done, and wait with their KV for a place on the decode side: the client sees it in TPOT, or in TTFT
    where decode sends the first token."""
    pools = apart(prefill={"instances": 4}, decode={"max_sequences": 16}, first_token=sender)
    found = both(pools, UNIFORM, ANSWERS, clients=64)
    assert found.steady.limit.item() == 3
    assert found.agree(0.03, 0.05, 0.15)


@pytest.mark.parametrize("sender", SENDERS)
def test_apart_and_short_of_room_to_decode(both: Judge, sender: str) -> None:
    long = {"kind": "uniform", "low": 24_000, "high": 30_000}
    pools = apart(prefill={"instances": 4, "tp": 1}, decode={"tp": 1, "max_sequences": 512}, first_token=sender)
    found = both(pools, long, {"kind": "uniform", "low": 800, "high": 1000}, clients=64, requests=300)
    assert found.steady.limit.item() == 2
    assert found.agree(0.06, 0.08, 0.2)


@pytest.mark.parametrize("sender", SENDERS)
@pytest.mark.parametrize("overlap", ["none", "layerwise"])
def test_hand_over_takes_its_time(both: Judge, overlap: str, sender: str) -> None:
    pools = apart(transfer={"overlap": overlap, "efficiency": 0.01}, first_token=sender)
    assert both(pools, UNIFORM, 40, clients=1, requests=100).agree(0.02, 0.02, 0.02)


@pytest.mark.parametrize("sender", SENDERS)
def test_hand_overs_share_links(both: Judge, sender: str) -> None:
    """Each hand-over waits as long as the mean one, so where it is in TTFT the mean agrees rather than the median."""
    pools = apart(transfer={"efficiency": 0.01}, first_token=sender)
    found = both(pools, UNIFORM, ANSWERS, load_share=0.5, requests=3000)
    assert found.agree(0.05, 0.1, 0.1 if sender == "prefill" else 0.2)
    assert abs(found.error("mean_ttft")) < 0.05


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("policy", POLICIES)
def test_open_loops_under_each_policy(both: Judge, policy: str, share: float) -> None:
    found = both(colocated(batching=policy), UNIFORM, ANSWERS, load_share=share, requests=3000)
    assert found.agree(0.05, 0.12 if share == 0.8 else 0.06, 0.1)


@pytest.mark.parametrize("sender", SENDERS)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_open_loops_apart(both: Judge, share: float, sender: str) -> None:
    pools = apart(prefill={"instances": 2}, decode={"instances": 2}, first_token=sender)
    assert both(pools, SPREAD, ANSWERS, load_share=share, requests=3000).agree(0.05, 0.05, 0.12)


@pytest.mark.parametrize("clients", [16, 128])
@pytest.mark.parametrize("deployment", [colocated(), colocated(batching="prefill_first"), apart()])
def test_the_first_wave_is_in_the_mean(both: Judge, deployment: dict[str, Any], clients: int) -> None:
    """Ten requests of each client, all at once at the start, none left out: as public benchmarks play it."""
    found = both(deployment, UNIFORM, ANSWERS, clients=clients, requests=10 * clients, warm_up=0.0)
    assert abs(found.error("mean_ttft")) < 0.2


def test_who_sends_the_first_token_moves_time_between_ttft_and_tpot(both: Judge) -> None:
    """Requests take as long either way; TPOT is that of decode steps alone where decode sends it."""
    pools = apart(prefill={"instances": 4}, decode={"max_sequences": 16})
    prefill, decode = (both(pools | {"first_token": sender}, UNIFORM, ANSWERS, clients=64) for sender in SENDERS)
    assert decode.steady.rate.item() == pytest.approx(prefill.steady.rate.item(), rel=0.02)
    assert decode.steady.tpot_s.item() < prefill.steady.tpot_s.item() / 2
    further = prefill.cluster.demand.further
    whole = [found.steady.mean_ttft_s + found.steady.mean_tpot_s * further for found in (prefill, decode)]
    assert whole[0].item() == pytest.approx(whole[1].item(), rel=0.03)


def test_more_than_is_sustained_takes_for_ever(both: Judge) -> None:
    found = both(colocated(), UNIFORM, ANSWERS, load_share=1.2, requests=50)
    assert found.steady.ttft_s.item() == float("inf")
    assert found.steady.saturated.all()

"""Offline work fills gaps: it yields to all other requests, leaves its headroom free and ends in the end."""

from dataclasses import replace

import numpy as np
import pytest
from support.clusters import FormulaTimes, colocated, make_instance, serve

from simulator.des.cluster.cluster import Cluster
from simulator.des.cluster.recorder import Recorder
from simulator.des.simulate import simulate
from simulator.des.workload.requests import Requests
from simulator.scenario import Faults, PlannedFault, parse_scenario

TOKEN_S = 1e-4


def online(arrivals: list[float], prompt: int, output: int) -> Requests:
    count = len(arrivals)
    return Requests(np.full(count, prompt), np.full(count, output), np.array(arrivals), tenant="online")


def offline(count: int, prompt: int, output: int, headroom: float) -> Requests:
    return Requests(np.full(count, prompt), np.full(count, output), headroom=headroom, tenant="offline")


def test_it_begins_only_when_no_other_prompt_waits() -> None:
    """Of each offline prompt: no other one that the same instance had taken was waiting as it was begun."""
    spec = colocated(make_instance(FormulaTimes(), max_sequences=3, max_tokens_per_step=100), 2)
    arrivals = np.cumsum(np.random.default_rng(4).exponential(0.01, 60)).tolist()
    table = serve(spec, [online(arrivals, 90, 5), offline(40, 50, 5, 0.0)]).requests
    table["begun_s"] = table["arrival_s"] + table["queue_s"]
    others = table[table["tenant"] == "online"]
    assert (others["queue_s"] > 0.05).any()
    for _, filler in table[table["tenant"] == "offline"].iterrows():
        here = others[others["prefill_instance"] == filler["prefill_instance"]]
        assert not ((here["arrival_s"] < filler["begun_s"]) & (filler["begun_s"] < here["begun_s"])).any()


def test_an_online_prompt_waits_for_one_step_at_most() -> None:
    """Steps of at most 1000 tokens of 0.1 ms and 10 ms of decode, half of the tokens kept free.

    An online prompt of 500 tokens alone takes 50 ms. With offline work it finds a step of at most 500 tokens and
    decode under way, then takes its own with decode beside.
    """
    server = make_instance(FormulaTimes(per_prompt_token_s=TOKEN_S), max_tokens_per_step=1000, max_sequences=40)
    arrivals = np.cumsum(np.random.default_rng(0).uniform(0.8, 1.2, 100)).tolist()
    streams = [online(arrivals, 500, 20), offline(300, 2000, 100, 0.5)]
    bare = serve(colocated(server), streams[:1])
    filled = serve(colocated(server), streams)
    assert bare.ttft_s == pytest.approx(np.full(100, 0.05))
    seen = filled.shares[0]
    assert seen.values["ttft_s"].max() <= 0.05 + 0.01 + 0.05 + 0.01 + 1e-9
    # a step of decode has at most 500 offline prompt tokens beside it
    assert seen.values["tpot_s"].max() <= 0.01 + 0.05 + 1e-9
    assert filled.shares[1].finished.all()
    offline_rate = filled.tenants()["offline"].throughput.output_tok_s
    assert offline_rate > 5 * filled.tenants()["online"].throughput.output_tok_s


@pytest.mark.parametrize("headroom", [0.0, 0.25, 0.9])
def test_it_leaves_its_headroom_free(headroom: float) -> None:
    """Nothing else comes: sequences, tokens of a step and KV as admitted stay below the share."""
    server = make_instance(FormulaTimes(), 1e4, max_sequences=20, max_tokens_per_step=400)
    recorder = Recorder()
    work = offline(60, 300, 30, headroom)
    Cluster(colocated(server), [work], np.random.default_rng(0), recorder=recorder).run()
    allowed = 1 - headroom
    assert max(step.running for step in recorder.steps) <= max(1, allowed * 20) + 1e-9
    assert max(step.prompt_tokens for step in recorder.steps) <= allowed * 400 + 1
    grown = 300 + 30  # each sequence grows after it was admitted
    assert max(step.kv_bytes for step in recorder.steps) <= max(grown, allowed * 1e4 * grown / 300)
    assert max(step.running for step in recorder.steps) > 0.5 * allowed * 20


def test_it_is_preempted_first() -> None:
    """KV grows beyond the room: what joined before the online requests is dropped for them, and done later."""
    server = make_instance(FormulaTimes(), capacity=1000.0, max_sequences=20)
    streams = [online([1.0, 1.0], 200, 200), offline(4, 100, 400, 0.0)]
    table = serve(colocated(server), streams).requests
    assert table["preemptions"][table["tenant"] == "online"].sum() == 0
    assert table["preemptions"][table["tenant"] == "offline"].sum() > 0
    assert (table["status"] == "finished").all()


def test_what_a_dead_instance_had_set_aside_is_sent_again() -> None:
    """As above; at 2.5 s, when the online requests have made the offline ones go, all that was begun is lost."""
    server = make_instance(FormulaTimes(), capacity=1000.0, max_sequences=20)
    fault = PlannedFault(kind="instance", pool="colocated", at_s=2.5, duration_s=0.1)
    spec = replace(colocated(server), faults=Faults(events=(fault,)))
    result = serve(spec, [online([1.0, 1.0], 200, 200), offline(4, 100, 400, 0.0)])
    assert result.run.log.retries == [1] * 6
    assert result.finished.all()
    assert any(result.run.log.preemptions[2:])


@pytest.mark.parametrize("split", [False, True])
def test_both_throughputs_are_reported_on_a_real_deployment(split: bool) -> None:
    pool = {"gpu": "h200_sxm", "tp": 4, "ep": 4}
    data = {
        "model": "qwen3-235b-a22b",
        "tenants": [
            {"name": "chat", "slo": {"ttft_s": 2.0, "tpot_s": 0.1},
             "workload": {"kind": "open_loop", "rate": 1.0, "requests": 100, "prompt": 800, "output": 100}},
            {"name": "batch",
             "workload": {"kind": "offline", "requests": 200, "headroom": 0.5, "prompt": 2000, "output": 200}},
        ],
        "deployment": {"prefill": pool, "decode": pool} if split else {"colocated": pool},
    }  # fmt: skip
    filled = simulate(parse_scenario(data)).summary().to_json()
    bare = simulate(parse_scenario(data | {"tenants": data["tenants"][:1]})).summary().to_json()
    batch, chat = filled["tenants"]["batch"], filled["tenants"]["chat"]
    assert batch["requests"]["finished"] == 200
    assert batch["offline"]
    assert batch["throughput"]["output_tok_s"] > 0
    assert chat["slo"]["attainment"] >= 0.98
    assert chat["metrics"]["ttft_s"]["p50"] < bare["metrics"]["ttft_s"]["p50"] + 0.5


def test_offline_work_alone_runs() -> None:
    data = {
        "model": "qwen3-235b-a22b",
        "workload": {"kind": "offline", "requests": 20, "prompt": 500, "output": 50},
        "deployment": {"colocated": {"gpu": "h200_sxm", "tp": 4, "ep": 4}},
    }
    summary = simulate(parse_scenario(data)).summary().to_json()
    assert summary["requests"]["finished"] == 20
    assert summary["throughput"]["requests_per_s"] > 0

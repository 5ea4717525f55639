"""Sessions: worked by hand, as a closed network, and through the prefix cache."""

from math import perm
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.clusters import FormulaTimes, colocated, disaggregated, make_instance, serve

from simulator.des.instance.prefix_cache import Tier
from simulator.des.replicate import estimate
from simulator.des.simulate import simulate
from simulator.des.workload.requests import Requests, make_requests
from simulator.scenario import Lengths, ScenarioError, Sessions, SharedPrefix, parse_scenario

BLOCK = 512
TOKEN_S = 1e-4


def drawn(seed: int = 0, **keys: Any) -> Requests:
    workload = Sessions.model_validate({"prompt": 100, "output": 11} | keys)
    return make_requests(workload, np.random.SeedSequence(seed))


def test_a_session_worked_by_hand() -> None:
    """Prompts of 100, 211 and 322 tokens at 1 ms, ten steps of 10 ms each, 2 s of thought before every turn."""
    requests = drawn(users=1, sessions=1, turns=3, think_s=2.0)
    table = serve(colocated(make_instance(FormulaTimes(per_prompt_token_s=1e-3))), [requests]).requests
    assert table["prompt_tokens"].tolist() == [100, 211, 322]
    assert table["arrival_s"].tolist() == pytest.approx([2.0, 4.2, 6.511])
    assert table["ttft_s"].tolist() == pytest.approx([0.1, 0.211, 0.322])
    assert table["finish_s"].tolist() == pytest.approx([2.2, 4.511, 6.933])


def test_sessions_of_an_open_stream_begin_at_their_times() -> None:
    requests = drawn(rate=0.5, sessions=400, turns={"kind": "uniform", "low": 1, "high": 4}, think_s=1.0)
    assert requests.sessions is not None
    assert requests.sessions.begin_s is not None
    table = serve(colocated(make_instance(FormulaTimes())), [requests]).requests
    firsts = requests.sessions.first[:-1]
    assert table["arrival_s"][firsts].tolist() == pytest.approx(requests.sessions.begin_s)
    assert np.mean(np.diff(requests.sessions.begin_s)) == pytest.approx(2.0, rel=0.15)
    later = np.setdiff1d(np.arange(len(table)), firsts)
    waited = table["arrival_s"].to_numpy()[later] - table["finish_s"].to_numpy()[later - 1]
    assert waited == pytest.approx(np.full(len(later), 1.0))


@pytest.mark.parametrize(("users", "rate"), [(5, 0.5), (10, 1.0), (20, 1.0)])
def test_throughput_is_users_over_response_and_think_time(users: int, rate: float) -> None:
    """Answers of 1 s one at a time, 9 s of thought: X = N / (R + Z), at most one a second."""
    requests = drawn(users=users, sessions=40 * users, turns=1, think_s=9.0, prompt=10_000, output=1)
    server = make_instance(FormulaTimes(per_prompt_token_s=TOKEN_S), max_sequences=1, max_tokens_per_step=10**9)
    result = serve(colocated(server), [requests], warmup=2 * users)
    assert result.throughput().requests_per_s == pytest.approx(rate, rel=0.02)
    response_s = result.metrics()["e2e_s"].mean
    assert response_s is not None
    assert users / (response_s + 9.0) == pytest.approx(rate, rel=0.02)


def test_a_machine_with_operators_works_as_the_repairman_model_says() -> None:
    """M/M/1//N: busy share 1 - 1 / sum over n of N! / (N - n)! (S / Z)^n; and all users' time is thought or response.

    The last N answers end the users' time, for nothing is left to ask after them.
    """
    users, service_s, think_s = 6, 1.0, 5.0
    weights = [perm(users, n) * (service_s / think_s) ** n for n in range(users + 1)]
    theory = (1 - 1 / sum(weights)) / service_s
    server = make_instance(FormulaTimes(per_prompt_token_s=TOKEN_S), max_sequences=1, max_tokens_per_step=10**9)
    rates = []
    for seed in range(10):
        requests = drawn(
            seed,
            users=users,
            sessions=2500,
            turns=1,
            think_s={"kind": "exponential", "mean": think_s},
            prompt={"kind": "exponential", "mean": service_s / TOKEN_S},
            output=1,
        )
        result = serve(colocated(server), [requests], warmup=200)
        assert requests.sessions is not None
        spent = sum(requests.sessions.think_s) + result.e2e_s.sum()
        assert spent == pytest.approx(np.sort(result.finish_s)[-users:].sum())
        rates.append(result.throughput().requests_per_s)
    found = estimate(rates, 0.999)
    assert abs(found.mean - theory) < found.half_width < 0.05 * theory


def test_turns_find_what_was_said_before_in_an_endless_cache() -> None:
    """Two sessions of three turns behind one system prompt of 1300 tokens, 700 new and 301 answered each.

    Prompts of 2000, 3001 and 4002 tokens. Where answers are decoded, the text is kept up to the last whole block
    before the last token: 2300 -> 4 blocks, 3301 -> 6. A prefill instance keeps its prompts alone: 3 and 5 blocks.
    The second session's first turn finds the two whole blocks of the system prompt.
    """
    requests = drawn(
        users=1, sessions=2, turns=3, think_s=1.0, prompt=700, output=301, system_prompt={"tokens": 1300, "groups": 1}
    )
    server = make_instance(FormulaTimes(), cache_tiers=(Tier(None),))
    for spec, hits in (
        (colocated(server), [0, 4, 6, 2, 4, 6]),
        (disaggregated(server, make_instance(FormulaTimes())), [0, 3, 5, 2, 3, 5]),
    ):
        table = serve(spec, [requests]).requests
        assert table["prompt_tokens"].tolist() == [2000, 3001, 4002] * 2
        assert table["cached_tokens"].tolist() == [BLOCK * hit for hit in hits]


@pytest.mark.parametrize(("router", "hits"), [("session_affinity", [0, 4, 8]), ("round_robin", [0, 0, 4])])
def test_affinity_brings_a_session_back_to_its_cache(router: str, hits: list[int]) -> None:
    """Texts of 2301 and 4602 tokens. By turns over two instances, a turn finds only the text of the last but one."""
    requests = drawn(users=1, sessions=1, turns=3, think_s=1.0, prompt=2000, output=301)
    table = serve(colocated(make_instance(FormulaTimes(), cache_tiers=(Tier(None),)), 2, router), [requests]).requests
    assert table["cached_tokens"].tolist() == [BLOCK * hit for hit in hits]


@settings(max_examples=60)
@given(
    turns=st.integers(1, 6),
    sessions=st.integers(1, 8),
    system=st.sampled_from([0, 300, 1300]),
    limit=st.sampled_from([None, 4000]),
    seed=st.integers(0, 99),
)
def test_a_conversation_only_grows(turns: int, sessions: int, system: int, limit: int | None, seed: int) -> None:
    requests = drawn(
        seed,
        rate=1.0,
        sessions=sessions,
        turns=Lengths(kind="uniform", low=1, high=turns),
        prompt={"kind": "uniform", "low": 1, "high": 900},
        output={"kind": "uniform", "low": 1, "high": 900},
        system_prompt=SharedPrefix(tokens=system, groups=2) if system else None,
        max_context=limit,
    )
    plan, blocks = requests.sessions, requests.blocks
    assert plan is not None
    assert blocks is not None
    prompts, outputs = requests.prompt_tokens, requests.output_tokens
    assert [len(chain) for chain in blocks] == [tokens // BLOCK for tokens in prompts]
    owners: dict[int, set[int]] = {}
    for session, (first, end) in enumerate(zip(plan.first, plan.first[1:], strict=False)):
        assert end > first
        assert prompts[first] > system
        for i in range(first, end):
            assert plan.kept_blocks[i][: len(blocks[i])] == blocks[i]
            assert len(plan.kept_blocks[i]) == (prompts[i] + outputs[i] - 1) // BLOCK
            if i > first:
                assert prompts[i] > prompts[i - 1] + outputs[i - 1]
                assert blocks[i][: len(plan.kept_blocks[i - 1])] == plan.kept_blocks[i - 1]
            for block in plan.kept_blocks[i][system // BLOCK :]:
                owners.setdefault(block, set()).add(session)
    assert all(len(sharing) == 1 for sharing in owners.values())
    if limit is not None:
        assert (prompts + outputs <= limit).all()


def test_sessions_run_on_a_real_deployment_with_hits() -> None:
    data = {
        "model": "deepseek-v4-flash",
        "workload": {"kind": "sessions", "rate": 0.5, "sessions": 30, "turns": 4, "think_s": 5, "prompt": 1500,
                     "output": 100},
        "deployment": {
            "prefill": {"gpu": "h200_sxm", "dp": 4, "ep": 4, "instances": 2},
            "decode": {"gpu": "h200_sxm", "dp": 4, "ep": 4},
            "router": "session_affinity",
            "prefix_cache": {},
        },
    }  # fmt: skip
    result = simulate(parse_scenario(data))
    table = result.requests
    # Prompts of 1500, 3100, 4700 and 6300 tokens, all of the last prompt's whole blocks found again.
    assert table["cached_tokens"].tolist() == [0, 2 * BLOCK, 6 * BLOCK, 9 * BLOCK] * 30
    assert result.summary().to_json()["requests"]["finished"] == 120


@pytest.mark.parametrize(
    ("workload", "router", "told"),
    [
        ({"kind": "sessions", "prompt": 1, "output": 1}, "least_loaded", "either rate or users"),
        ({"kind": "sessions", "prompt": 1, "output": 1, "users": 0}, "least_loaded", "workload.users=0"),
        ({"kind": "sessions", "prompt": 9, "output": 1, "rate": 1.0, "sessions": 0}, "least_loaded", "sessions=0"),
        ({"kind": "sessions", "prompt": 9, "output": 1, "rate": 1.0, "max_context": 5}, "least_loaded", "no turn"),
        ({"kind": "sessions", "prompt": 9, "output": 1, "rate": 1.0, "turns": 10**6}, "least_loaded",
         "sessions=500 of these turns come to 500,000,000 requests, more than 100,000,000"),
        ({"kind": "sessions", "prompt": 9, "output": 1, "rate": 1.0, "think_s": {"kind": "lognormal"}}, "least_loaded",
         "lognormal seconds need median and sigma"),
        ({"kind": "open_loop", "prompt": 9, "output": 1, "rate": 1.0}, "session_affinity", "no sessions"),
    ],
)  # fmt: skip
def test_what_makes_no_session_is_refused(workload: dict[str, Any], router: str, told: str) -> None:
    data = {
        "model": "qwen3-235b-a22b",
        "workload": workload,
        "deployment": {"colocated": {"gpu": "h200_sxm", "tp": 8}, "router": router},
    }
    with pytest.raises(ScenarioError, match=told):
        simulate(parse_scenario(data))

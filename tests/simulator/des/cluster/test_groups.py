"""Pools of several unlike groups of instances."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.clusters import FormulaTimes, disaggregated, make_instance, play, serve

from hw_profiles.catalog import load
from simulator.des.cluster.power import PowerDraw
from simulator.des.cluster.predicted_speed import predicted_speed
from simulator.des.cluster.recorder import Recorder
from simulator.des.cluster.spec import ClusterSpec, GroupSpec
from simulator.des.replicate import estimate
from simulator.des.results.measured import GroupPrice
from simulator.des.results.result import SimulationResult
from simulator.des.results.series import series
from simulator.des.results.timeline import write_timeline
from simulator.des.simulate import simulate
from simulator.des.workload.requests import Requests
from simulator.model.presets import load_model
from simulator.scenario import (
    Autoscale,
    Faults,
    PlannedFault,
    ScenarioError,
    ScheduledCount,
    Slo,
    Transfer,
    load_scenario,
    parse_scenario,
)
from simulator.uncertainty.bands import bands_of
from simulator.uncertainty.spreads import uncertainty_of

EXAMPLE = Path(__file__).resolve().parents[4] / "docs" / "scenarios" / "mixed_decode.toml"
PLAIN = Transfer(efficiency=1.0, handshake_s=0.0, half_rate_bytes=0.0)
TOKEN_S = 1e-4
Build = Callable[..., Any]


def cut(groups: tuple[GroupSpec, ...], sizes: list[int]) -> tuple[GroupSpec, ...]:
    """One group as several with equal settings."""
    assert sum(sizes) == groups[0].count
    return tuple(replace(groups[0], count=size, label=f"part {i}") for i, size in enumerate(sizes))


@given(
    router=st.sampled_from(["round_robin", "least_loaded", "power_of_two", "shared_queue"]),
    decode_router=st.sampled_from([None, "kv_aware"]),
    sizes=st.sampled_from([[4], [1, 3], [2, 1, 1]]),
    rails=st.sampled_from([{}, {"oversubscription": 4.0}, {"oversubscription": 4.0, "rails": 3}]),
    breaks=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_equal_groups_are_one_group_of_their_sum(
    router: str,
    decode_router: str | None,
    sizes: list[int],
    rails: dict[str, Any],
    breaks: bool,
    seed: int,
) -> None:
    server = make_instance(FormulaTimes(1e-3, 0.01, 1e-4), capacity=500.0, max_sequences=4, nic_bandwidth=1e4)
    spec = disaggregated(
        server,
        server,
        (4, 4),
        router=router,
        decode_router=decode_router,
        transfer=PLAIN.model_copy(update=rails),
        transfer_bytes=lambda tokens: 20.0 * tokens,
        faults=Faults(instance={"mtbf_s": 2.0, "mttr_s": 0.1}, retry_delay_s=0.0) if breaks else None,
    )
    rng = np.random.default_rng(seed)
    load = rng.integers(1, 200, 40).tolist(), rng.integers(1, 40, 40).tolist(), np.cumsum(rng.exponential(0.05, 40))
    whole = play(spec, *load)
    parts = play(replace(spec, entry=cut(spec.entry, sizes), decode=cut(spec.decode, sizes)), *load)
    assert parts.requests.equals(whole.requests)
    for key in ("metrics", "requests", "retries", "duration_s", "gpus_total"):
        assert parts.summary().to_json()[key] == whole.summary().to_json()[key]
    assert asdict(parts.throughput()) == pytest.approx(asdict(whole.throughput()))


@pytest.mark.parametrize("router", ["least_loaded", "shared_queue", "power_of_two", "kv_aware"])
def test_saturated_servers_share_work_by_their_speed(router: str) -> None:
    """A decode pool whose instances are 1 and 3 fast, both always full: a quarter and three quarters of the tokens."""
    slow, fast = (
        make_instance(FormulaTimes(per_sequence_s=0.003 / speed, decode_base_s=0.0), max_sequences=10, speed=speed)
        for speed in (1.0, 3.0)
    )
    spec = ClusterSpec(
        (GroupSpec("prefill", make_instance(FormulaTimes(per_prompt_token_s=0.0))),),
        (GroupSpec("decode", slow, label="slow"), GroupSpec("decode", fast, label="fast")),
        router="least_loaded" if router == "kv_aware" else router,
        decode_router="kv_aware" if router == "kv_aware" else None,
        transfer=PLAIN,
    )
    result = play(spec, [1] * 2000, [21] * 2000, concurrency=80, warmup=200)
    groups, usage = result.summary().to_json()["groups"], result.utilization()
    assert all(usage[name].busy_fraction > 0.98 for name in ("decode.slow", "decode.fast"))
    assert groups["decode.fast"]["request_share"] == pytest.approx(0.75, abs=0.02)
    assert groups["decode.slow"]["output_tok_s"] == pytest.approx(1000 / 3 * 21 / 20, rel=0.03)


def test_routers_that_compare_delays_keep_unlike_servers_stable_where_turns_do_not() -> None:
    """Service rates of 1 and 3 a second, 3 arrivals a second: by turns the slow one gets 1.5 times what it can do."""
    p99 = {}
    rng = np.random.default_rng(3)
    arrivals = np.cumsum(rng.exponential(1 / 3, 3000))
    for router in ("round_robin", "least_loaded", "power_of_two"):
        groups = tuple(
            GroupSpec(
                "colocated",
                make_instance(FormulaTimes(TOKEN_S / speed), max_sequences=1, speed=speed),
                label=f"{speed}",
            )
            for speed in (1.0, 3.0)
        )
        result = play(ClusterSpec(groups, router=router), [10_000] * 3000, [1] * 3000, arrivals)
        p99[router] = result.summary().to_json()["metrics"]["ttft_s"]["p99"]
    assert p99["round_robin"] > 200
    assert max(p99["least_loaded"], p99["power_of_two"]) < 10


def unlike_servers(rate: float, fast: float, slow: float) -> float:
    """Mean sojourn of M/M/2 with unlike servers and one queue, where one that comes to an empty system is served fast.

    The chain 0, (fast busy), (slow busy), 2, 3, ... solved as it stands; Gumbel, Operations Research 8 (1960).
    """
    most = 400  # requests in the system
    index = {(0, ""): 0, (1, "fast"): 1, (1, "slow"): 2} | {(n, ""): n + 1 for n in range(2, most + 1)}
    flow = np.zeros((len(index), len(index)))

    def move(a: tuple[int, str], b: tuple[int, str], rate: float) -> None:
        flow[index[a], index[b]] += rate
        flow[index[a], index[a]] -= rate

    move((0, ""), (1, "fast"), rate)
    for one, serves, other in (("fast", fast, slow), ("slow", slow, fast)):
        move((1, one), (2, ""), rate)
        move((1, one), (0, ""), serves)
        move((2, ""), (1, one), other)
    for n in range(2, most):
        move((n, ""), (n + 1, ""), rate)
        move((n + 1, ""), (n, ""), fast + slow)
    balance = np.vstack([flow.T, np.ones(len(index))])
    found = np.linalg.lstsq(balance, np.append(np.zeros(len(index)), 1.0), rcond=None)[0]
    return sum(n * found[i] for (n, _), i in index.items()) / rate


def test_two_unlike_servers_at_one_queue_are_the_markov_chain() -> None:
    assert unlike_servers(1.0, 1.0, 1.0) == pytest.approx(1 / (1 - 0.25))  # M/M/2 with rho = 0.5: 1 / (mu (1 - rho^2))

    def sojourn(seed: int) -> float:
        rng = np.random.default_rng(seed)
        tokens = np.maximum(1, np.rint(rng.exponential(10_000, 4000)))
        groups = tuple(
            GroupSpec(
                "colocated",
                make_instance(FormulaTimes(TOKEN_S / speed), max_sequences=1, max_tokens_per_step=10**9),
                label=f"{i}",
            )
            for i, speed in enumerate((2.0, 0.5))
        )
        spec = ClusterSpec(groups, router="shared_queue")
        result = play(spec, tokens, [1] * 4000, np.cumsum(rng.exponential(1 / 2.0, 4000)), warmup=400)
        return float(result.ttft_s[result.measured].mean())

    found = estimate([sojourn(seed) for seed in range(20)], 0.999)
    theory = unlike_servers(2.0, 2.0, 0.5)
    assert abs(found.mean - theory) < found.half_width < 0.15 * theory


def test_predicted_speed_by_hand() -> None:
    """Budget 250: two prompts of 100 a step, 1 ms a token, on each of two ranks side by side: 20 prompts a second.

    Decode: contexts of 110, room for nine of them on a rank; a step of 18 sequences takes 10 + 18 x 1 ms, two tokens
    a step: 20 tokens cost a sequence 10 steps of 28 ms, shared by 18.
    """
    spec = make_instance(
        FormulaTimes(1e-3, 0.01, 1e-3), 1000.0, ranks=2, max_tokens_per_step=250, draft_tokens=1, acceptance_length=2.0
    )
    assert predicted_speed(spec, "prefill", 100.0, 20.0) == pytest.approx(1 / 0.05)
    assert predicted_speed(spec, "decode", 100.0, 20.0) == pytest.approx(1 / (10 * 0.028 / 18))
    assert predicted_speed(spec, "colocated", 100.0, 20.0) == pytest.approx(1 / (0.05 + 10 * 0.028 / 18))
    # A prompt longer than the budget is priced in chunks half way through it, here as long a token.
    assert predicted_speed(spec, "prefill", 1000.0, 20.0) == pytest.approx(1 / 0.5)


def test_kv_takes_the_smaller_link_of_unlike_groups() -> None:
    """1000 B from 4 accelerators of 250 B/s: 2 s to one of 500 B/s, 1 s to two of 5000 B/s, which the source bounds."""
    source = make_instance(FormulaTimes(per_prompt_token_s=0.0), gpus=4, nic_bandwidth=250.0)
    thin = make_instance(FormulaTimes(decode_base_s=1e-9), nic_bandwidth=500.0)
    wide = make_instance(FormulaTimes(decode_base_s=1e-9), gpus=2, nic_bandwidth=5000.0)
    spec = ClusterSpec(
        (GroupSpec("prefill", source, 2),),
        (GroupSpec("decode", thin, label="thin"), GroupSpec("decode", wide, label="wide")),
        router="round_robin",
        transfer=PLAIN,
        transfer_bytes=lambda tokens: 1000.0,
    )
    result = play(spec, [10] * 2, [2] * 2, [0.0] * 2)
    assert result.requests["decode_instance"].tolist() == [0, 1]
    np.testing.assert_allclose(result.requests["transfer_s"], [2.0, 1.0])


@pytest.mark.parametrize("router", ["round_robin", "least_loaded", "power_of_two", "shared_queue"])
def test_long_requests_go_where_they_fit(router: str) -> None:
    small, large = (make_instance(FormulaTimes(), capacity) for capacity in (100.0, 1000.0))
    spec = ClusterSpec(
        (GroupSpec("colocated", small, 2, label="small"), GroupSpec("colocated", large, label="large")), router=router
    )
    prompts = [50, 500, 50, 500, 500, 2000, 50]
    table = play(spec, prompts, [5] * 7, np.arange(7) * 1e-3).requests
    assert table["decode_instance"][[1, 3, 4]].tolist() == [2, 2, 2]
    assert table["status"].tolist() == ["finished"] * 5 + ["rejected", "finished"]


@pytest.mark.parametrize("offline", [False, True])
def test_what_outgrows_a_small_instance_is_left_in_the_common_queue(offline: bool) -> None:
    """The prompt of 50 fits the small instance, with its 100 tokens of output only the large one."""
    small, large = (make_instance(FormulaTimes(), capacity) for capacity in (100.0, 1000.0))
    groups = (GroupSpec("colocated", small, label="small"), GroupSpec("colocated", large, label="large"))
    spec = ClusterSpec(groups, router="shared_queue")
    way: dict[str, Any] = {"headroom": 0.0} if offline else {"arrival_s": np.zeros(3)}
    result = serve(spec, [Requests(np.array([50, 50, 50]), np.array([100, 5, 100]), **way)])
    assert result.finished.all()
    assert result.requests["decode_instance"][[0, 2]].tolist() == [1, 1]


def test_a_long_request_waits_for_the_group_that_can_hold_it() -> None:
    """The large instance is down from 0 s to 2 s; the small one serves on."""
    small, large = (make_instance(FormulaTimes(), capacity) for capacity in (100.0, 1000.0))
    groups = (GroupSpec("colocated", small, label="small"), GroupSpec("colocated", large, label="large"))
    fault = PlannedFault(kind="instance", pool="colocated", index=1, at_s=0.0, duration_s=2.0)
    result = play(ClusterSpec(groups, faults=Faults(events=(fault,))), [500, 50], [1, 1], [1.0, 1.0])
    assert result.requests["first_token_s"].tolist() == pytest.approx([2.05, 1.005])
    assert [(seen.group, seen.unit) for seen in result.run.incidents] == [("colocated.large", 1)]


def mixed(**fields: Any) -> tuple[ClusterSpec, SimulationResult, Recorder]:
    """Two prefill and three decode groups of unlike instances under random load."""
    draw = PowerDraw(100.0, 700.0, 400.0)

    def group(pool: str, i: int) -> GroupSpec:
        server = make_instance(
            FormulaTimes(1e-3 / (i + 1), 0.01 / (i + 1), 1e-4), gpus=2 * i + 2, max_sequences=8, speed=i + 1.0
        )
        return GroupSpec(pool, server, i + 1, label=f"g{i}", power=draw, **fields.get(f"{pool}{i}", {}))

    spec = ClusterSpec(
        tuple(group("prefill", i) for i in range(2)),
        tuple(group("decode", i) for i in range(3)),
        transfer=PLAIN,
        faults=fields.get("faults"),
    )
    rng = np.random.default_rng(0)
    recorder = Recorder(0.1)
    load = rng.integers(1, 200, 300).tolist(), rng.integers(2, 40, 300).tolist(), np.cumsum(rng.exponential(0.02, 300))
    result = play(spec, *load, warmup=20, recorder=recorder)
    prices = {group.name: GroupPrice(float(i + 1), 1000.0) for i, group in enumerate(spec.groups)}
    return spec, SimulationResult(spec, result.run, Slo(), prices), recorder


def test_groups_add_up_to_the_cluster() -> None:
    spec, result, recorder = mixed()
    summary = result.summary().to_json()
    groups, throughput = summary["groups"], summary["throughput"]
    assert list(groups) == ["prefill.g0", "prefill.g1", "decode.g0", "decode.g1", "decode.g2"]
    for pool in ("prefill", "decode"):
        own = [seen for seen in groups.values() if seen["pool"] == pool]
        assert sum(seen["requests"] for seen in own) == result.window.requests
        assert sum(seen["request_share"] for seen in own) == pytest.approx(1.0)
    assert sum(seen["input_tok_s"] or 0 for seen in groups.values()) == pytest.approx(throughput["input_tok_s"])
    assert sum(seen["output_tok_s"] or 0 for seen in groups.values()) == pytest.approx(throughput["output_tok_s"])
    assert sum(each["kwh"] for each in summary["energy"]["pools"].values()) == pytest.approx(summary["energy"]["kwh"])
    usd = sum((i + 1) * group.gpus for i, group in enumerate(spec.groups))
    assert summary["cost"]["usd_per_hour"] == usd
    paid = sum(
        seen["usd_per_mtok"] * 1e-6 * 3600 * (seen["input_tok_s"] or seen["output_tok_s"]) for seen in groups.values()
    )
    assert paid == pytest.approx(usd)
    hours = sum(seen["gpu_hours"] for seen in summary["lifecycle"].values())
    assert hours == pytest.approx(summary["gpus_total"] * summary["duration_s"] / 3600)
    table = result.requests
    for name, first, count in (("decode.g0", 0, 1), ("decode.g1", 1, 2), ("decode.g2", 3, 3)):
        steps = {step.instance for step in recorder.steps if step.group == name}
        assert steps == set(range(first, first + count))
        rows = table[table["decode_instance"].between(first, first + count - 1)]
        decoded = sum(step.sequences for step in recorder.steps if step.group == name)
        assert decoded == (rows["output_tokens"] - 1).sum()
    grid = series(recorder, result)
    assert grid["power_w"].sum() * 0.1 == pytest.approx(summary["energy"]["kwh"] * 3.6e6)
    assert grid.groupby("pool")["instance"].unique().map(list).to_dict()["decode.g2"] == [3, 4, 5]


def test_arrows_of_a_timeline_join_the_groups_that_served(tmp_path: Path) -> None:
    _, result, recorder = mixed()
    write_timeline(tmp_path / "t.json", {"": (recorder, result.run)})
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e.get("name") == "process_name"}
    ends: dict[int, dict[str, str]] = {}
    for event in events:
        if event.get("cat") == "transfer":
            ends.setdefault(event["id"], {})[event["ph"]] = f"{names[event['pid']]} {event['tid']}"
    table = result.requests
    homes = {"prefill": "011", "decode": "011222"}  # group of each instance
    assert len(ends) == len(table)
    for request, row in table.iterrows():
        for way, pool in (("s", "prefill"), ("f", "decode")):
            number = row[f"{pool}_instance"]
            assert ends[request][way] == f"{pool}.g{homes[pool][number]} {number}"


def test_groups_scale_and_break_by_themselves() -> None:
    """One decode group follows a schedule, one its use; a node holds two of another group alone."""
    fields = {
        "decode1": {"autoscale": Autoscale(schedule=(ScheduledCount(at_s=1.0, instances=1),)), "node_gpus": 4},
        "decode2": {
            "begins_with": 1,
            "autoscale": Autoscale(metric="utilization", target=0.1, maximum=3, window_s=0.2, cooldown_s=0.3),
        },
        "prefill1": {"node_gpus": 8},
        # nodes of the prefill pool: 0 is prefill.g0, 1 both instances of prefill.g1
        "faults": Faults(
            events=(PlannedFault(kind="node", pool="prefill", index=1, at_s=0.5, duration_s=0.2),), retry_delay_s=0.0
        ),
    }
    _, result, _ = mixed(**fields)
    life = result.lifecycle()
    assert (life["decode.g1"].instances_least, life["decode.g1"].instances_most) == (1, 2)
    assert life["decode.g2"].instances_most == 3
    assert life["decode.g0"].instances_most == 1
    assert life["prefill.g1"].faults == {"node": 1}
    assert life["prefill.g0"].faults == {}
    down = {change.instance for change in result.run.changes["prefill.g1"] if change.state.value == "down"}
    assert down == {1, 2}
    assert result.finished.all()


POOL = {"gpu": "h200", "tp": 8}


def scenario(deployment: dict[str, Any], **keys: Any) -> Any:
    load = {"kind": "open_loop", "rate": 5.0, "requests": 60, "prompt": 800, "output": 20}
    return parse_scenario({"model": "qwen3-235b-a22b", "workload": load, "deployment": deployment} | keys)


def test_one_table_and_a_list_of_one_are_the_same() -> None:
    table, listed = (simulate(scenario({"prefill": POOL, "decode": pool})) for pool in (POOL, [POOL]))
    assert listed.summary().to_json() == table.summary().to_json()
    assert listed.requests.equals(table.requests)
    assert table.summary().to_json()["groups"] == {}


def test_the_speeds_of_unlike_accelerators_come_from_the_op_model() -> None:
    """B200 has 1.67 times the memory bandwidth of H200 and more memory: it decodes faster, and gets more requests."""
    result = simulate(scenario({"prefill": POOL, "decode": [POOL, POOL | {"gpu": "b200"}]}))
    old, new = (group.instance.speed for group in result.spec.decode)
    assert 1.2 < new / old < 4
    assert result.spec.entry[0].instance.speed == 1.0
    shares = {name: seen["request_share"] for name, seen in result.summary().to_json()["groups"].items()}
    assert shares["decode.b200"] > 0.5 > shares["decode.h200"]


def test_the_least_known_group_speaks_for_its_pool() -> None:
    asked = scenario({"prefill": POOL, "decode": [POOL | {"gpu": "b200", "stack": "sglang"}, POOL]})
    assert asked.deployment is not None
    model = load_model(asked.model)
    bands = bands_of(asked.deployment, model)
    widths = [
        uncertainty_of(load(group.gpu, group.stack), model, group.parallelism, 0, "decode")
        .spreads["total_tok_s_per_gpu"]
        .width
        for group in asked.deployment.pools["decode"]
    ]
    assert bands.decode.spreads["total_tok_s_per_gpu"].width == max(widths)


@pytest.mark.parametrize(
    ("deployment", "told"),
    [
        ({"colocated": [POOL, POOL]}, "two groups of colocated are called 'h200'; give each a name of its own"),
        ({"colocated": POOL | {"name": "old"}}, "colocated.name='old' tells groups apart, and there is one"),
        ({"colocated": []}, "'deployment.colocated' is empty"),
        ({"colocated": [POOL, {"tp": 8}]}, "key 'deployment.colocated.1.gpu' is missing"),
        ({"prefill": POOL, "decode": [POOL | {"tq": 1}]}, "unknown key 'deployment.decode.0.tq'"),
        ({"colocated": "h200"}, "deployment.colocated='h200' is not a table; give one with its keys"),
        (
            {
                "prefill": [POOL, POOL | {"name": "narrow", "tp": 4}],
                "decode": POOL,
                "transfer": {"oversubscription": 2.0, "rails": 8},
            },
            "rails=8 need attention ranks of one size, and prefill has some of 4 and 8 accelerators",
        ),
        (
            {"colocated": [POOL, POOL | {"gpu": "b200"}], "faults": {"events": [{"kind": "node", "pool": "colocated",
             "index": 2, "at_s": 1, "duration_s": 1}]}},
            "index=2 is beyond the 2 instances of the colocated pool",
        ),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_in_one_sentence(deployment: dict[str, Any], told: str) -> None:
    with pytest.raises(ScenarioError, match=told):
        simulate(scenario(deployment))


def test_the_example_plays() -> None:
    whole = load_scenario(EXAMPLE)
    assert whole.workload is not None
    result = simulate(whole.model_copy(update={"workload": whole.workload.model_copy(update={"requests": 1500})}))
    groups = result.summary().to_json()["groups"]
    assert result.finished.all()
    speeds = {group.name: group.count * group.instance.speed for group in result.spec.decode}
    fair = speeds["decode.b200"] / sum(speeds.values())
    assert groups["decode.b200"]["request_share"] == pytest.approx(fair, abs=0.05)
    assert math.isclose(sum(groups[name]["request_share"] for name in speeds), 1.0)

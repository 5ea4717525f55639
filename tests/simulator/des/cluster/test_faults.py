"""Faults: hand-worked incidents, availability and breakdown queues against theory, conservation over random ones."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from scipy.stats import t as student
from support.clusters import FormulaTimes, colocated, disaggregated, make_instance, play

from simulator.des.cluster.cluster import Cluster
from simulator.des.cluster.faults import nodes_of
from simulator.des.cluster.group import integrate
from simulator.des.cluster.spec import ClusterSpec
from simulator.des.workload.requests import Requests
from simulator.scenario import Faults, Outages, PlannedFault, ScenarioError, Slo, Transfer

MS = 1e-3
QUICK = Transfer(efficiency=1.0, handshake_s=0.001, half_rate_bytes=0.0)


def with_faults(spec: ClusterSpec, startup_s: float = 0.0, node_gpus: int = 8, **keys: Any) -> ClusterSpec:
    """The cluster with faults; instances serve again `startup_s` after one."""

    def pool(old: Any) -> Any:
        return tuple(replace(group, startup_s=startup_s, node_gpus=node_gpus) for group in old)

    keys.setdefault("retry_delay_s", 0.0)
    return replace(spec, entry=pool(spec.entry), decode=pool(spec.decode), faults=Faults(**keys))


def down(pool: str, at_s: float, duration_s: float, index: int = 0, kind: Any = "instance", speed: float = 0.0) -> Any:
    return PlannedFault(kind=kind, pool=pool, index=index, at_s=at_s, duration_s=duration_s, speed=speed)


def test_a_dead_instance_loses_its_kv_and_the_request_computes_prompt_and_tokens_again() -> None:
    """100 tokens take 0.1 s, then 10 ms a token. At 0.355 s 26 tokens are out; 1 s down and 2 s of start-up.

    At 3.355 s the prompt of 100 + 26 begins, 0.126 s later token 27 is out, and 24 more follow at 10 ms.
    """
    spec = colocated(make_instance(FormulaTimes(per_prompt_token_s=MS, decode_base_s=10 * MS)))
    result = play(with_faults(spec, startup_s=2.0, events=(down("colocated", 0.355, 1.0),)), [100], [51], [0.0])
    assert result.ttft_s[0] == pytest.approx(0.1)
    assert result.finish_s[0] == pytest.approx(3.355 + 0.126 + 24 * 0.010)
    summary = result.summary().to_json()
    assert summary["retries"] == 1
    assert summary["tokens_out"] == 51
    assert summary["lifecycle"]["colocated"]["faults"] == {"instance": 1}
    assert summary["lifecycle"]["colocated"]["availability"] == pytest.approx(1 - 3 / result.finish_s[0])
    # 0.355 s before, 0.366 s after: the step that was cut is paid for
    assert result.run.end.usage["colocated"][0].busy_s == pytest.approx(0.355 + 0.366)


def test_instances_that_never_live_long_enough_are_refused() -> None:
    """An instance over four nodes, one of which is always down; and a prompt of 100 mean lives, sent for ever."""
    wide = with_faults(colocated(make_instance(FormulaTimes(), gpus=32)), 10.0, node=Outages(mtbf_s=0.01, mttr_s=10.0))
    short = with_faults(
        colocated(make_instance(FormulaTimes(per_prompt_token_s=MS))),
        instance=Outages(mtbf_s=0.01, mttr_s=0.0),
        retries=10**6,
    )
    for spec in (wide, short):
        with pytest.raises(ScenarioError, match=r"no instance up long enough .*, 2 of 2 are left; raise mtbf_s"):
            play(spec, [1000] * 2, [1] * 2, [0.0, 1.0])
    # A lull in the traffic is no reason.
    result = play(replace(short, faults=Faults(instance=Outages(mtbf_s=1.0, mttr_s=0.0))), [1] * 2, [1] * 2, [0, 5000])
    assert result.finished.all()


def test_requests_go_to_instances_that_live() -> None:
    """Two instances, requests of 10 ms, one every 0.1 s; instance 0 is away from 0.95 s to 2.05 s."""
    spec = colocated(make_instance(FormulaTimes(per_prompt_token_s=MS)), 2, "round_robin")
    result = play(with_faults(spec, events=(down("colocated", 0.95, 1.1),)), [10] * 40, [1] * 40, np.arange(40) / 10)
    served = result.requests["prefill_instance"].to_numpy()
    assert set(served[10:21]) == {1}
    assert set(served[:10]) == set(served[21:]) == {0, 1}
    assert result.e2e_s == pytest.approx(np.full(40, 0.010))


def test_a_request_fails_after_its_last_retry() -> None:
    """A request of 10 s is hit at 1, 2 and 3 s; two retries are allowed. The next one then takes its turn."""
    spec = colocated(make_instance(FormulaTimes(per_prompt_token_s=MS)))
    events = tuple(down("colocated", at, 0.0) for at in (1.0, 2.0, 3.0))
    result = play(with_faults(spec, events=events, retries=2), [10_000, 1000], [1, 1], [0.0, 3.5])
    assert result.requests["status"].tolist() == ["failed", "finished"]
    assert result.requests["retries"].tolist() == [3, 0]
    assert result.finish_s == pytest.approx([3.0, 4.5])
    assert result.summary().to_json()["requests"] == {"total": 2, "finished": 1, "failed": 1, "rejected": 0}


def test_a_request_that_a_fault_took_and_a_full_queue_refuses_has_failed_once() -> None:
    """Instance 0 works on the first and dies at 1 s; instance 1 works on the second, and no queue may hold another."""
    spec = colocated(make_instance(FormulaTimes(per_prompt_token_s=MS), max_sequences=1), 2, max_queue=0)
    spec = with_faults(spec, events=(down("colocated", 1.0, 9.0),))
    result = play(spec, [5000] * 4, [1] * 4, [0.0, 0.1, 0.2, 6.0], slo=Slo(ttft_s=7.0))
    summary = result.summary().to_json()
    assert result.requests["status"].tolist() == ["failed", "finished", "rejected", "finished"]
    assert summary["requests"] == {"total": 4, "finished": 2, "failed": 1, "rejected": 1}
    assert list(summary["rejections"].values()) == [1]
    assert summary["retries"] == 1
    limit = summary["slo"]["limits"]["ttft_s"]
    assert (limit["attainment"], summary["slo"]["attainment"]) == (0.5, 0.5)


def test_a_closed_loop_goes_on_after_a_failed_request() -> None:
    spec = colocated(make_instance(FormulaTimes(per_prompt_token_s=MS)))
    result = play(
        with_faults(spec, events=(down("colocated", 0.5, 1.0),), retries=0), [1000] * 3, [1] * 3, concurrency=1
    )
    assert result.requests["status"].tolist() == ["failed", "finished", "finished"]
    assert result.finish_s == pytest.approx([0.5, 2.5, 3.5])


def two_pools(counts: tuple[int, int] = (1, 1)) -> ClusterSpec:
    """1 ms a prompt token, 10 ms a decode step, 1 ms on the wire for each prompt token."""
    cost = FormulaTimes(per_prompt_token_s=MS, decode_base_s=10 * MS)
    spec = disaggregated(
        make_instance(cost, nic_bandwidth=1e3), make_instance(cost, nic_bandwidth=1e3), counts, transfer_bytes=float
    )
    transfer = spec.transfer.model_copy(update={"efficiency": 1.0, "handshake_s": 0.0, "half_rate_bytes": 0.0})
    return replace(spec, transfer=transfer)


def test_a_dead_decode_instance_sends_requests_back_to_prefill() -> None:
    """Prefill to 0.1 s, KV there at 0.2 s, tokens 2 to 11 by 0.3 s, the fault at 0.305 s.

    Prefill of 111 tokens to 0.416 s (token 12), transfer of 111 to 0.527 s, 9 more tokens on the other instance.
    """
    spec = with_faults(two_pools((1, 2)), events=(down("decode", 0.305, 60.0),))
    result = play(spec, [100], [21], [0.0])
    assert result.finish_s[0] == pytest.approx(0.305 + 0.111 + 0.111 + 9 * 0.010)
    assert result.requests["decode_instance"][0] == 1
    assert result.ttft_s[0] == pytest.approx(0.1)


def test_kv_still_at_the_source_is_sent_elsewhere_without_a_retry() -> None:
    """The decode instance dies at 0.15 s, half-way through the transfer; the other one fetches the KV whole."""
    spec = with_faults(two_pools((1, 2)), events=(down("decode", 0.15, 60.0),))
    result = play(spec, [100], [21], [0.0])
    assert result.summary().to_json()["retries"] == 0
    assert result.requests["decode_instance"][0] == 1
    assert result.finish_s[0] == pytest.approx(0.15 + 0.1 + 20 * 0.010)


def test_kv_waits_at_the_source_while_no_decode_instance_serves() -> None:
    spec = with_faults(two_pools(), events=(down("decode", 0.05, 0.95),))
    result = play(spec, [100], [11], [0.0])
    assert result.finish_s[0] == pytest.approx(1.0 + 0.1 + 0.1)
    assert result.summary().to_json()["retries"] == 0


@pytest.mark.parametrize("at_s", [0.05, 0.15])
def test_a_dead_prefill_instance_takes_kv_that_has_not_arrived_with_it(at_s: float) -> None:
    """In prefill at 0.05 s, on the wire at 0.15 s when the first token is out; all begins anew 1 s later."""
    spec = with_faults(two_pools(), events=(down("prefill", at_s, 1.0),))
    result = play(spec, [100], [11], [0.0])
    again = 0 if at_s < 0.1 else 1  # tokens out before the fault
    tokens = 100 + again
    assert result.ttft_s[0] == pytest.approx(0.1 if again else at_s + 1.0 + 0.1)
    assert result.finish_s[0] == pytest.approx(at_s + 1.0 + 2 * tokens * MS + (10 - again) * 0.010)
    assert result.summary().to_json()["retries"] == 1


def test_lost_kv_that_waited_for_room_is_not_waited_for() -> None:
    """Room for one: request 0 decodes from 0.3 s to 1.3 s, the KV of request 1 waits for its place.

    Prefill dies at 0.5 s and computes request 1 again from 0.6 s to 0.701 s; at 1.3 s its new KV is fetched at once.
    """
    spec = two_pools()
    decode = spec.decode[0]
    one = replace(decode, instance=replace(decode.instance, max_sequences=1))
    spec = with_faults(replace(spec, decode=(one,)), events=(down("prefill", 0.5, 0.1),))
    result = play(spec, [100, 100], [101, 11], [0.0, 0.0])
    assert result.finish_s == pytest.approx([1.3, 1.3 + 0.101 + 9 * 0.010])


def test_a_fault_during_start_up_begins_it_anew() -> None:
    """Repaired at 2 s and again at 6 s, 10 s of start-up: back at 16 s, not at 12 s."""
    spec = colocated(make_instance(FormulaTimes(per_prompt_token_s=MS)))
    events = (down("colocated", 1.0, 1.0), down("colocated", 5.0, 1.0))
    result = play(with_faults(spec, startup_s=10.0, events=events), [10, 10], [1, 1], [3.0, 20.0])
    assert [(m.time_s, m.serving) for m in result.run.sizes["colocated"]] == [(0.0, 1), (1.0, 0), (16.0, 1)]
    assert result.finish_s == pytest.approx([16.01, 20.01])


def test_routers_see_no_load_when_all_is_done() -> None:
    """Tokens that were out before a fault are computed again with the prompt, and count as load until then."""
    events = (down("decode", 0.305, 1.0), down("prefill", 0.35, 1.0), down("decode", 2.0, 1.0, 1))
    spec = with_faults(two_pools((2, 2)), events=events)
    requests = Requests(np.array([100, 150, 200]), np.array([300, 200, 100]), np.zeros(3))
    cluster = Cluster(spec, requests, np.random.default_rng(0))
    assert sum(cluster.run().log.retries) > 0
    assert [each.load for each in (*cluster.serving.entry, *cluster.serving.decode)] == [0, 0, 0, 0]


@pytest.mark.parametrize(("speed", "arrival_s"), [(0.0, 0.2 + 0.5), (0.5, 0.2 + 0.05)])
def test_a_link_that_is_down_stalls_a_transfer_and_a_weak_one_slows_it(speed: float, arrival_s: float) -> None:
    """On the wire from 0.1 s; down from 0.15 s to 0.65 s, or at half its rate until the end."""
    spec = two_pools()
    spec = with_faults(spec, events=(down("prefill", 0.15, 0.5, kind="link", speed=speed),))
    result = play(spec, [100], [11], [0.0])
    assert result.finish_s[0] == pytest.approx(arrival_s + 0.1)
    assert result.summary().to_json()["lifecycle"]["prefill"]["faults"] == {"link": 1}


def test_a_node_takes_all_its_instances_down() -> None:
    """Instances of 4 accelerators, 8 to a node: node 1 holds instances 2 and 3."""
    spec = colocated(make_instance(FormulaTimes(per_prompt_token_s=MS), gpus=4), 5, "round_robin")
    keys = {"events": (down("colocated", 0.95, 10.0, 1, "node"),)}
    result = play(with_faults(spec, **keys), [10] * 30, [1] * 30, np.arange(30) / 10)
    assert set(result.requests["prefill_instance"][10:]) == {0, 1, 4}
    moments = result.run.sizes["colocated"]
    assert [(m.time_s, m.serving, m.down) for m in moments] == [(0.0, 5, 0), (0.95, 3, 2)]


def test_instances_fill_nodes_by_index_and_never_lie_across_two_that_could_hold_them() -> None:
    for count, gpus, node in [(7, 1, 8), (9, 2, 8), (4, 8, 8), (3, 16, 8), (5, 6, 8), (2, 12, 8)]:
        nodes = nodes_of(count, gpus, node)
        where = [[n for n, held in enumerate(nodes) if i in held] for i in range(count)]
        assert all(len(own) == math.ceil(gpus / node) for own in where)
        assert all(len(held) * min(gpus, node) <= node for held in nodes)


def test_a_slow_spell_stretches_steps_that_begin_in_it() -> None:
    """Half speed from 1 s to 2 s: steps of 10 ms last 20 ms. Of two spells at once the slower one counts."""
    spec = colocated(make_instance(FormulaTimes(per_prompt_token_s=MS, decode_base_s=10 * MS)))
    slow = [down("colocated", 1.0, 1.0, kind="slow", speed=0.5)]
    result = play(with_faults(spec, events=tuple(slow)), [10], [300], [0.0])
    assert result.finish_s[0] == pytest.approx(0.01 + 299 * 0.01 + 0.5)
    assert result.summary().to_json()["retries"] == 0
    slow.append(down("colocated", 1.2, 0.4, kind="slow", speed=0.25))
    result = play(with_faults(spec, events=tuple(slow)), [10], [300], [0.0])
    assert result.finish_s[0] == pytest.approx(0.01 + 299 * 0.01 + 0.3 + 0.3)


@pytest.mark.parametrize(("kind", "startup_s"), [("instance", 0.0), ("instance", 3.0), ("node", 2.0)])
def test_availability_is_mtbf_over_mtbf_and_the_whole_repair(kind: str, startup_s: float) -> None:
    """Alternating renewal: each instance is up for MTBF / (MTBF + MTTR + start-up) of a long run."""
    mtbf_s, mttr_s, horizon_s, count = 20.0, 5.0, 20_000.0, 6
    spec = colocated(make_instance(FormulaTimes(per_prompt_token_s=MS), gpus=4), count, "shared_queue")
    outages = {kind: Outages(mtbf_s=mtbf_s, mttr_s=mttr_s)}
    result = play(with_faults(spec, startup_s, 8, **outages), [1, 1], [1, 1], [0.0, horizon_s])
    log = result.run.sizes["colocated"]
    edges = np.linspace(0, horizon_s, 21)[1:]  # batch means behind the start, where all are up
    shares = [integrate(log, a, b).serving / count / (b - a) for a, b in pairwise(edges)]
    half = student.ppf(0.995, len(shares) - 1) * np.std(shares, ddof=1) / math.sqrt(len(shares))
    expected = mtbf_s / (mtbf_s + mttr_s + startup_s)
    assert abs(np.mean(shares) - expected) < half
    assert half < 0.03
    assert result.lifecycle()["colocated"].availability == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(("mtbf_s", "mttr_s"), [(20.0, 5.0), (4.0, 8.0)])
def test_instances_that_are_up_are_binomial(mtbf_s: float, mttr_s: float) -> None:
    """Machines with a repairman each: of N independent ones k are up with the chance of Binomial(N, A).

    A = MTBF / (MTBF + MTTR). Shares of time with k up, over a batch each, give Student's interval of every chance.
    """
    count, horizon_s = 4, 25_000.0
    spec = colocated(make_instance(FormulaTimes(per_prompt_token_s=MS)), count, "shared_queue")
    outages = Outages(mtbf_s=mtbf_s, mttr_s=mttr_s)
    result = play(with_faults(spec, instance=outages), [1, 1], [1, 1], [0.0, horizon_s], seed=1)
    log = result.run.sizes["colocated"]
    edges = np.linspace(0, horizon_s, 26)[1:]
    chances = binom.pmf(range(count + 1), count, mtbf_s / (mtbf_s + mttr_s))
    for up, chance in enumerate(chances):
        marked = [moment._replace(serving=moment.serving == up) for moment in log]
        shares = [integrate(marked, a, b).serving / (b - a) for a, b in pairwise(edges)]
        half = student.ppf(0.9995, len(shares) - 1) * np.std(shares, ddof=1) / math.sqrt(len(shares))
        assert abs(np.mean(shares) - chance) < half
        assert half < 0.05


def test_a_queue_with_breakdowns_takes_as_long_as_theory_says() -> None:
    """M/D/1 whose server breaks down, busy or idle, and begins the interrupted request anew.

    Time C from the start of a service of s to its end (Gaver 1962): a geometric number of failures before a run of s
    without one. A request that finds the queue empty may find the server broken, so the first service of a busy
    period is exceptional, C0 = C + V, and the sojourn (Welch 1964), with D = 1 - rate (E C - E C0), is
    E C0 / D + rate (E C0^2 - E C^2) / 2D + rate E C^2 / 2(1 - rate E C).
    """
    rate, service_s, mtbf_s, mttr_s, count, runs = 0.4, 1.0, 5.0, 1.5, 4000, 12
    whole = math.exp(-service_s / mtbf_s)  # a service without a failure
    failures, variance = (1 - whole) / whole, (1 - whole) / whole**2
    cut = mtbf_s - service_s * whole / (1 - whole)
    cut_squared = 2 * mtbf_s**2 - whole * (service_s**2 + 2 * service_s * mtbf_s) / (1 - whole)
    lost, lost_variance = cut + mttr_s, cut_squared - cut**2 + mttr_s**2
    mean = failures * lost + service_s
    square = failures * lost_variance + variance * lost**2 + mean**2
    broken = (1 / mtbf_s) / (rate + 1 / mtbf_s + 1 / mttr_s)  # at the first arrival of a busy period
    first = mean + broken * mttr_s
    first_square = square + 2 * mean * broken * mttr_s + broken * 2 * mttr_s**2
    spread = 1 - rate * (mean - first)
    theory = first / spread + rate * (first_square - square) / (2 * spread) + rate * square / (2 * (1 - rate * mean))
    spec = colocated(make_instance(FormulaTimes(per_prompt_token_s=MS), max_sequences=1, max_tokens_per_step=10**6))
    outages = Outages(mtbf_s=mtbf_s, mttr_s=mttr_s)
    spec = with_faults(spec, instance=outages, retries=10**6)
    means = []
    for seed in range(runs):
        arrivals = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count))
        result = play(spec, [1000] * count, [1] * count, arrivals, warmup=count // 20, seed=seed)
        means.append(float(np.mean(result.e2e_s[result.measured])))
    half = student.ppf(0.995, runs - 1) * np.std(means, ddof=1) / math.sqrt(runs)
    assert abs(np.mean(means) - theory) < half
    assert half < 0.15 * theory


@st.composite
def incidents(draw: st.DrawFn, pools: tuple[str, ...]) -> Faults:
    kinds = ["instance", "node", "slow", *(["link"] if len(pools) == 2 else [])]
    events = []
    for _ in range(draw(st.integers(0, 6))):
        kind = draw(st.sampled_from(kinds))
        speed = draw(st.sampled_from([0.2, 0.5])) if kind in ("slow", "link") else 0.0
        at, length = draw(st.floats(0, 2)), draw(st.floats(0, 1))
        events.append(down(draw(st.sampled_from(pools)), at, length, draw(st.integers(0, 1)), kind, speed))

    def outages(speed: float = 0.0) -> Any:
        made = st.builds(Outages, mtbf_s=st.floats(0.1, 3), mttr_s=st.floats(0, 0.5), speed=st.just(speed))
        return draw(st.none() | made)

    return Faults(
        instance=outages(),
        node=outages(),
        slow=outages(0.5),
        link=outages() if len(pools) == 2 else None,
        events=tuple(events),
        retries=draw(st.integers(0, 4)),
        retry_delay_s=draw(st.sampled_from([0.0, 0.1])),
    )


@settings(max_examples=80)
@given(
    data=st.data(),
    split=st.booleans(),
    router=st.sampled_from(["round_robin", "least_loaded", "power_of_two", "shared_queue"]),
    capacity=st.sampled_from([60.0, 200.0, 10_000.0]),
    ranks=st.integers(1, 2),
    batching=st.sampled_from(["chunked", "prefill_first", "inflight"]),
    startup_s=st.sampled_from([0.0, 0.2]),
    closed=st.booleans(),
)
def test_whatever_breaks_every_request_ends_once_and_no_kv_is_left(
    data: st.DataObject,
    split: bool,
    router: str,
    capacity: float,
    ranks: int,
    batching: str,
    startup_s: float,
    closed: bool,
) -> None:
    server = make_instance(
        FormulaTimes(1e-3, 0.01, 1e-4, 1e-6, caps=(16, 64)),
        capacity=capacity,
        ranks=ranks,
        gpus=4,
        max_tokens_per_step=64,
        max_sequences=6,
        batching=batching,
        nic_bandwidth=1e4,
    )
    if split:
        transfer = QUICK.model_copy(update={"overlap": data.draw(st.sampled_from(["none", "layerwise"]))})
        fields = {"router": router, "transfer": transfer, "layers": 3, "transfer_bytes": lambda tokens: 20.0 * tokens}
        spec = disaggregated(server, server, (2, 2), **fields)
    else:
        spec = colocated(server, 3, router)
    faults = data.draw(incidents(("prefill", "decode") if split else ("colocated",)))
    node = data.draw(st.sampled_from([4, 8]))
    if any(event.kind == "node" for event in faults.events):
        node = 4  # two nodes or more in each pool
    spec = replace(with_faults(spec, startup_s, node), faults=faults)
    count = data.draw(st.integers(1, 30))
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    prompts, outputs = rng.integers(1, 60, count).tolist(), rng.integers(1, 40, count).tolist()
    load: dict[str, Any] = {"concurrency": 4} if closed else {"arrivals": np.cumsum(rng.exponential(0.05, count))}
    # The run itself refuses to end with a request open, one that ends twice, or KV held.
    result = play(spec, prompts, outputs, **load)
    table = result.requests
    assert set(table["status"]) <= {"finished", "failed", "rejected"}
    assert (table.loc[table["status"] == "failed", "retries"] > 0).all()
    assert (table.loc[table["status"] == "finished", "retries"] <= faults.retries).all()
    emitted = np.array(result.run.log.emitted)
    done = (table["status"] == "finished").to_numpy()
    assert (emitted[done] == np.array(outputs)[done]).all()
    assert (emitted[~done] < np.array(outputs)[~done]).all()
    end_s = result.run.end.time_s
    for pool in spec.groups:
        total = integrate(result.run.sizes[pool.name], 0.0, end_s)
        assert total.serving + total.down == pytest.approx(total.allocated) == pytest.approx(pool.count * end_s)
        assert sum(usage.busy_s for usage in result.run.end.usage[pool.name]) <= total.serving * (1 + 1e-9)
    json.dumps(result.summary().to_json(), allow_nan=False)
    assert play(spec, prompts, outputs, **load).requests.equals(table)

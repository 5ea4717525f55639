"""What must hold of whole scenarios, from keys to summary, that mix everything.

Tenants of every kind, sessions, offline work, caches, faults, autoscaling, expert skew, drafts, shares of long prompts.
"""

import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from support.clusters import differences

from simulator.des.cluster.group import State, integrate
from simulator.des.cluster.recorder import Recorder
from simulator.des.records.request_log import Status
from simulator.des.results.result import SimulationResult
from simulator.des.results.series import series
from simulator.des.simulate import simulate
from simulator.des.simulate_models import simulate_shared
from simulator.scenario import SharedCluster, parse_any, parse_scenario

# Sixteen layers with KV of 16 MiB a token, so that 7,000 tokens fill an accelerator.
GREEDY = {
    "model_type": "glm4_moe",
    "architectures": ["Glm4MoeForCausalLM"],
    "torch_dtype": "bfloat16",
    "hidden_size": 64,
    "num_hidden_layers": 16,
    "num_attention_heads": 256,
    "num_key_value_heads": 256,
    "head_dim": 1024,
    "vocab_size": 512,
    "max_position_embeddings": 60000,
    "intermediate_size": 64,
    "moe_intermediate_size": 64,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 1,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "use_qk_norm": False,
}
Keys = dict[str, Any]
EPS_S = 1e-9


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


@st.composite
def workloads(draw: st.DrawFn, offline: bool, closed: bool) -> Keys:
    crowded = draw(st.booleans())  # KV runs out
    longest = 2000 if crowded else draw(st.sampled_from([50, 2000, 8000]))
    workload: Keys = {
        "prompt": {"kind": "uniform", "low": 1, "high": longest},
        "output": {"kind": "uniform", "low": 1, "high": 300 if crowded else draw(st.sampled_from([1, 60]))},
    }
    kinds = ["open_loop", "sessions", *(["offline"] if offline else []), *(["closed_loop"] if closed else [])]
    kind = workload["kind"] = draw(st.sampled_from(kinds))
    count = draw(st.integers(10, 25) if crowded else st.integers(1, 25))
    if kind == "sessions":
        pace = draw(st.sampled_from([{"rate": 5.0}, {"users": 1}, {"users": 3}]))
        system = draw(maybe(st.just({"tokens": 600, "groups": 2})))
        workload |= {"sessions": 1 + count // 4, "turns": {"kind": "uniform", "low": 1, "high": 4}} | pace
        workload |= {"think_s": draw(st.sampled_from([0.0, {"kind": "exponential", "mean": 0.2}]))}
        workload |= {"system_prompt": system, "max_context": draw(st.sampled_from([None, 20_000]))}
        return workload
    workload["requests"] = count
    if kind == "closed_loop":
        workload["concurrency"] = draw(st.integers(1, 5))
    if kind == "offline":
        workload["headroom"] = draw(st.sampled_from([0.0, 0.3, 0.9]))
    if kind == "open_loop":
        workload["rate"] = draw(st.sampled_from([30.0, 3.0]))
        shapes = [{}, {"bursts": {"burst_s": 0.3, "quiet_s": 0.5}}, {"burstiness": 4.0}]
        workload |= draw(st.sampled_from([*shapes, {"diurnal": {"period_s": 2.0, "peak_s": 1.0, "trough": 0.1}}]))
        workload["shared_prefix"] = draw(maybe(st.just({"tokens": 1200, "groups": 2})))
    return workload


@st.composite
def traffic(draw: st.DrawFn, closed: bool) -> Keys:
    if draw(st.booleans()):
        return {"workload": draw(workloads(True, closed))}
    tenants: list[Keys] = []
    for name in "abc"[: draw(st.integers(1, 3))]:
        idle = not any(tenant["workload"]["kind"] == "offline" for tenant in tenants)
        tenant: Keys = {"name": name, "workload": draw(workloads(idle, closed)), "priority": draw(st.integers(-1, 1))}
        if draw(st.booleans()) or tenant["workload"]["kind"] == "offline":
            tenant["slo"] = {"ttft_s": 0.2, "tpot_s": 0.03, "e2e_s": 1.0}
        tenants.append(tenant)
    return {"tenants": tenants}


@st.composite
def scales(draw: st.DrawFn) -> Keys:
    if draw(st.booleans()):
        sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
        schedule = [{"at_s": 0.3 * i, "instances": size} for i, size in enumerate(sizes)]
        return {"schedule": schedule, "period_s": draw(st.sampled_from([None, 1.5]))}
    metric = draw(st.sampled_from(["queue", "utilization", "attainment"]))
    return {"metric": metric, "target": 0.8, "maximum": 4, "window_s": 0.2, "cooldown_s": 0.3}


@st.composite
def pools(draw: st.DrawFn) -> Keys:
    ranks = draw(st.integers(1, 2))
    pool: Keys = {
        "gpu": "h200",
        "instances": draw(st.integers(1, 3)),
        "dp": ranks,
        "ep": ranks,
        "pp": draw(st.sampled_from([1, 1, 2])),
        "max_tokens_per_step": draw(st.sampled_from([64, 512, 8192])),
        "max_sequences": draw(st.sampled_from([64, 8, 2])),
        "batching": draw(st.sampled_from(["chunked", "prefill_first", "inflight"])),
        "autoscale": draw(maybe(scales())),
    }
    if ranks > 1:
        kinds = st.sampled_from(["uniform", "power_law", "dirichlet"])
        skew = st.fixed_dictionaries({"kind": kinds, "redundant_experts": st.sampled_from([0, 2])})
        pool["expert_skew"] = draw(maybe(skew))
    if draw(st.booleans()):
        spread = draw(st.sampled_from([0.0, 0.2]))
        pool |= {"draft_tokens": 2, "acceptance_length": 1.9, "acceptance_spread": spread}
    if pool["batching"] == "chunked" and draw(st.booleans()):
        pool["long_prefill_token_threshold"] = draw(st.sampled_from([20, 300]))
        pool["max_long_partial_prefills"] = draw(st.sampled_from([None, 1]))
    return pool


def mixed_pools() -> st.SearchStrategy[Any]:
    """A pool, or unlike groups of one; accelerators of a mixed pool differ in memory, so that not all fits on each."""
    lists = st.lists(st.tuples(pools(), st.sampled_from(["h200", "b200", "h100"])), min_size=2, max_size=3)
    return pools() | lists.map(
        lambda several: [pool | {"gpu": gpu, "name": f"{i}"} for i, (pool, gpu) in enumerate(several)]
    )


@st.composite
def faults(draw: st.DrawFn, names: list[str]) -> Keys:
    def outages(speed: float) -> Keys | None:
        times = {"mtbf_s": st.sampled_from([0.5, 3.0]), "mttr_s": st.sampled_from([0.0, 0.3]), "speed": st.just(speed)}
        return draw(maybe(st.fixed_dictionaries(times)))

    kinds = ["instance", "node", "slow", *(["link"] if len(names) > 1 else [])]
    planned = st.fixed_dictionaries(
        {
            "kind": st.just("instance"),
            "pool": st.sampled_from(names),
            "at_s": st.sampled_from([0.0, 0.1, 0.7]),
            "duration_s": st.sampled_from([0.0, 0.4]),
        }
    )
    random = {kind: outages({"slow": 0.5, "link": draw(st.sampled_from([0.0, 0.1]))}.get(kind, 0.0)) for kind in kinds}
    return random | {
        "events": draw(st.lists(planned, max_size=2)),
        "retries": draw(st.integers(0, 3)),
        "retry_delay_s": draw(st.sampled_from([0.0, 0.05])),
        "node_gpus": draw(st.sampled_from([1, 4])),
    }


@st.composite
def transfers(draw: st.DrawFn, deployment: Keys) -> Keys:
    overlap, staged = draw(st.sampled_from(["none", "layerwise"])), draw(st.booleans())
    keys: Keys = {"overlap": overlap, "staged": staged}
    pair = [deployment["prefill"], deployment["decode"]]
    alike = all(isinstance(pool, dict) for pool in pair)
    if alike and sum(4 * pool["dp"] * pool["pp"] for pool in pair) <= 8 and draw(st.booleans()):
        return keys | {"network": "scale_up"}  # the domain of an H200 holds both pools, however they scale
    keys |= {"efficiency": draw(st.sampled_from([None, 0.05])), "handshake_s": draw(st.sampled_from([0.0, 0.02]))}
    keys |= {"half_rate_bytes": draw(st.sampled_from([0.0, 1e8]))}
    keys["oversubscription"] = draw(st.sampled_from([1, 4.0]))
    if alike and keys["oversubscription"] > 1:
        keys["rails"] = draw(st.sampled_from([1, 2]))
    return keys


@st.composite
def scenarios(draw: st.DrawFn) -> Keys:
    limit = draw(maybe(st.integers(0, 5)))
    said = draw(traffic(closed=limit is None))
    loads = [said["workload"]] if "workload" in said else [tenant["workload"] for tenant in said["tenants"]]
    talks = any(load["kind"] == "sessions" for load in loads)
    shares = talks or any(load.get("shared_prefix") for load in loads)
    routers = ["round_robin", "least_loaded", "power_of_two", "shared_queue", *(["session_affinity"] if talks else [])]
    cache = None
    if shares and draw(st.booleans()):
        routers.append("prefix_aware")
        host = draw(st.sampled_from([0.0, 2e10]))
        cache = {"share": draw(st.sampled_from([0.1, 0.5])), "host_bytes": host}
        cache |= {"storage_bytes": draw(st.sampled_from([0.0, 1e11])), "storage_bandwidth": 5e9}
    names = draw(st.sampled_from([["colocated"], ["prefill", "decode"]]))
    deployment: Keys = {name: draw(mixed_pools()) for name in names}
    deployment |= {
        "router": draw(st.sampled_from(routers)),
        "max_queue": limit,
        "prefix_cache": cache,
        "startup": {"start_s": draw(st.sampled_from([0.0, 0.2])), "load_s": 0.1},
        "faults": draw(maybe(faults(names))),
    }
    if len(names) > 1:
        deployment["decode_router"] = draw(st.sampled_from([None, "round_robin", "power_of_two", "kv_aware"]))
        deployment["first_token"] = draw(st.sampled_from([None, "prefill"]))
        deployment["transfer"] = draw(transfers(deployment))
    if draw(st.booleans()):
        deployment["power"] = {"idle": draw(st.sampled_from([0.0, 0.3])), "prefill": 0.9, "decode": 0.5}
    fraction = draw(st.sampled_from([0.0, 0.3]))
    slo = {"ttft_s": 0.5, "tpot_s": 0.05}
    seed = draw(st.integers(0, 10**6))
    return said | {"deployment": deployment, "slo": slo, "warmup_fraction": fraction, "seed": seed}


@pytest.fixture(scope="module")
def greedy_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("model") / "config.json"
    path.write_text(json.dumps(GREEDY))
    return str(path)


@given(keys=scenarios())
def test_invariants_of_whole_scenarios(greedy_model: str, keys: Keys) -> None:
    scenario = parse_scenario({"model": greedy_model} | keys)
    recorder = Recorder(grid_s=0.07)
    # The run itself refuses to end with a request open or KV held, and a request that would end twice.
    result = simulate(scenario, recorder=recorder)
    summary = result.summary().to_json()
    said_of(result)
    requests_end_as_they_may(result)
    tokens_are_accounted_for(result, recorder)
    every_request_stands_somewhere(result, recorder)
    instances_work_while_they_serve(result, recorder)
    groups_add_up(result, summary)
    sources_wait_for_answers(result)
    tenants_add_up(result, summary)
    json.dumps(summary, allow_nan=False)
    again = simulate(scenario)
    assert differences(again.summary().to_json(), summary) == {}
    assert again.requests.equals(result.requests)


@settings(max_examples=settings.default.max_examples // 5)
@given(first=scenarios(), second=scenarios())
def test_models_on_parts_of_a_cluster_run_as_if_alone(greedy_model: str, first: Keys, second: Keys) -> None:
    own = ("deployment", "slo", "workload", "tenants")
    models = [
        {"name": name, "model": greedy_model} | {key: keys[key] for key in own if key in keys}
        for name, keys in (("first", first), ("second", second))
    ]
    asked = parse_any({"cluster": {"gpus": dict.fromkeys(["h100", "h200", "b200"], 199)}, "models": models})
    assert isinstance(asked, SharedCluster)
    whole = simulate_shared(asked)
    json.dumps(whole.summary().to_json(), allow_nan=False)
    for part in whole.models.values():
        alone = simulate(part.scenario)
        assert part.result.summary().to_json() == alone.summary().to_json()
        assert part.result.requests.equals(alone.requests)


def said_of(result: SimulationResult) -> None:
    """What the examples came to, for --hypothesis-show-statistics."""
    log = result.run.log
    event(f"preemptions: {any(log.preemptions)}")
    event(f"retries: {any(log.retries)}")
    event(f"rejections: {bool(result.rejections)}")
    event(f"cache hits: {any(log.cached_tokens)}")
    event(f"transfers: {not np.isnan(log.delivered_s).all()}")
    event(f"mixed pools: {any(len(pool) > 1 for pool in result.spec.pools)}")


def requests_end_as_they_may(result: SimulationResult) -> None:
    """In order of their times, and finished, failed after a fault or rejected."""
    table = result.requests
    done = table[table["status"] == "finished"]
    assert set(table["status"]) <= {"finished", "failed", "rejected"}
    assert (table["status"] == "rejected").sum() == sum(result.rejections.values())
    assert (done["arrival_s"] <= done["prompt_end_s"] + EPS_S).all()
    assert (done["prompt_end_s"] <= done["first_token_s"]).all()
    assert (done["first_token_s"] <= done["finish_s"]).all()
    once = done[(done["output_tokens"] > 1) & (done["retries"] == 0)]
    if result.run.log.first_from_decode:
        assert (once["first_token_s"] > once["prompt_end_s"] + once["transfer_s"]).all()
    else:
        assert (done["prompt_end_s"] == done["first_token_s"]).all()
    assert (done["queue_s"] >= -EPS_S).all()
    assert (table.loc[table["status"] == "failed", "retries"] > 0).all()
    keys = result.spec.faults
    assert (done["retries"] <= (keys.retries if keys else 0)).all()


def tokens_are_accounted_for(result: SimulationResult, recorder: Recorder) -> None:
    """Output tokens come out once; prompt tokens are computed or found in a cache, again where KV was lost."""
    log = result.run.log
    emitted, wanted = np.array(log.emitted), result.output_tokens
    assert (emitted[result.finished] == wanted[result.finished]).all()
    assert (emitted[~result.finished] < wanted[~result.finished]).all()
    computed = sum(step.prompt_tokens for step in recorder.steps) + sum(log.cached_tokens)
    prompts = int(result.prompt_tokens[result.finished].sum())
    if any(log.preemptions) or any(log.retries):
        assert computed >= prompts
    else:
        assert computed == prompts
    # Without drafts a step emits a token to each sequence, and so does each end of a prompt, also one computed again.
    if all(pool.instance.rates == (1.0,) for pool in result.spec.groups):
        decoded = sum(step.sequences for step in recorder.steps)
        begun = int((~np.isnan(log.prompt_end_s)).sum())
        again = sum(log.preemptions) + sum(log.retries)
        assert begun <= emitted.sum() - decoded <= begun + again
    # Little's law: the time integral of running sequences is the sum of what each ran, all behind its prompt.
    decoded_s = float(np.nansum(result.finish_s - np.array(log.prompt_end_s)))
    integral = sum(usage.sequence_s for pool in result.run.end.usage.values() for usage in pool)
    assert integral <= decoded_s * (1 + EPS_S) + EPS_S


def every_request_stands_somewhere(result: SimulationResult, recorder: Recorder) -> None:
    """At each point of the grid, requests that were sent and have not ended are those that the series counts."""
    table = series(recorder, result)
    stages = table[["waiting", "prefilling", "transferring", "running"]].sum(axis=1)
    seen = stages.groupby(table["time_s"]).sum() + table.groupby("time_s")["unassigned"].first()
    grid = seen.index.to_numpy()
    sent, ended = (np.searchsorted(np.sort(times), grid, side="right") for times in (result.arrival_s, result.finish_s))
    np.testing.assert_array_equal(seen, sent - ended)
    assert ((table["kv_occupancy"] >= 0) & (table["kv_occupancy"] <= 1)).all()
    assert (table.loc[table["prefilling"] + table["running"] > 0, "kv_bytes"] > 0).all()


def instances_work_while_they_serve(result: SimulationResult, recorder: Recorder) -> None:
    """One step at a time, only while an instance serves; no integral of a group exceeds what there was of it."""
    run = result.run
    end_s = run.end.time_s
    for group in result.spec.groups:
        served = defaultdict(list)
        since: dict[int, float] = {}
        first = min(change.instance for change in run.changes[group.name])
        for change in run.changes[group.name]:
            serves = change.state in (State.UP, State.DRAINING)
            if serves:
                since.setdefault(change.instance, change.time_s)
            elif change.instance in since:
                served[change.instance].append((since.pop(change.instance), change.time_s))
        for i, begun_s in since.items():
            served[i].append((begun_s, end_s))
        steps = recorder.by_instance()
        for i, usage in enumerate(run.end.usage[group.name], start=first):
            own = steps.get((group.name, i), [])
            assert all(a.end_s <= b.start_s + EPS_S for a, b in pairwise(own))
            for step in own:
                assert any(a <= step.start_s and step.end_s <= b + EPS_S for a, b in served[i])
            assert sum(step.end_s - step.start_s for step in own) <= usage.busy_s * (1 + EPS_S) + EPS_S
        total = integrate(run.sizes[group.name], 0.0, end_s)
        assert total.serving == pytest.approx(sum(b - a for spans in served.values() for a, b in spans))
        room = group.instance.kv.capacity_bytes * group.instance.ranks
        usages = run.end.usage[group.name]
        assert sum(usage.busy_s for usage in usages) <= total.serving * (1 + EPS_S) + EPS_S
        assert sum(usage.kv_byte_s for usage in usages) <= room * (total.serving * (1 + EPS_S) + EPS_S)
        assert sum(usage.link_s for usage in usages) <= total.serving * (1 + EPS_S) + EPS_S
        scale = group.autoscale
        least, most = (1, group.count) if scale is None else (scale.minimum, scale.most)
        assert all(
            min(least, group.count) <= moment.allocated <= max(most, group.count) for moment in run.sizes[group.name]
        )


def groups_add_up(result: SimulationResult, summary: Keys) -> None:
    """Every request that got so far was computed by an instance of one group, and decoded by one of another."""
    spec, log = result.spec, result.run.log
    numbers = {name: {change.instance for change in changes} for name, changes in result.run.changes.items()}
    for pool in spec.pools:
        own = [numbers[group.name] for group in pool]
        assert sorted(set.union(*own)) == list(range(sum(map(len, own))))
        last = pool is spec.pools[-1]
        column = log.decode_instance if last else log.prefill_instance
        for seen, status in zip(column, log.status, strict=True):
            ended_at_prefill = spec.decode and pool is spec.decode
            assert seen >= 0 or status != Status.FINISHED or ended_at_prefill
            assert seen < sum(map(len, own))
        for group in pool:
            kv = group.instance.kv
            for request, seen in enumerate(column):
                if seen in numbers[group.name] and log.status[request] == Status.FINISHED:
                    assert kv.fits(1, log.prompt_tokens[request] + (log.output_tokens[request] if last else 1))
    assert bool(summary["groups"]) == any(len(pool) > 1 for pool in spec.pools)


def sources_wait_for_answers(result: SimulationResult) -> None:
    """Closed loops keep their concurrency, turns come their think time after the answer, offline work is there at 0."""
    for stream, share in zip(result.run.streams, result.shares, strict=True):
        arrival_s, finish_s = result.arrival_s[share.rows], result.finish_s[share.rows]
        if stream.concurrency is not None:
            moves = sorted([(t, 1) for t in arrival_s] + [(t, -1) for t in finish_s])
            assert max(np.cumsum([way for _, way in moves])) <= stream.concurrency
        if stream.offline:
            assert (arrival_s == 0).all()
        if stream.sessions is not None:
            plan = stream.sessions
            for first, beyond in pairwise(plan.first):
                turns = slice(first + 1, beyond)
                pauses = arrival_s[turns] - finish_s[first : beyond - 1]
                np.testing.assert_allclose(pauses, plan.think_s[turns], rtol=0, atol=EPS_S)


def tenants_add_up(result: SimulationResult, summary: Keys) -> None:
    throughput = summary["throughput"]
    assert throughput["goodput_requests_per_s"] <= throughput["requests_per_s"] * (1 + EPS_S)
    assert 0 <= throughput["attainment"] <= 1
    parts = summary["tenants"].values()
    assert sum(summary["requests"][end] for end in ("finished", "failed", "rejected")) == summary["requests"]["total"]
    if parts:
        for end, count in summary["requests"].items():
            assert sum(part["requests"][end] for part in parts) == count
        for name in ("input_tok_s", "output_tok_s", "requests_per_s", "goodput_requests_per_s"):
            assert sum(part["throughput"][name] for part in parts) == pytest.approx(throughput[name])

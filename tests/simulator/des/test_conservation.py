"""What must hold whatever the scenario: random clusters under random load."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.clusters import FormulaTimes, colocated, differences, disaggregated, make_instance, play

from simulator.des.cluster.recorder import Recorder
from simulator.des.instance.prefix_cache import StatePolicy, Tier
from simulator.des.workload.arrivals import change_time
from simulator.scenario import Bursts, Diurnal, Slo, Transfer


@st.composite
def pools(draw: st.DrawFn) -> dict[str, Any]:
    drafts = draw(st.integers(0, 3))
    spread = draw(st.sampled_from([0.0, 0.1])) if drafts else 0.0
    return {
        "capacity": float(draw(st.sampled_from([60, 150, 400, 10_000]))),
        "ranks": draw(st.integers(1, 3)),
        "max_tokens_per_step": draw(st.sampled_from([8, 64, 512])),
        "max_sequences": draw(st.sampled_from([1, 3, 16])),
        "draft_tokens": drafts,
        "acceptance_length": 1 + drafts * draw(st.floats(0.2, 0.8) if spread else st.floats(0, 1)),
        "acceptance_spread": spread,
        "batching": draw(st.sampled_from(["chunked", "prefill_first", "inflight"])),
    }


@st.composite
def loads(draw: st.DrawFn) -> dict[str, Any]:
    count = draw(st.integers(1, 40))
    longest = draw(st.sampled_from([120, 3000]))  # of the longer ones, several blocks are common
    prompts = draw(st.lists(st.integers(1, longest), min_size=count, max_size=count))
    load: dict[str, Any] = {
        "prompts": prompts,
        "outputs": draw(st.lists(st.integers(1, 50), min_size=count, max_size=count)),
        "blocks": [tuple(10 * draw(st.integers(0, 2)) + i for i in range(-(-tokens // 512))) for tokens in prompts],
    }
    if draw(st.booleans()):
        return load | {"concurrency": draw(st.integers(1, 8))}
    ticks = np.cumsum(draw(st.lists(st.floats(0, 5), min_size=count, max_size=count)))
    if not ticks[-1]:
        return load | {"arrivals": ticks.tolist()}
    diurnal = draw(st.none() | st.builds(Diurnal, trough=st.floats(0.1, 1), period_s=st.floats(1, 50)))
    bursts = draw(st.none() | st.builds(Bursts, burst_s=st.floats(0.1, 3), quiet_s=st.floats(0.1, 3)))
    return load | {"arrivals": change_time(ticks, 10.0, diurnal, bursts, draw(st.integers(0, 99))).tolist()}


caches = st.fixed_dictionaries(
    {
        "cache_tiers": st.lists(st.builds(Tier, st.integers(0, 12), st.sampled_from([0.0, 0.001])), max_size=3).map(
            tuple
        ),
        "cache_block_bytes": st.sampled_from([0.0, 30.0, 512.0]),
        "cache_policy": st.builds(StatePolicy, st.sampled_from([1, 700]), st.sampled_from([0, 100])),
    }
)


@given(
    first=pools(),
    second=pools(),
    cache=caches,
    load=loads(),
    counts=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    router=st.sampled_from(["round_robin", "least_loaded", "power_of_two", "shared_queue", "prefix_aware"]),
    decode_router=st.sampled_from([None, "round_robin", "least_loaded", "power_of_two", "kv_aware"]),
    max_queue=st.none() | st.integers(0, 5),
    split=st.booleans(),
    warmup=st.integers(0, 5),
    transfer=st.builds(
        lambda spine, **keys: Transfer(**spine, **keys),
        st.sampled_from([{}, {"oversubscription": 4.0}, {"oversubscription": 4.0, "rails": 2}]),
        efficiency=st.just(1.0),
        handshake_s=st.sampled_from([0.0, 0.001]),
        half_rate_bytes=st.sampled_from([0.0, 50.0]),
        overlap=st.sampled_from(["none", "layerwise"]),
        staged=st.booleans(),
    ),
)
def test_every_request_ends_once_and_nothing_is_left_behind(
    first: dict[str, Any],
    second: dict[str, Any],
    cache: dict[str, Any],
    load: dict[str, Any],
    counts: tuple[int, int],
    router: str,
    decode_router: str | None,
    max_queue: int | None,
    split: bool,
    warmup: int,
    transfer: Transfer,
) -> None:
    cost = FormulaTimes(1e-3, 0.01, 1e-4, 1e-6, caps=(16, 64))
    if split:
        spec = disaggregated(
            make_instance(cost, nic_bandwidth=1e4, **first, **cache),
            make_instance(cost, nic_bandwidth=1e4, **second),
            counts=counts,
            router=router,
            decode_router=decode_router,
            max_queue=max_queue,
            transfer=transfer,
            layers=3,
            transfer_bytes=lambda tokens: 20.0 * tokens,
        )
    else:
        spec = colocated(make_instance(cost, **first, **cache), counts[0], router, max_queue=max_queue)
    # The run itself refuses to end with a request open or KV held, and a request that would end twice.
    recorder = Recorder()
    result = play(spec, **load, warmup=warmup, slo=Slo(ttft_s=0.5, tpot_s=0.05), recorder=recorder)
    summary = result.summary().to_json()
    table = result.requests
    done = table[table["status"] == "finished"]
    counted = summary["requests"]
    assert counted["total"] == len(load["prompts"]) == counted["finished"] + counted["rejected"] + counted["failed"]
    assert counted["rejected"] == sum(result.rejections.values())
    assert summary["tokens_in"] == done["prompt_tokens"].sum()
    assert result.run.log.emitted == [
        o if s == "finished" else 0 for o, s in zip(load["outputs"], table["status"], strict=True)
    ]
    assert (done["arrival_s"] <= done["first_token_s"]).all()
    assert (done["first_token_s"] <= done["finish_s"]).all()
    assert (done["queue_s"] >= -1e-12).all()  # an arrival is now + what is left to it, rounded
    for pool in summary["utilization"].values():
        assert 0 <= pool["busy_fraction"] <= 1 + 1e-9
        assert 0 <= pool["kv_occupancy"] <= 1 + 1e-9
        assert 0 <= pool["link_fraction"] <= 1 + 1e-9
    # The books themselves, which no reported share has cut to 1.
    end = result.run.end
    for pool_spec in spec.groups:
        room = pool_spec.instance.kv.capacity_bytes * pool_spec.instance.ranks
        for usage in end.usage[pool_spec.name]:
            assert max(usage.busy_s, usage.link_s, usage.kv_byte_s / room) <= end.time_s * (1 + 1e-9)
            assert 0 <= usage.prefill_s <= usage.busy_s * (1 + 1e-9)
            assert usage.sequence_s <= pool_spec.instance.max_sequences * usage.busy_s * (1 + 1e-9)
    rooms = {pool.name: pool.instance.kv.capacity_bytes * pool.instance.ranks for pool in spec.groups}
    assert all(step.kv_bytes + step.cached_bytes <= rooms[step.group] for step in recorder.steps)
    recomputed = bool(summary["preemptions"])
    # Every prompt token is computed once or found in a cache; preempted sequences are computed again.
    computed = sum(step.prompt_tokens for step in recorder.steps) + summary["cached_tokens"]
    assert computed > summary["tokens_in"] if recomputed else computed == summary["tokens_in"]
    # Little's law for running sequences: their integral over time is the sum of what each spent in decode.
    decode_s = (done["finish_s"] - done["first_token_s"]).sum()
    integral = sum(usage.sequence_s for pool in end.usage.values() for usage in pool)
    if split or recomputed:  # some of that time passes on the wire, in a queue or in prefill
        assert integral <= decode_s * (1 + 1e-9)
    else:
        assert integral == pytest.approx(decode_s, rel=1e-9)
    json.dumps(summary, allow_nan=False)
    throughput = summary["throughput"]
    assert throughput["goodput_requests_per_s"] <= throughput["requests_per_s"] * (1 + 1e-9)
    again = play(spec, **load, warmup=warmup, slo=Slo(ttft_s=0.5, tpot_s=0.05))
    assert differences(again.summary().to_json(), summary) == {}
    assert again.requests.equals(table)

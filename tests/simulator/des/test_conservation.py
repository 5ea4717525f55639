"""What must hold whatever the scenario: random clusters under random load."""

import json
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.des.scenario import Slo, Transfer

SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


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
    load: dict[str, Any] = {
        "prompts": draw(st.lists(st.integers(1, 120), min_size=count, max_size=count)),
        "outputs": draw(st.lists(st.integers(1, 50), min_size=count, max_size=count)),
    }
    if draw(st.booleans()):
        gaps = draw(st.lists(st.floats(0, 0.5), min_size=count, max_size=count))
        return load | {"arrivals": np.cumsum(gaps).tolist()}
    return load | {"concurrency": draw(st.integers(1, 8))}


@SETTINGS
@given(
    first=pools(),
    second=pools(),
    load=loads(),
    counts=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    router=st.sampled_from(["round_robin", "least_loaded", "power_of_two", "shared_queue"]),
    split=st.booleans(),
    warmup=st.integers(0, 5),
    transfer=st.builds(
        Transfer,
        efficiency=st.just(1.0),
        handshake_s=st.sampled_from([0.0, 0.001]),
        half_rate_bytes=st.sampled_from([0.0, 50.0]),
        overlap=st.sampled_from(["none", "layerwise"]),
        oversubscription=st.sampled_from([1.0, 4.0]),
    ),
)
def test_every_request_ends_once_and_nothing_is_left_behind(
    times: Any,
    instance: Any,
    colocated: Any,
    disaggregated: Any,
    play: Any,
    first: dict[str, Any],
    second: dict[str, Any],
    load: dict[str, Any],
    counts: tuple[int, int],
    router: str,
    split: bool,
    warmup: int,
    transfer: Transfer,
) -> None:
    cost = times(1e-3, 0.01, 1e-4, 1e-6, caps=(16, 64))
    if split:
        spec = disaggregated(
            instance(cost, nic_bandwidth=1e4, **first),
            instance(cost, nic_bandwidth=1e4, **second),
            counts=counts,
            router=router,
            transfer=transfer,
            layers=3,
            transfer_bytes=lambda tokens: 20.0 * tokens,
        )
    else:
        spec = colocated(instance(cost, **first), counts[0], router)
    # The run itself refuses to end with a request open or KV held, and a request that would end twice.
    result = play(spec, **load, warmup=warmup, slo=Slo(ttft_s=0.5, tpot_s=0.05))
    summary = result.summary()
    table = result.requests
    done = table[table["status"] == "finished"]
    counted = summary["requests"]
    assert counted["total"] == len(load["prompts"]) == counted["finished"] + counted["rejected"] + counted["failed"]
    assert counted["rejected"] == sum(result.rejections.values())
    assert summary["tokens_in"] == done["prompt_tokens"].sum()
    assert result.run.journal.emitted == [
        o if s == "finished" else 0 for o, s in zip(load["outputs"], table["status"], strict=True)
    ]
    assert (done["arrival_s"] <= done["first_token_s"]).all()
    assert (done["first_token_s"] <= done["finish_s"]).all()
    assert (done["queue_s"] >= 0).all()
    for pool in summary["utilization"].values():
        assert 0 <= pool["busy_fraction"] <= 1 + 1e-9
        assert 0 <= pool["kv_occupancy"] <= 1 + 1e-9
        assert 0 <= pool["link_fraction"] <= 1 + 1e-9
    for usages in result.run.end.usage.values():
        assert all(u.busy_s <= result.run.end.time_s * (1 + 1e-9) for u in usages)
        assert all(0 <= u.prefill_s <= u.busy_s * (1 + 1e-9) for u in usages)
    json.dumps(summary, allow_nan=False)
    throughput = summary["throughput"]
    assert throughput["goodput_requests_per_s"] <= throughput["requests_per_s"] * (1 + 1e-9)
    again = play(spec, **load, warmup=warmup, slo=Slo(ttft_s=0.5, tpot_s=0.05))
    assert again.summary() == summary
    assert again.requests.equals(table)

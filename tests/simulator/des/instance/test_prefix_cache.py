import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.clusters import FormulaTimes, colocated, disaggregated, make_instance, play

from simulator.des.cluster.cluster import Cluster
from simulator.des.cluster.recorder import Recorder
from simulator.des.instance.prefix_cache import (
    Hit,
    Loss,
    PrefixCache,
    StatePolicy,
    Tier,
    replayed_hit_rate,
)
from simulator.des.simulate import simulate
from simulator.des.workload.requests import Requests, draw_blocks
from simulator.scenario import (
    Autoscale,
    Faults,
    Outages,
    PlannedFault,
    ScenarioError,
    ScheduledCount,
    SharedPrefix,
    Trace,
    parse_scenario,
)
from simulator.traces.columns import BLOCK_TOKENS
from simulator.traces.reading import read_trace


def store(cache: PrefixCache, blocks: list[int]) -> Hit:
    """A request that comes when no other is there."""
    hit = cache.take(0, blocks)
    cache.keep(0, blocks)
    cache.release(0)
    return hit


def test_tiers_pass_down_what_they_forget_and_take_back_what_is_used() -> None:
    cache = PrefixCache([Tier(2), Tier(2, load_s=0.5)])
    store(cache, [1, 2])
    store(cache, [3])  # 2 is the older prompt's last block: it goes down first
    assert cache.peek([1, 2, 9]) == 2
    assert store(cache, [1, 2]) == (2, 0.5)
    assert store(cache, [1, 2]) == (2, 0.0)  # both are up again, and 3 went down
    assert store(cache, [3]) == (1, 0.5)
    store(cache, [4, 5])
    store(cache, [6, 7])  # room for four in all: the oldest are gone
    assert len(cache) == 4
    assert cache.peek([1]) == cache.peek([3]) == 0


def test_blocks_in_use_take_no_room_and_stay_until_the_last_request_has_gone() -> None:
    cache = PrefixCache([Tier(None)], block_bytes=10.0)
    cache.fit(20.0)
    assert cache.take(1, [1, 2, 3]) == (0, 0.0)
    assert cache.take(2, [1, 2]) == (0, 0.0)  # not computed yet
    cache.keep(1, [1, 2, 3])
    assert cache.take(3, [1, 2, 3, 4]) == (3, 0.0)
    cache.keep(2, [1, 2])
    assert cache.kept_bytes == 0.0
    cache.fit(0.0)
    cache.release(1)
    assert cache.peek([1, 2, 3]) == 3  # request 3 uses them
    cache.fit(20.0)
    cache.release(3)  # 1 and 2 are still used by request 2
    assert (cache.peek([1, 2, 3, 4]), cache.kept_bytes) == (3, 10.0)
    cache.release(2)  # room for two
    assert (cache.peek([1, 2, 3]), cache.kept_bytes) == (2, 20.0)
    cache.fit(19.0)
    assert cache.peek([1, 2]) == 1
    cache.lose(Loss.INSTANCE)
    assert cache.peek([1]) == len(cache) == 0


def test_requests_take_the_room_that_they_need_from_past_prompts() -> None:
    """Room for 4096 tokens. A and B are prompts of 1023 tokens and one to emit; one of 2500 comes between.

    It leaves room for three blocks: of A and B, used in this order, A's last is forgotten.
    """
    server = make_instance(
        FormulaTimes(per_prompt_token_s=1e-3), 4096.0, cache_tiers=(Tier(None),), cache_block_bytes=512.0
    )
    a, b = (1, 2), (3, 4)
    big = (10, 11, 12, 13, 14)
    blocks = [a, b, big, b, a]
    prompts = [1023, 1023, 2500, 1023, 1023]
    recorder = Recorder()
    result = play(colocated(server), prompts, [1] * 5, np.arange(5) * 10.0, blocks=blocks, recorder=recorder)
    # B is found whole, but its last token is computed; A's first block has outlived B's second run, beside the five
    # of the long prompt; these give way to A.
    assert result.run.log.cached_tokens == [0, 0, 0, 1022, 512]
    assert [step.cached_bytes / 512 for step in recorder.steps] == [2, 4, 8, 8, 8]
    assert [step.kv_bytes for step in recorder.steps] == [0] * 5
    capped = replace(server, cache_tiers=(Tier(2),))
    result = play(colocated(capped), prompts, [1] * 5, np.arange(5) * 10.0, blocks=blocks)
    assert result.run.log.cached_tokens == [0] * 5


chains = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 2500)), min_size=2, max_size=25)


@given(
    chains,
    st.sampled_from([2600.0, 4000.0, 9000.0]),
    st.integers(1, 2),
    st.booleans(),
    st.sampled_from(["chunked", "prefill_first", "inflight"]),
    st.sampled_from([None, 5.0]),
)
def test_running_and_cached_kv_share_the_room_at_all_times(
    prompts: list[tuple[int, int]],
    capacity: float,
    ranks: int,
    split: bool,
    batching: str,
    mtbf_s: float | None,
) -> None:
    server = make_instance(
        FormulaTimes(1e-4, 0.005),
        capacity,
        ranks=ranks,
        batching=batching,
        cache_tiers=(Tier(None), Tier(4)),
        cache_block_bytes=512.0,
        nic_bandwidth=1e5,
    )
    faults = None if mtbf_s is None else Faults(instance=Outages(mtbf_s=mtbf_s, mttr_s=0.1), retry_delay_s=0.1)
    spec = (
        disaggregated(server, make_instance(FormulaTimes(), capacity), (2, 1), transfer_bytes=float)
        if split
        else colocated(server, 2)
    )
    tokens = np.array([tokens for _, tokens in prompts])
    requests = Requests(
        tokens,
        np.full(len(prompts), 60),
        np.arange(len(prompts)) * 0.02,
        blocks=[tuple(10 * group + i for i in range(-(-tokens // 512))) for group, tokens in prompts],
    )
    cluster = Cluster(replace(spec, faults=faults), requests, np.random.default_rng(0))
    seen = []

    def look() -> Any:
        while True:
            yield cluster.env.timeout(0.0037)
            for server in cluster.serving.entry:
                held = sum(rank.used_bytes(server.batch.tick) for rank in server.batch.ranks)
                assert held + server.cached_bytes <= capacity * ranks
                seen.append(server.cached_bytes)

    cluster.env.process(look())
    cluster.run()
    assert seen


def test_with_room_for_everything_a_server_hits_as_the_ideal_cache_does() -> None:
    """Prompts one after the other, whole blocks and one token: each block is found or computed."""
    rng = np.random.default_rng(4)
    chains = [tuple(int(100 * group + i) for i in range(length)) for group, length in rng.integers(0, 7, (80, 2)) + 1]
    server = make_instance(FormulaTimes(1e-5), 1e9, cache_tiers=(Tier(None),), cache_block_bytes=512.0)
    result = play(
        colocated(server), [512 * len(chain) + 1 for chain in chains], [2] * 80, np.arange(80.0), blocks=chains
    )
    hits = sum(result.run.log.cached_tokens) / 512 / sum(map(len, chains))
    assert hits == pytest.approx(replayed_hit_rate(chains))
    assert hits > 0.5


@settings(max_examples=50)
@given(st.lists(st.lists(st.integers(0, 3), max_size=6), max_size=30))
def test_the_ideal_hit_rate_is_that_of_longest_common_prefixes(prompts: list[list[int]]) -> None:
    """Oracle: a trie's paths as tuples. Ids are given per path, as the traces do."""
    ids: dict[tuple[int, ...], int] = {}
    chains, hits = [], 0
    for prompt in prompts:
        paths = [tuple(prompt[: i + 1]) for i in range(len(prompt))]
        hits += sum(path in ids for path in paths)
        chains.append([ids.setdefault(path, len(ids)) for path in paths])
    total = sum(map(len, prompts))
    assert replayed_hit_rate(chains) == pytest.approx(hits / total if total else 0.0)


def test_hash_ids_of_a_trace_are_read_in_order_of_arrival(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    rows = [(2000, [0, 3]), (1000, [0, 1, 2])]
    lines = [{"timestamp": t, "input_length": 500 * len(b), "output_length": 2, "hash_ids": b} for t, b in rows]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert read_trace(Trace(path=path)).blocks == [(0, 1, 2), (0, 3)]
    path.write_text(json.dumps(lines[0] | {"hash_ids": "abc"}))
    with pytest.raises(ScenarioError, match="line 1, column hash_ids: abc is not a list of whole numbers"):
        read_trace(Trace(path=path))


@pytest.mark.parametrize(("policy", "computed"), [({}, 476), ({"interval": 1000}, 500), ({"tail_tokens": 100}, 576)])
def test_a_second_equal_beginning_is_spared(policy: dict[str, int], computed: int) -> None:
    """1,500 tokens of which two blocks are known: 476 are left, more where state must be rebuilt."""
    server = make_instance(
        FormulaTimes(per_prompt_token_s=1e-3),
        cache_tiers=(Tier(0), Tier(None, load_s=0.25)),
        cache_policy=StatePolicy(**policy),
    )
    tokens = np.array([1500, 1500])
    requests = Requests(tokens, np.array([1, 1]), np.array([0.0, 10.0]), blocks=[(1, 2, 3), (1, 2, 4)])
    run = Cluster(colocated(server), requests, np.random.default_rng(0)).run()
    assert run.log.cached_tokens == [0, 1500 - computed]
    # Both blocks come from the lower tier.
    assert run.log.finish_s == pytest.approx([1.5, 10.0 + computed * 1e-3 + 0.5])


def test_drawn_blocks_share_whole_blocks_within_a_group_only() -> None:
    prompts = np.array([2000, 100, 5000, 1100])
    drawn = draw_blocks(SharedPrefix(tokens=1300), prompts, np.random.default_rng(0))
    assert [len(blocks) for blocks in drawn] == [4, 1, 10, 3]
    assert drawn[0][:2] == drawn[2][:2] == drawn[3][:2] == (0, 1)
    own = [b for blocks in drawn for b in blocks if b > 1]
    assert len(own) == len(set(own)) == 18 - 6


LOAD = {"kind": "open_loop", "rate": 2.0, "requests": 120, "prompt": 4000, "output": 20}
PREFIX = {"shared_prefix": {"tokens": 2048, "groups": 4}}


def scenario(load: dict[str, Any], cache: dict[str, Any] | None, router: str = "least_loaded") -> Any:
    pool = {"gpu": "h200_sxm", "tp": 8, "instances": 4}
    deployment = {"colocated": pool, "router": router} | ({} if cache is None else {"prefix_cache": cache})
    return parse_scenario({"model": "qwen3-235b-a22b", "workload": load, "deployment": deployment})


def test_prefix_aware_routing_hits_more_and_answers_sooner_than_turns() -> None:
    cold, turns, aware = (
        simulate(scenario(LOAD | PREFIX, cache, router)).summary().to_json()
        for cache, router in [(None, "round_robin"), ({}, "round_robin"), ({}, "prefix_aware")]
    )
    assert cold["cached_tokens"] == 0 < turns["cached_tokens"] < aware["cached_tokens"]
    # Each group misses at least once somewhere; no hit is longer than the shared blocks.
    assert aware["cached_tokens"] <= (120 - 4) * 2048
    means = [summary["metrics"]["ttft_s"]["mean"] for summary in (cold, turns, aware)]
    assert means[0] > means[1] > means[2]


def test_a_cache_without_block_names_is_refused() -> None:
    with pytest.raises(ScenarioError, match="names no prompt blocks"):
        simulate(scenario(LOAD, {}))
    with pytest.raises(ScenarioError, match="router=prefix_aware needs a cache"):
        scenario(LOAD, None, "prefix_aware")
    assert BLOCK_TOKENS == 512


@pytest.mark.parametrize(("kind", "survives"), [("instance", [False, True, True]), ("node", [False, False, True])])
@pytest.mark.parametrize("holder", [0, 1, 2])
def test_a_fault_takes_the_tiers_that_die_with_it(kind: Any, survives: list[bool], holder: int) -> None:
    """Accelerators, host memory, storage: one tier keeps everything, the others nothing."""
    lost_by = (Loss.INSTANCE, Loss.NODE, Loss.RELEASE)
    tiers = tuple(Tier(None if i == holder else 0, lost_by=loss) for i, loss in enumerate(lost_by))
    down = PlannedFault(kind=kind, pool="colocated", index=0, at_s=5.0, duration_s=1.0)
    spec = colocated(make_instance(FormulaTimes(), cache_tiers=tiers), faults=Faults(events=(down,)))
    requests = Requests(np.array([1500] * 2), np.array([1] * 2), np.array([0.0, 10.0]), blocks=[(1, 2, 3)] * 2)
    run = Cluster(spec, requests, np.random.default_rng(0)).run()
    assert run.log.cached_tokens == [0, 1499 if survives[holder] else 0]


def test_an_instance_that_is_given_back_comes_without_its_cache() -> None:
    """Both instances serve one prompt; the second one leaves at 10 s and is added again at 20 s."""
    spec = colocated(
        make_instance(FormulaTimes(), cache_tiers=(Tier(0), Tier(None, lost_by=Loss.RELEASE))), 2, "round_robin"
    )
    scale = Autoscale(schedule=(ScheduledCount(at_s=10, instances=1), ScheduledCount(at_s=20, instances=2)))
    requests = Requests(np.array([500] * 3), np.array([1] * 3), np.array([0.0, 1.0, 30.0]), blocks=[(1,), (1,), (2,)])
    cluster = Cluster(
        replace(spec, entry=(replace(spec.entry[0], autoscale=scale),)), requests, np.random.default_rng(0)
    )
    cluster.run()
    assert [server.cache.peek([1]) for server in cluster.serving.entry if server.cache is not None] == [1, 0]

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.des.cluster import simulate
from simulator.des.prefix_cache import BLOCK_TOKENS, Loss, PrefixCache, StatePolicy, Tier, ideal_hit_rate
from simulator.des.run import Cluster
from simulator.des.scenario import (
    Autoscale,
    Faults,
    PlannedFault,
    ScenarioError,
    ScheduledCount,
    SharedPrefix,
    parse_scenario,
)
from simulator.des.traces import read_trace
from simulator.des.workload import Requests, draw_blocks


def test_tiers_pass_down_what_they_forget_and_take_back_what_is_used() -> None:
    cache = PrefixCache([Tier(2), Tier(2, load_s=0.5)])
    cache.insert([1, 2])
    cache.insert([3])  # 2 is the older prompt's last block: it goes down first
    assert cache.take([1, 2, 9]) == (2, 0.5)
    assert cache.take([1, 2]) == (2, 0.0)  # both are up again, and 3 went down
    assert cache.take([3]) == (1, 0.5)
    cache.insert([4, 5])
    cache.insert([6, 7])  # room for four in all: the oldest are gone
    assert len(cache) == 4
    assert cache.peek([1]) == cache.peek([3]) == 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), max_size=6), max_size=30))
def test_ideal_hit_rate_is_that_of_longest_common_prefixes(prompts: list[list[int]]) -> None:
    """Oracle: a trie's paths as tuples. Ids are given per path, as the traces do."""
    ids: dict[tuple[int, ...], int] = {}
    chains, hits = [], 0
    for prompt in prompts:
        paths = [tuple(prompt[: i + 1]) for i in range(len(prompt))]
        hits += sum(path in ids for path in paths)
        chains.append([ids.setdefault(path, len(ids)) for path in paths])
    total = sum(map(len, prompts))
    assert ideal_hit_rate(chains) == pytest.approx(hits / total if total else 0.0)


def test_hash_ids_of_a_trace_are_read_in_order_of_arrival(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    rows = [(2000, [0, 3]), (1000, [0, 1, 2])]
    lines = [{"timestamp": t, "input_length": 900, "output_length": 2, "hash_ids": b} for t, b in rows]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert read_trace(path).blocks == [(0, 1, 2), (0, 3)]
    path.write_text(json.dumps(lines[0] | {"hash_ids": "abc"}))
    with pytest.raises(ScenarioError, match="line 1, column hash_ids: abc is not a list of whole numbers"):
        read_trace(path)


@pytest.mark.parametrize(("policy", "computed"), [({}, 476), ({"interval": 1000}, 500), ({"tail_tokens": 100}, 576)])
def test_a_second_equal_beginning_is_spared(
    times: Any, instance: Any, colocated: Any, policy: dict[str, int], computed: int
) -> None:
    """1,500 tokens of which two blocks are known: 476 are left, more where state must be rebuilt."""
    server = instance(
        times(per_prompt_token_s=1e-3),
        cache_tiers=(Tier(0), Tier(None, load_s=0.25)),
        cache_policy=StatePolicy(**policy),
    )
    tokens = np.array([1500, 1500])
    requests = Requests(tokens, np.array([1, 1]), np.array([0.0, 10.0]), blocks=[(1, 2, 3), (1, 2, 4)])
    run = Cluster(colocated(server), requests, np.random.default_rng(0)).run()
    assert run.journal.cached_tokens == [0, 1500 - computed]
    # Both blocks come from the lower tier.
    assert run.journal.finish_s == pytest.approx([1.5, 10.0 + computed * 1e-3 + 0.5])


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
        simulate(scenario(LOAD | PREFIX, cache, router)).summary()
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
def test_a_fault_takes_the_tiers_that_die_with_it(
    times: Any, instance: Any, colocated: Any, kind: Any, survives: list[bool], holder: int
) -> None:
    """Accelerators, host memory, storage: one tier keeps everything, the others nothing."""
    lost_by = (Loss.INSTANCE, Loss.NODE, Loss.RELEASE)
    tiers = tuple(Tier(None if i == holder else 0, lost_by=loss) for i, loss in enumerate(lost_by))
    down = PlannedFault(kind=kind, pool="colocated", index=0, at_s=5.0, duration_s=1.0)
    spec = colocated(instance(times(), cache_tiers=tiers), faults=Faults(events=(down,)))
    requests = Requests(np.array([1500] * 2), np.array([1] * 2), np.array([0.0, 10.0]), blocks=[(1, 2, 3)] * 2)
    run = Cluster(spec, requests, np.random.default_rng(0)).run()
    assert run.journal.cached_tokens == [0, 1499 if survives[holder] else 0]


def test_an_instance_that_is_given_back_comes_without_its_cache(times: Any, instance: Any, colocated: Any) -> None:
    """Both instances serve one prompt; the second one leaves at 10 s and is added again at 20 s."""
    spec = colocated(instance(times(), cache_tiers=(Tier(0), Tier(None, lost_by=Loss.RELEASE))), 2, "round_robin")
    scale = Autoscale(schedule=(ScheduledCount(at_s=10, instances=1), ScheduledCount(at_s=20, instances=2)))
    requests = Requests(np.array([500] * 3), np.array([1] * 3), np.array([0.0, 1.0, 30.0]), blocks=[(1,), (1,), (2,)])
    cluster = Cluster(replace(spec, entry=replace(spec.entry, autoscale=scale)), requests, np.random.default_rng(0))
    cluster.run()
    assert [instance.cache.peek([1]) for instance in cluster.entry if instance.cache is not None] == [1, 0]

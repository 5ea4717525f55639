"""Engines over several processes, tensors exchanged by gloo: the same tokens as one rank."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from runtime.backend import run_requests
from runtime.config.parallel import Parallelism
from runtime.config.reading import read_config
from runtime.config.spec import ConfigError, ModelConfig
from runtime.disaggregation import DisaggregatedConfig, DisaggregatedEngine
from runtime.engine import Engine, EngineConfig
from runtime.ranked_engine import RankedEngine
from runtime.sequence import Request, SamplingParams
from runtime.worker import WorkerSpec

# A quarter of a minute each.
NIGHT = pytest.mark.skipif(os.environ.get("HYPOTHESIS_PROFILE") != "night", reason="run by make test-night")
MakeRequests = Callable[[list[list[int]], list[SamplingParams]], list[Request]]
Tokens = list[tuple[int, ...]]


def spec_of(config: ModelConfig, parallel: Parallelism, **changes: Any) -> WorkerSpec:
    settings = {"num_blocks": 24, "block_size": 16, "num_snapshots": 2, "max_num_seqs": 4}
    limits = EngineConfig(**(settings | {"max_num_batched_tokens": 40} | changes))
    return WorkerSpec(config, limits, seed=1, parallel=parallel)


def load(make_requests: MakeRequests, count: int = 7) -> list[Request]:
    random = np.random.default_rng(2)
    prompts = [random.integers(0, 290, size=int(n)).tolist() for n in random.integers(1, 90, size=count)]
    return make_requests(prompts, [SamplingParams(3 + 3 * (i % 3), 0.7 * (i % 2), seed=i, ignore_eos=True)
                                   for i in range(count)])  # fmt: skip


def tokens_of(backend: Any, requests: list[Request]) -> Tokens:
    outputs = run_requests(backend, requests)
    assert all(output.error is None for output in outputs)
    return [output.token_ids for output in outputs]


def alone(config: ModelConfig, requests: list[Request], **changes: Any) -> Tokens:
    engine = spec_of(config, Parallelism(), **changes).build()
    assert isinstance(engine, Engine)
    tokens = tokens_of(engine, requests)
    engine.close()
    return tokens


@pytest.mark.parametrize(
    ("nano_config", "parallel"),
    [
        ("v4", Parallelism(2, 2, 4)),
        ("v3", Parallelism(1, 2, 2)),
        pytest.param("qwen3", Parallelism(4, 1, 1), marks=NIGHT),  # more ranks than KV heads
    ],
    indirect=["nano_config"],
)
def test_same_tokens_as_one_rank(nano_config: ModelConfig, parallel: Parallelism, make_requests: MakeRequests) -> None:
    requests = load(make_requests)
    engine = spec_of(nano_config, parallel).build()
    assert isinstance(engine, RankedEngine)
    try:
        tokens = tokens_of(engine, requests)
        busy = [len(replica.step_records) for replica in engine.replicas]
    finally:
        engine.close()
    assert tokens == alone(nano_config, requests)
    assert all(busy), "every replica served something"


@pytest.mark.parametrize(
    ("nano_config", "parallel"),
    [("v4", Parallelism(1, 2, 2)), pytest.param("qwen3", Parallelism(2, 1, 2), marks=NIGHT)],
    indirect=["nano_config"],
)
def test_disaggregated_ranks_say_the_same(
    nano_config: ModelConfig, parallel: Parallelism, make_requests: MakeRequests
) -> None:
    """Two prefill and two decode ranks; Qwen3's KV heads are gathered on their way."""
    requests = load(make_requests)
    with DisaggregatedEngine(spec_of(nano_config, parallel), DisaggregatedConfig(1, 1)) as proxy:
        tokens = tokens_of(proxy, requests)
    assert tokens == alone(nano_config, requests)


def test_ranks_keep_packed_caches(nano_v4: dict[str, Any], make_requests: MakeRequests) -> None:
    config, requests = read_config(nano_v4), load(make_requests)
    packed = {"kv_cache_dtype": "fp8", "index_dtype": "fp4"}
    engine = spec_of(config, Parallelism(2, 1, 1), **packed).build()
    try:
        tokens = tokens_of(engine, requests)
    finally:
        engine.close()
    assert tokens == alone(config, requests, **packed)


def test_a_rank_that_dies_ends_the_engine(nano_qwen3: dict[str, Any], make_requests: MakeRequests) -> None:
    engine = spec_of(read_config(nano_qwen3), Parallelism(2, 1, 1)).build()
    assert isinstance(engine, RankedEngine)
    try:
        for request in load(make_requests, 1):
            engine.add_request(request)
        engine._group._processes[0].kill()
        with pytest.raises(RuntimeError, match="rank 0 ended"):
            run_requests(engine, [])
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("nano_config", "parallel", "message"),
    [
        ("v4", Parallelism(3), "--tp 3 does not divide num_attention_heads=4; use a divisor"),
        ("v4", Parallelism(4), "--tp 4 does not divide o_groups=2"),
        ("v4", Parallelism(2, 2, 2), "--ep 2 is neither 1 nor --tp x --dp = 4"),
        ("v3", Parallelism(1, 3, 3), "--ep 3 does not divide the routed experts=8"),
        ("v3", Parallelism(0), "--tp 0 cannot serve"),
    ],
    indirect=["nano_config"],
)
def test_sizes_that_do_not_fit_are_refused(nano_config: ModelConfig, parallel: Parallelism, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parallel.check(nano_config)

"""The engine with a real (tiny) model: whatever the batching, each request gets the tokens it would get alone."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from runtime import models
from runtime.backend import run_requests
from runtime.cache import KVCache, SequenceInput
from runtime.config.spec import ModelConfig
from runtime.engine import Engine, EngineConfig
from runtime.model_runner import ModelRunner
from runtime.sampler import sample_tokens
from runtime.sequence import RequestError, RequestOutput, SamplingParams, SettingError

BLOCK = 16
families = pytest.mark.parametrize("nano_config", ["v4", "v3", "qwen3"], indirect=True)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def make_engine(config: ModelConfig, **changes: Any) -> Engine:
    settings = {"num_blocks": 64, "block_size": BLOCK, "num_snapshots": 4, "max_num_seqs": 4}
    settings |= {"max_num_batched_tokens": 40} | changes
    return Engine.build(config, EngineConfig(**settings), seed=1)


def prompts_of(lengths: list[int], seed: int = 0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(0, 290, size=length).tolist() for length in lengths]


def tokens_of(outputs: list[RequestOutput]) -> list[tuple[int, ...]]:
    return [output.token_ids for output in outputs]


def generate_alone(config: ModelConfig, prompt: list[int], sampling: SamplingParams) -> tuple[int, ...]:
    """Every token from a whole new prefill: no scheduler, no reuse, no decode step."""
    runner_cache = KVCache(config, 32, 1, BLOCK, "cpu", torch.float32)
    runner = ModelRunner(models.build(config, seed=1, device="cpu", dtype=torch.float32), runner_cache)
    tokens = list(prompt)
    for position in range(sampling.max_tokens):
        runner_cache.reset_slot(0)
        logits = runner.step([SequenceInput(tuple(tokens), 0, tuple(range(-(-len(tokens) // BLOCK))), 0)])
        tokens += sample_tokens(logits, [sampling], [position])
        if tokens[-1] in config.eos_token_ids and not sampling.ignore_eos:
            break
    return tuple(tokens[len(prompt) :])


@families
def test_batched_chunked_and_decoded_equals_each_alone(nano_config: ModelConfig) -> None:
    prompts = prompts_of([1, 15, 16, 17, 33, 70])
    sampling = [SamplingParams(9, temperature=0.9 * (i % 2), top_k=20, seed=i) for i in range(len(prompts))]
    engine = make_engine(nano_config)
    outputs = engine.generate(prompts, sampling)
    expected = [generate_alone(nano_config, p, s) for p, s in zip(prompts, sampling, strict=True)]
    assert tokens_of(outputs) == expected


@families
def test_reused_prefixes_change_nothing(nano_config: ModelConfig) -> None:
    common, own = prompts_of([40, 9, 20, 30], seed=3)[0], prompts_of([9, 20, 30], seed=4)
    prompts = [common + tail for tail in own] + [common + own[0] + [7, 8], common + own[0]]
    sampling = SamplingParams(8, ignore_eos=True)
    plain = make_engine(nano_config, prefix_caching=False)
    reusing = make_engine(nano_config)
    expected = [plain.generate([prompt], sampling)[0] for prompt in prompts]
    outputs = [reusing.generate([prompt], sampling)[0] for prompt in prompts]
    assert tokens_of(outputs) == tokens_of(expected)
    assert sum(output.num_cached_tokens for output in expected) == 0
    # 40 common tokens are two full blocks; the last two prompts share three blocks with the first.
    cached = [output.num_cached_tokens for output in outputs]
    if reusing.executor.cache.has_state:
        # The first keeps a snapshot at 48 alone, the second makes one at 32 where the third resumes.
        assert cached == [0, 0, 32, 48, 48]
    else:
        assert cached == [0, 32, 32, 48, 48]


@families
def test_preempted_requests_get_the_same_tokens(nano_config: ModelConfig) -> None:
    prompts = prompts_of([30, 31, 32, 29])
    sampling = [SamplingParams(20, temperature=0.8, seed=i, ignore_eos=True) for i in range(4)]
    roomy = make_engine(nano_config).generate(prompts, sampling)
    tight = make_engine(nano_config, num_blocks=8, prefix_caching=False).generate(prompts, sampling)
    assert sum(output.num_preemptions for output in roomy) == 0
    assert sum(output.num_preemptions for output in tight) > 0
    assert tokens_of(tight) == tokens_of(roomy)


def test_preemption_with_prefix_reuse(nano_config: ModelConfig) -> None:
    prompts = prompts_of([30, 31, 32, 29])
    sampling = SamplingParams(20, ignore_eos=True)
    roomy = make_engine(nano_config, prefix_caching=False).generate(prompts, sampling)
    tight = make_engine(nano_config, num_blocks=9, num_snapshots=2)
    outputs = tight.generate(prompts, sampling)
    assert sum(output.num_preemptions for output in outputs) > 0
    assert tokens_of(outputs) == tokens_of(roomy)


def test_token_budget_does_not_change_tokens(nano_config: ModelConfig) -> None:
    prompts = prompts_of([50, 3, 64])
    sampling = SamplingParams(6, ignore_eos=True)
    expected = tokens_of(make_engine(nano_config, max_num_batched_tokens=512).generate(prompts, sampling))
    for budget in (4, 7, 16):
        engine = make_engine(nano_config, max_num_batched_tokens=budget)
        assert tokens_of(engine.generate(prompts, sampling)) == expected
        assert max(sum(new for new, _ in r.prefills) + len(r.decode_contexts) for r in engine.step_records) <= budget


def test_bad_requests_fail_alone(nano_config: ModelConfig, make_requests: Any) -> None:
    engine = make_engine(nano_config, num_blocks=8, max_model_len=200)
    prompts = [[5, 6, 7], [], [5, 300], [1] * 200, [1] * 190, [1] * 100, [-1]]
    sampling = [SamplingParams(n) for n in (4, 4, 4, 4, 20, 50, 4)]
    outputs = run_requests(engine, make_requests(prompts, sampling))
    assert [output.error is None for output in outputs] == [True] + [False] * 6
    assert len(outputs[0].token_ids) == 4
    messages = [
        "the prompt is empty",
        "token 300 at position 1 is out of range; the vocabulary is 0 to 299",
        "200 tokens and leaves no room for output; the maximum length is 200",
        r"use max_tokens of at most 10",
        r"the KV pool holds 128 tokens, too few for prompt \(100 tokens\) and max_tokens=50",
        "token -1",
    ]
    for output, message in zip(outputs[1:], messages, strict=True):
        assert output.finish_reason == "error"
        with pytest.raises(RequestError, match=message):
            raise RequestError(output.error)


def test_the_largest_request_that_fits_the_pool_runs(nano_config: ModelConfig) -> None:
    engine = make_engine(nano_config, num_blocks=4, max_num_batched_tokens=16)
    (output,) = engine.generate([[3] * 50], SamplingParams(15, ignore_eos=True))
    assert (len(output.token_ids), output.finish_reason) == (15, "length")


def test_same_id_twice_is_refused(nano_config: ModelConfig, make_requests: Any) -> None:
    engine = make_engine(nano_config)
    (request,) = make_requests([[1, 2]], [SamplingParams(2)])
    engine.add_request(request)
    with pytest.raises(RequestError, match="'r0' is already in use"):
        engine.add_request(request)
    engine.close()


def test_stop_conditions(nano_config: ModelConfig) -> None:
    (prompt,) = prompts_of([20])
    free = make_engine(nano_config).generate([prompt], SamplingParams(12, ignore_eos=True))[0].token_ids
    assert len(free) == 12
    new = [i for i, token in enumerate(free) if token not in free[:i] and i > 1]
    at = new[0]
    pair = next(i for i in range(1, 12) if (free[i - 1], free[i]) not in list(pairwise(free))[: i - 1])
    cases = [
        (SamplingParams(12, stop_token_ids=(free[at],), ignore_eos=True), at + 1, "stop"),
        (SamplingParams(12, stop_sequences=((free[pair - 1], free[pair]),), ignore_eos=True), pair + 1, "stop"),
        (SamplingParams(5, ignore_eos=True), 5, "length"),
    ]
    outputs = make_engine(nano_config).generate([prompt] * 3, [sampling for sampling, _, _ in cases])
    assert [(o.token_ids, o.finish_reason) for o in outputs] == [(free[:n], reason) for _, n, reason in cases]


def test_eos_ends_a_request_unless_told_otherwise(nano_config: ModelConfig) -> None:
    (prompt,) = prompts_of([20])
    first = make_engine(nano_config).generate([prompt], SamplingParams(1))[0].token_ids[0]
    raw = make_engine(nano_config)
    raw.eos_token_ids = (first,)
    ended, went_on = raw.generate([prompt] * 2, [SamplingParams(4), SamplingParams(4, ignore_eos=True)])
    assert (ended.token_ids, ended.finish_reason) == ((first,), "stop")
    assert len(went_on.token_ids) == 4


def test_aborting_frees_everything_and_others_finish(nano_config: ModelConfig, make_requests: Any) -> None:
    engine = make_engine(nano_config)
    requests = make_requests(prompts_of([60, 20, 5]), [SamplingParams(10, ignore_eos=True)] * 3)
    for request in requests:
        engine.add_request(request)
    engine.step()
    engine.abort("r0")  # in the middle of its prompt
    engine.abort("r2")
    engine.abort("never heard of")
    ends = []
    while engine.has_work:
        ends += [event.output for event in engine.step() if event.output]
    assert [(output.request_id, len(output.token_ids)) for output in ends] == [("r1", 10)]


def test_records_account_for_every_token(nano_config: ModelConfig) -> None:
    engine = make_engine(nano_config, prefix_caching=False)
    lengths = [50, 3, 20, 41]
    outputs = engine.generate(prompts_of(lengths), SamplingParams(7, ignore_eos=True))
    records = engine.step_records
    assert sum(new for record in records for new, _ in record.prefills) == sum(lengths)
    assert sum(len(record.decode_contexts) for record in records) == len(lengths) * 6
    contexts = sorted(context for record in records for context in record.decode_contexts)
    assert contexts == sorted(length + i for length in lengths for i in range(1, 7))
    for output in outputs:
        timing = output.timing
        assert timing.scheduled_s is not None
        assert timing.arrival_s <= timing.scheduled_s < timing.token_times_s[0]
        assert timing.token_times_s == sorted(timing.token_times_s)
    assert all(a.start_s + a.duration_s <= b.start_s for a, b in pairwise(records))


def test_settings_are_checked(nano_config: ModelConfig) -> None:
    with pytest.raises(SettingError, match="max_model_len=600 exceeds the model's 512 positions"):
        make_engine(nano_config, max_model_len=600)
    with pytest.raises(SettingError, match="max_num_batched_tokens=2"):
        make_engine(nano_config, max_num_batched_tokens=2)

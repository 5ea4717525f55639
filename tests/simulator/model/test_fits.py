"""What fits on a cut, against what engines log and against figures worked by hand."""

from __future__ import annotations

import re

import pytest

from hw_profiles.catalog import load
from simulator.model.engine_memory import BY_STACK, OTHER, engine_memory, outside_bytes
from simulator.model.fits import fits
from simulator.model.memory import DoesNotFitError, plan_memory
from simulator.model.parallelism import Parallelism, ParallelismError
from simulator.model.presets import load_model

GIB = 2**30


def test_llama_on_one_h100_as_vllm_logs_it() -> None:
    """vLLM 0.19.0, share 0.95: weights 14.99 GiB, working memory 1.89, outside 0.25, pool 58.11, 476,016 tokens."""
    found = fits("llama-3.1-8b", "h100", Parallelism(), stack="vllm", context=8192, memory_share=0.95)
    assert found.weight_bytes / GIB == pytest.approx(14.99, rel=0.01)
    assert found.working_bytes / GIB == pytest.approx(1.89, rel=0.02)
    assert found.outside_bytes / GIB == pytest.approx(0.25, rel=0.05)
    assert found.kv_bytes / GIB == pytest.approx(58.11, rel=0.005)
    assert found.tokens == pytest.approx(476_016, rel=0.005)
    halved = fits("llama-3.1-8b", "h100", Parallelism(), stack="vllm", memory_share=0.95, kv_dtype="fp8")
    assert halved.tokens == pytest.approx(2 * found.tokens, rel=1e-4)


@pytest.mark.parametrize(
    ("cut", "logged"),
    [(Parallelism(tp=8, ep=8), 20.4), (Parallelism(dp=8, ep=8), 156.9)],
    ids=str,
)
def test_million_token_sessions_of_v4_flash_as_vllm_logs_them(cut: Parallelism, logged: float) -> None:
    found = fits("deepseek-v4-flash", "b200", cut, stack="vllm", context=1_048_576, memory_share=0.95)
    assert found.sequences == pytest.approx(logged, rel=0.1)
    assert found.sequences_logged == pytest.approx(logged, rel=0.05)


def test_a_log_that_counts_a_step_in_every_window_says_fewer_than_run() -> None:
    """gpt-oss-120b at 8k: 18 full layers of 2,048 B a token, 18 of windows of 128, or of 127 + 8,192 in the log."""
    found = fits("gpt-oss-120b", "b300", Parallelism(), stack="vllm", context=8192)
    full, window = 18 * 8192 * 2048, 18 * 2048
    assert found.sequences == pytest.approx(found.kv_bytes / (full + window * 144), rel=0.01)
    assert found.sequences_logged == pytest.approx(found.kv_bytes / (full + window * (144 + 8192)), rel=0.01)


def test_kimi_k2_on_eight_h200_as_vllm_logs_it() -> None:
    """46.8 GiB a GPU and 715,072 tokens; eight times as many where eight ranks share the tokens."""
    one = fits("kimi-k2.5", "h200", Parallelism(tp=8), stack="vllm")
    assert one.kv_bytes / GIB == pytest.approx(46.8, rel=0.1)
    assert one.tokens == pytest.approx(715_072, rel=0.1)
    spread = fits("kimi-k2.5", "h200", Parallelism(tp=8), stack="vllm", dcp=8)
    assert spread.tokens == pytest.approx(8 * one.tokens, rel=1e-4)


def test_compressed_entries_take_pages_as_large_as_the_largest() -> None:
    """V4-Flash: 21 CSA and 20 HCA layers in groups of 21. A page of 256 tokens has 64 entries of 584 B; index keys of
    132 B have pages of their own. 43 window layers fill three groups."""
    model, hardware = load_model("deepseek-v4-flash"), load("b200", "vllm")
    plan = plan_memory(model, hardware, Parallelism(tp=8, ep=8))
    assert plan.page_tokens == 256
    assert plan.kv_bytes_per_token * 256 == pytest.approx(42 * 64 * 584 + 21 * 64 * 132)
    assert plan.window_bytes_per_token == pytest.approx(63 * 584)


def test_a_page_of_attention_is_as_long_as_a_recurrent_state_needs() -> None:
    """Qwen3.5-397B on one rank: states of 4,268,032 B, entries of 2,048 B: 131 times 16 tokens hold 4,292,608 B."""
    plan = plan_memory(load_model("qwen3.5-397b-a17b", kv_dtype="bf16"), load("b300", "vllm"), Parallelism(dp=8, ep=8))
    assert plan.page_tokens == 131 * 16
    assert plan.kv_bytes_per_sequence == pytest.approx(45 * 131 * 16 * 2048)
    assert plan.sequence_bytes(1) == pytest.approx((45 + 15) * 131 * 16 * 2048)


def test_an_engine_that_pads_nothing_holds_more() -> None:
    cut = Parallelism(tp=8, ep=8)
    padded, packed = (
        plan_memory(load_model("deepseek-v4-flash"), load("b200", stack), cut) for stack in ("vllm", "sglang")
    )
    assert packed.kv_bytes_per_token < 0.6 * padded.kv_bytes_per_token


def test_sglang_takes_its_share_of_what_is_free_before_loading() -> None:
    """As its log has it: 0.85 of 138.51 GiB, less 97.31 of weights, are 20.4 GiB; working memory is in the rest."""
    hardware = load("h200", "sglang").with_memory_share(0.85)
    plan = plan_memory(load_model("deepseek-v3"), hardware, Parallelism(tp=8))
    free = hardware.usable_memory_bytes - plan.outside_bytes
    assert free / GIB == pytest.approx(138.51, rel=0.005)
    assert plan.kv_capacity_bytes == pytest.approx(0.85 * free - plan.weight_bytes)


def test_buffers_by_cut() -> None:
    vllm = engine_memory("vllm")
    assert outside_bytes(vllm, Parallelism()) < outside_bytes(vllm, Parallelism(tp=2)) < 3 * GIB
    assert outside_bytes(vllm, Parallelism(pp=2)) < outside_bytes(vllm, Parallelism())
    assert engine_memory("an engine of my own") is OTHER
    assert all(engine.source for engine in (*BY_STACK.values(), OTHER))


@pytest.mark.parametrize("stack", ["default", "vllm", "sglang", "trtllm"])
@pytest.mark.parametrize(
    ("model", "gpu", "cut"),
    [
        ("deepseek-v3", "h20", Parallelism(tp=4)),
        ("deepseek-v3", "h20", Parallelism(dp=8, ep=8)),
        ("llama-3.1-70b", "h100", Parallelism(tp=1)),
        ("kimi-k2", "h200", Parallelism(dp=4, ep=4)),
        ("deepseek-v4-pro", "h200", Parallelism(tp=4, ep=4)),
        ("gpt-oss-120b", "l40s", Parallelism()),
    ],
    ids=str,
)
def test_the_way_out_of_a_refusal_works(model: str, gpu: str, cut: Parallelism, stack: str) -> None:
    with pytest.raises(DoesNotFitError) as refusal:
        fits(model, gpu, cut, stack=stack)
    text = str(refusal.value)
    if share := re.search(r"memory_share = ([0-9.]+) would do", text):
        assert fits(model, gpu, cut, stack=stack, memory_share=float(share[1])).tokens > 0
        return
    hint = re.search(r"at least (\d+) \w+ would do, as ([A-Z0-9 ]+)$", text)
    assert hint is not None, text
    sizes = {name.lower(): int(size) for name, size in re.findall(r"([A-Z]+)(\d+)", hint[2])}
    better = Parallelism(**sizes)
    assert better.gpus == int(hint[1])
    assert fits(model, gpu, better, stack=stack).tokens > 0


def test_both_cases_that_run_in_practice_fit() -> None:
    """V3 in FP8 on eight H20 (95 GiB each), and V4-Pro with data-parallel attention on eight H200."""
    assert fits("deepseek-v3", "h20", Parallelism(tp=8), context=5120).sequences > 1
    pro = fits(
        "deepseek-v4-pro", "h200", Parallelism(dp=8, ep=8), stack="vllm", context=100_064, max_tokens_per_step=512
    )
    assert pro.sequences_per_rank > 1


def test_ranks_that_hold_other_heads_share_nothing() -> None:
    with pytest.raises(ParallelismError, match=r"dcp=4 does not divide the 2 .* use one of \[1, 2\]"):
        fits("qwen3-30b-a3b", "h100", Parallelism(tp=8), dcp=4)
    with pytest.raises(ParallelismError, match="context=999999999 exceeds"):
        fits("qwen3-30b-a3b", "h100", Parallelism(tp=8), context=999_999_999)

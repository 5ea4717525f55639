from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.hardware import decode_load

from hw_profiles.catalog import load
from hw_profiles.profile import HardwareProfile
from simulator.model.latency import NO_DECODE, Chunk, DecodeLoad, LoadError, StepLatency
from simulator.model.parallelism import Parallelism
from simulator.model.presets import load_model

# model, accelerator, cut, drafts: every attention family, form of expert parallelism and kind of link.
SETTINGS = [
    ("deepseek-v4-pro", "b300", Parallelism(dp=8, ep=8), 0),
    ("deepseek-v4-pro", "gb200", Parallelism(dp=32, ep=32), 3),
    ("deepseek-v4-flash", "h200", Parallelism(tp=8, ep=8), 1),
    ("deepseek-v4-flash", "b200", Parallelism(cp=4, dp=2, ep=8), 0),
    ("deepseek-v3.2", "h200", Parallelism(dp=16, ep=16), 0),
    ("deepseek-r1", "mi355x", Parallelism(tp=2, dp=4, ep=4), 1),
    ("qwen3-235b-a22b", "h100", Parallelism(tp=4, pp=2), 0),
    ("gpt-oss-120b", "h100", Parallelism(tp=2), 0),
    ("llama-3.1-70b", "a100", Parallelism(tp=8), 0),
]
IDS = [f"{name}-{gpu}-{cut}-{drafts}" for name, gpu, cut, drafts in SETTINGS]


@cache
def _latency(index: int) -> StepLatency:
    name, gpu, cut, drafts = SETTINGS[index]
    return StepLatency(load_model(name), load(gpu), cut, drafts)


@cache
def _plain(name: str, gpu: str = "h200", cut: Parallelism | None = None) -> StepLatency:
    return StepLatency(load_model(name), load(gpu), cut or Parallelism())


CONTEXTS = st.floats(0, 20).map(lambda exponent: int(2**exponent))  # 1 to 1M, even in the logarithm
BATCHES = st.floats(0, 12).map(lambda exponent: int(2**exponent))  # 1 to 4096
CHUNKS = st.lists(st.builds(Chunk, st.integers(1, 16384), st.integers(0, 1 << 20)), min_size=1, max_size=6)


@settings(max_examples=60)
@given(
    index=st.integers(0, len(SETTINGS) - 1),
    batch=BATCHES,
    contexts=st.lists(CONTEXTS, min_size=1, max_size=8),
    others=st.floats(0, 1),
    chunks=CHUNKS,
    tokens=st.floats(0, 1),
)
def test_fast_forms_equal_the_sum_of_ops(
    index: int,
    batch: int,
    contexts: list[int],
    others: float,
    chunks: list[Chunk],
    tokens: float,
) -> None:
    """Decode, prefill and mixed steps, ragged and uneven over ranks. The bar is 1%; the forms are exact."""
    latency = _latency(index)
    dp = latency.parallelism.dp
    ragged = (contexts * (batch // len(contexts) + 1))[:batch]
    decode = decode_load(latency, ragged, total=batch + int(others * (dp - 1) * batch))
    new = sum(chunk.new for chunk in chunks)
    total = new + int(tokens * (dp - 1) * new)

    def exact(chunks: list[Chunk], load: DecodeLoad) -> float:
        return sum(p.seconds for p in latency.breakdown(chunks, load, total if chunks else None))

    assert latency.decode_s(decode) == pytest.approx(exact([], decode), rel=1e-6)
    assert latency.prefill_s(chunks, total) == pytest.approx(exact(chunks, NO_DECODE), rel=1e-6)
    assert latency.mixed_s(chunks, decode, total) == pytest.approx(exact(chunks, decode), rel=1e-6)


def test_decode_of_one_sequence_worked_by_hand(
    peak_h200: HardwareProfile,
) -> None:
    """Llama 8B on an ideal H200: all weights but the embedding, KV of 10k tokens at 131,072 B, over 4.8 TB/s."""
    latency = StepLatency(load_model("llama-3.1-8b"), peak_h200, Parallelism())
    seconds = latency.decode_s(decode_load(latency, [10_000])) - peak_h200.efficiency.step_overhead_s
    streamed = (8.030e9 - 128256 * 4096) * 2 + 10_000 * 131_072
    assert seconds == pytest.approx(streamed / 4.8e12, rel=0.01)


def test_decode_is_memory_bound_at_batch_one(
    peak_h200: HardwareProfile,
) -> None:
    for name in ("llama-3.1-8b", "qwen3-235b-a22b", "deepseek-v3", "deepseek-v4-flash"):
        latency = StepLatency(load_model(name), peak_h200, Parallelism())
        priced = latency.breakdown([], decode_load(latency, [8192]))
        by_bound = {bound: sum(p.seconds for p in priced if p.bound == bound) for bound in ("memory", "compute")}
        assert by_bound["memory"] > 0.95 * sum(by_bound.values())


def test_prefill_is_compute_bound(peak_h200: HardwareProfile) -> None:
    latency = StepLatency(load_model("llama-3.1-8b"), peak_h200, Parallelism())
    priced = latency.breakdown([Chunk(8192, 0)], NO_DECODE)
    gemms = [p for p in priced if p.op.op_class in ("dense_gemm", "attention_prefill") and p.op.name != "lm_head"]
    assert {p.bound for p in gemms} == {"compute"}


@pytest.mark.parametrize("index", range(len(SETTINGS)), ids=IDS)
def test_more_work_is_never_faster(
    index: int,
) -> None:
    latency = _latency(index)
    by_context = [latency.decode_s(decode_load(latency, [2**k] * 16)) for k in range(21)]
    by_batch = [latency.decode_s(decode_load(latency, [4096] * 2**k)) for k in range(13)]
    by_new = [latency.prefill_s([Chunk(2**k, 1000)]) for k in range(15)]
    by_past = [latency.prefill_s([Chunk(1024, 2**k)]) for k in range(21)]
    decode = decode_load(latency, [4096] * 16)
    by_mix = [latency.mixed_s([Chunk(n, 0)], decode) for n in (1, 100, 10_000)]
    for times in (by_context, by_batch, by_new, by_past, by_mix):
        assert all(later >= earlier for earlier, later in pairwise(times))
    assert latency.mixed_s([Chunk(100, 0)], decode) > latency.prefill_s([Chunk(100, 0)])


@pytest.mark.parametrize("index", range(len(SETTINGS)), ids=IDS)
def test_better_hardware_is_never_slower(
    index: int,
) -> None:
    old = _latency(index)
    hardware = old.hardware
    decode, chunks = decode_load(old, [9000] * 32), [Chunk(4096, 2000)]
    better = {
        "memory": replace(hardware, memory_bandwidth=2 * hardware.memory_bandwidth),
        "scale-up": replace(hardware, scale_up_bandwidth=2 * hardware.scale_up_bandwidth),
        "scale-out": replace(hardware, scale_out_bandwidth=2 * hardware.scale_out_bandwidth),
        "matrix": replace(hardware, peaks={dtype: 2 * peak for dtype, peak in hardware.peaks.items()}),
    }
    for what, profile in better.items():
        new = StepLatency(old.model, profile, old.parallelism, old.draft_tokens)
        assert new.decode_s(decode) <= old.decode_s(decode), what
        assert new.prefill_s(chunks) <= old.prefill_s(chunks), what
        if what in ("memory", "matrix"):
            assert new.mixed_s(chunks, decode) < 0.99 * old.mixed_s(chunks, decode), what


def test_ragged_batches_are_priced_by_sequence() -> None:
    """Where selection caps what is read, equal sums of context do not cost the same; where nothing does, they do."""
    even, skewed = [65_536] * 16, [1_048_561] + [1] * 15
    assert sum(even) == sum(skewed)
    capped, full = _plain("deepseek-v4-flash"), _plain("llama-3.1-8b")
    assert capped.decode_s(decode_load(capped, skewed)) < capped.decode_s(decode_load(capped, even))
    assert full.decode_s(decode_load(full, skewed)) == full.decode_s(decode_load(full, even))
    one, two = [Chunk(8192, 0)], [Chunk(4096, 0), Chunk(4096, 0)]
    assert full.prefill_s(two) < full.prefill_s(one)  # half the causal pairs


def test_caps_are_where_layers_stop_reading_more() -> None:
    assert _plain("llama-3.1-8b").caps == ()
    assert _plain("gpt-oss-120b").caps == (128,)
    assert _plain("deepseek-v3.2").caps == (2048,)
    assert _plain("deepseek-v4-pro").caps == (128, 4 * 1024)


def test_busier_other_ranks_slow_the_experts() -> None:
    latency = _latency(0)
    alone, all_busy = decode_load(latency, [4096] * 32, total=32), decode_load(latency, [4096] * 32, total=256)
    assert latency.decode_s(alone) < latency.decode_s(all_busy)


def test_decode_keeps_pipeline_stages_busy_and_prefill_drains_them(
    peak_h200: HardwareProfile,
) -> None:
    """Two stages halve nothing at batch one; a compute-bound chunk in two parts takes 3 of 4 half-stage times."""
    model = load_model("llama-3.1-8b")
    host = peak_h200.efficiency.step_overhead_s
    one = StepLatency(model, peak_h200, Parallelism())
    two = StepLatency(model, peak_h200, Parallelism(pp=2))
    single = decode_load(one, [1000])
    assert two.decode_s(single) == pytest.approx(one.decode_s(single), rel=0.01)
    chunks = [Chunk(32768, 0)]
    assert two.prefill_s(chunks) - host == pytest.approx(0.75 * (one.prefill_s(chunks) - host), rel=0.02)


def test_first_token_waits_for_the_request_overhead() -> None:
    latency = _plain("llama-3.1-8b")
    assert latency.first_token_extra_s == load("h200").efficiency.request_overhead_s


def test_no_work_takes_no_time() -> None:
    latency = _plain("llama-3.1-8b")
    assert latency.decode_s(NO_DECODE) == latency.mixed_s([], NO_DECODE) == latency.prefill_s([]) == 0.0
    assert latency.breakdown([], NO_DECODE) == []


def test_step_overhead_counts_once() -> None:
    old = _plain("llama-3.1-8b")
    efficiency = old.hardware.efficiency.model_copy(update={"step_overhead_s": 1.0})
    new = StepLatency(old.model, replace(old.hardware, efficiency=efficiency), Parallelism())
    load_, chunks = decode_load(old, [100] * 4), [Chunk(10, 0)]
    before = old.hardware.efficiency.step_overhead_s
    assert new.decode_s(load_) - old.decode_s(load_) == pytest.approx(1.0 - before)
    assert new.mixed_s(chunks, load_) - old.mixed_s(chunks, load_) == pytest.approx(1.0 - before)


@pytest.mark.parametrize("drafts", [0, 3])
def test_host_time_of_a_step_counts_each_kernel_of_its_decode(
    drafts: int,
) -> None:
    """And prompts that ride along add none."""
    hardware = load("b200")
    efficiency = hardware.efficiency.model_copy(update={"kernel_overhead_s": 1.0})
    model, cut = load_model("deepseek-v4-pro"), Parallelism(tp=8)
    old = StepLatency(model, hardware, cut, drafts)
    new = StepLatency(model, replace(hardware, efficiency=efficiency), cut, drafts)
    load_ = decode_load(old, [100] * 4)
    launches = sum(one.op.count for one in old.breakdown([], load_)[:-1])
    assert new.decode_s(load_) - old.decode_s(load_) == pytest.approx(launches)
    chunks = [Chunk(10, 0)]
    assert new.mixed_s(chunks, load_) - old.mixed_s(chunks, load_) == pytest.approx(launches)
    assert new.breakdown([], load_)[-1].seconds == pytest.approx(launches + hardware.efficiency.step_overhead_s)


@pytest.mark.parametrize(
    ("drafts", "message"),
    [(-1, "draft_tokens=-1 is negative"), (2, "draft_tokens=2, but llama-3.1-8b has no draft head")],
)
def test_impossible_drafts_are_refused(drafts: int, message: str) -> None:
    with pytest.raises(LoadError, match=message):
        StepLatency(load_model("llama-3.1-8b"), load("h200"), Parallelism(), drafts)


def test_load_without_its_capped_sums_is_refused() -> None:
    with pytest.raises(LoadError, match=r"capped has 0 sums; give one for each of caps=\(128, 4096\)"):
        _plain("deepseek-v4-pro").mixed_s([Chunk(8, 0)], DecodeLoad(1, 100, (), 1))


def test_layers_that_borrow_kv_are_priced_from_their_data() -> None:
    """A V4.1-type model: fp4 entries, half of the layers reading another layer's KV. No code knows it."""
    base = load_model("deepseek-v4-flash")
    layers = []
    for i, layer in enumerate(base.layers):
        attention = replace(layer.attention, window_entry_bytes=528.0)
        if attention.ratio:
            attention = replace(attention, entry_bytes=288.0, kv_source_layer=i - 1 if i % 2 else None)
        layers.append(replace(layer, attention=attention))
    model = replace(base, name="v41-type", layers=tuple(layers), draft=None)
    old = _plain("deepseek-v4-flash", "b200", Parallelism(dp=8, ep=8))
    new = StepLatency(model, load("b200"), Parallelism(dp=8, ep=8))
    decode = decode_load(new, [500_000] * 64)
    assert new.decode_s(decode) < old.decode_s(decode)  # half the bytes of each entry
    exact = sum(p.seconds for p in new.breakdown([], decode))
    assert new.decode_s(decode) == pytest.approx(exact, rel=1e-6)


def test_attention_core_reads_what_the_layout_stores() -> None:
    """V4-Pro at 1M: 128 window tokens and 1024 (CSA) or 8192 (HCA) entries of 584 B per sequence."""
    latency = _plain("deepseek-v4-pro")
    priced = latency.breakdown([], decode_load(latency, [1 << 20] * 3))
    cores = [p.op for p in priced if p.op.name == "attention core"]
    assert sum(op.count for op in cores) == 61
    queries = 3 * 128 * 1024 * 2.0
    entries = 30 * (128 + 1024) + 31 * (128 + 8192)
    assert sum(op.count * op.hbm_bytes for op in cores) == pytest.approx(3 * 584 * entries + 61 * queries)

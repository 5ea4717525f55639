from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.hardware import with_classes

from hw_profiles.catalog import load
from hw_profiles.efficiency import OpClass
from simulator.model.architecture import MoeSpec
from simulator.model.moe import (
    RankLoad,
    copies_per_rank,
    expert_ops,
    fused_op,
    touched_experts,
    unfused_ops,
    uniform_load,
)
from simulator.model.parallelism import Parallelism
from simulator.model.presets import load_model
from simulator.model.roofline import op_seconds
from simulator.model.sharding import Cut

# Tokens per rank -> measured us, SGLang pre-dispatch + fp8_fp4_mega_moe on GB200, V4-Pro shape, balanced routing.
# Source: AIConfigurator (Apache-2.0) 095f58a, data/gb200/moe.
GB200_US = {
    4: {1: 118.3, 8: 347.8, 32: 633.6, 128: 642.8, 512: 672.6, 2048: 895.1, 8192: 2980.1, 32768: 11734.2},
    8: {1: 107.1, 8: 351.9, 32: 352.2, 128: 362.8, 512: 407.9, 2048: 911.6, 8192: 3044.6, 32768: 12072.2},
    16: {1: 90.9, 8: 205.0, 32: 207.1, 128: 218.8, 512: 282.2, 2048: 769.9, 8192: 2828.6, 32768: 11889.4},
}
# DeepGEMM #316, eight sm100 ranks: (model, tokens per rank) -> us, HBM GB/s, NVLink GB/s.
PUBLISHED = {
    ("deepseek-v4-flash", 8192): (1283.1, 998, 499),
    ("deepseek-v4-flash", 32768): (4855.5, 794, 529),
    ("deepseek-v4-pro", 8192): (2818.5, 1094, 393),
    ("deepseek-v4-pro", 32768): (10655.2, 692, 417),
}


def _experts(name: str) -> MoeSpec:
    return load_model(name).layers[-1].ffn


def _cut(gpu: str, ep: int) -> Cut:
    return Cut.of(Parallelism(dp=ep, ep=ep), load(gpu))


def _balanced(ffn: MoeSpec, per_rank: int, ep: int) -> RankLoad:
    """Perfectly even routing, as the benchmark deals it: choices spread over all experts before any gets a second."""
    choices = per_rank * ffn.experts_per_token
    return RankLoad(choices, min(ffn.experts / ep, choices), 0.0)


def test_touched_experts_match_a_draw() -> None:
    rng = np.random.default_rng(0)
    for tokens in (1, 16, 200):
        drawn = [len({e for _ in range(tokens) for e in rng.choice(256, 6, replace=False).tolist()}) for _ in range(60)]
        assert touched_experts(tokens, 256, 6) == pytest.approx(np.mean(drawn), rel=0.03)


def test_copies_per_rank_match_a_draw() -> None:
    rng = np.random.default_rng(0)
    drawn = [len(set(rng.integers(0, 8, 6).tolist())) for _ in range(20_000)]
    assert copies_per_rank(6, 8) == pytest.approx(np.mean(drawn), rel=0.01)


def test_fused_form_predicts_measured_megamoe() -> None:
    """t0 76 us, 6.05 TB/s, 2145 TFLOP/s, q = 3 on GB200: mean error of a published table below 8%."""
    gb200 = load("gb200")
    fitted = with_classes(
        gb200,
        latency_s=76e-6,
        memory_fraction=6.05e12 / gb200.memory_bandwidth,
        matrix_fraction=2145e12 / gb200.matrix_peak("fp8"),
        exponent=3.0,
    )
    ffn = _experts("deepseek-v4-pro")
    errors = []
    for ep, rows in GB200_US.items():
        for tokens, measured_us in rows.items():
            op = fused_op(ffn, tokens, _balanced(ffn, tokens, ep), _cut("gb200", ep))
            errors.append(abs(op_seconds(op, fitted) * 1e6 / measured_us - 1))
    assert np.mean(errors) < 0.08
    assert np.quantile(errors, 0.9) < 0.15


@pytest.mark.parametrize(("name", "tokens"), PUBLISHED)
def test_fused_bytes_match_published_bandwidths(name: str, tokens: int) -> None:
    us, hbm, nvlink = PUBLISHED[name, tokens]
    ffn = _experts(name)
    op = fused_op(ffn, tokens, _balanced(ffn, tokens, 8), _cut("b200", 8))
    assert op.hbm_bytes / (us * 1e-6) / 1e9 == pytest.approx(hbm, rel=0.06)
    # the published figure counts every choice, those that stay on their rank (1 in 8) included
    assert op.network_bytes * 8 / 7 / (us * 1e-6) / 1e9 == pytest.approx(nvlink, rel=0.06)


@pytest.mark.parametrize(("tokens", "published"), [(512, 1.54), (8192, 1.50), (32768, 1.54)])
def test_fused_form_gains_about_what_is_published(tokens: int, published: float) -> None:
    """Default (assumed) rates of B200 against the speed-up over unfused kernels in #316, V4-Pro."""
    b200, cut = load("b200"), _cut("b200", 8)
    ffn = _experts("deepseek-v4-pro")

    def seconds(cut: Cut) -> float:
        ops = expert_ops(ffn, tokens, 8 * tokens, _balanced(ffn, tokens, 8), cut, low_latency=tokens <= 512)
        return sum(op_seconds(op, b200) for op in ops)

    unfused = seconds(replace(cut, vendor="another vendor"))
    assert unfused / seconds(cut) == pytest.approx(published, rel=0.2)


def test_fused_kernel_only_where_it_exists() -> None:
    pro, v3 = _experts("deepseek-v4-pro"), _experts("deepseek-v3")
    assert _cut("b200", 8).fused(pro)
    assert _cut("gb200", 64).fused(pro)
    assert not _cut("b200", 16).fused(pro)  # leaves the NVLink domain of 8
    assert not _cut("h200", 8).fused(pro)  # sm90 kernel multiplies fp8 experts only
    assert _cut("h200", 8).fused(v3)
    assert not _cut("mi355x", 8).fused(pro)
    assert not Cut.of(Parallelism(tp=8, ep=8), load("b200")).fused(pro)  # every rank has all tokens already


def test_work_does_not_depend_on_how_experts_are_spread() -> None:
    """FLOPs and expert weights, summed over ranks, are the layer's for any split of ranks over and inside experts."""
    ffn = _experts("qwen3-235b-a22b")
    for cut in (Parallelism(dp=8, ep=8), Parallelism(dp=8, ep=2), Parallelism(dp=8), Parallelism(tp=4, dp=2, ep=4)):
        load_ = uniform_load(ffn, 512, cut.ep)
        ops = unfused_ops(ffn, load_, cut.stage_size // cut.ep)
        flops = cut.stage_size * sum(sum(op.flops.values()) for op in ops)
        assert flops == pytest.approx(512 * ffn.experts_per_token * 2 * ffn.expert_params)


def test_dispatch_beyond_the_domain_takes_the_nic() -> None:
    ffn = _experts("deepseek-v3")
    cut = _cut("h200", 32)
    load_ = uniform_load(ffn, 32 * 128, 32)
    for low_latency in (True, False):
        ops = expert_ops(ffn, 128, 32 * 128, load_, cut, low_latency=low_latency)
        dispatch = next(op for op in ops if op.name == "dispatch")
        assert dispatch.link == "scale_out"
        assert dispatch.op_class == OpClass.ALL_TO_ALL
    # prefill sends one copy to each other domain of 8: 4 (1 - (3/4)^8) * 3/4 of a token's choices
    expected = 128 * 7168 * (1 + 1 / 32) * 4 * (1 - 0.75**8) * 0.75
    assert dispatch.network_bytes == pytest.approx(expected)


def test_experts_read_again_are_bytes_beside_those_of_the_first_read() -> None:
    ffn = _experts("deepseek-v3")
    once = uniform_load(ffn, 512, 8)
    assert once.again == 0.0
    skewed = once._replace(again=2.5)
    for plain, op in zip(unfused_ops(ffn, once, 1), unfused_ops(ffn, skewed, 1), strict=True):
        assert plain.hbm_bytes == op.hbm_bytes
    up, _, down, _ = unfused_ops(ffn, skewed, 1)
    assert up.again_bytes == pytest.approx(2 * down.again_bytes)
    assert up.again_bytes + down.again_bytes == pytest.approx(skewed.again * ffn.expert_bytes)

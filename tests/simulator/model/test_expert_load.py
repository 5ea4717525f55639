"""Loads of expert ranks against the moments of binomial draws, and placements worked by hand."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import poisson

from hw_profiles.catalog import load
from simulator.model.architecture import MoeSpec
from simulator.model.expert_load import SAMPLES, ExpertLoads, ExpertSkew, expert_chances, place, position
from simulator.model.latency import NO_DECODE, Chunk, DecodeLoad, StepLatency
from simulator.model.memory import plan_memory
from simulator.model.parallelism import Parallelism, ParallelismError
from simulator.model.presets import load_model

FFN = MoeSpec(64, 4, 512, 1024, "bf16", "bf16", "scored")
LAYERS = 40


def test_the_busier_of_two_ranks_gets_the_mean_absolute_deviation_more() -> None:
    """n choices on two ranks: E max = n/2 + E|X - n/2|, which for a binomial of 1/2 is n C(n-1, n/2) / 2^n."""
    for bucket in (4, 8, 14):
        n = 2 ** (bucket // 2) * FFN.experts_per_token
        deviation = n * math.comb(n - 1, n // 2) / 2**n
        drawn = ExpertLoads(ExpertSkew("uniform"), FFN, 2, LAYERS).draws(bucket)[0]
        # each number is the mean over layers of 2 max / n
        spread = math.sqrt(n / 4 - deviation**2) / (n / 2)
        expected = 1 + deviation / (n / 2)
        assert drawn.mean() == pytest.approx(expected, abs=4 * spread / math.sqrt(SAMPLES * LAYERS))
        assert drawn.std() == pytest.approx(spread / math.sqrt(LAYERS), rel=0.5)


def test_one_rank_has_every_choice_and_touches_what_draws_with_replacement_do() -> None:
    drawn = ExpertLoads(ExpertSkew("uniform"), FFN, 1, LAYERS).draws(8)
    uniform = 1 - (1 - 4 / 64) ** 16
    np.testing.assert_allclose(drawn[0], 1.0)
    assert drawn[1].mean() == pytest.approx((1 - (1 - 1 / 64) ** 64) / uniform, rel=0.01)
    assert drawn[2].max() == 0.0  # one choice for each expert, tiles of 16


def test_experts_beyond_their_tile_are_read_again_as_often_as_poisson_loads_say() -> None:
    """512 tokens: 32 choices for each of 64 experts, tiles of 32; about as spread as Poisson loads."""
    drawn = ExpertLoads(ExpertSkew("uniform"), FFN, 1, LAYERS).draws(18)
    further = sum(poisson.sf(k * 32, 32.0) for k in (1, 2, 3))  # tiles of 32 beyond the first of an expert
    assert drawn[2].mean() == pytest.approx(64 * further, rel=0.03)


def test_chances_add_up_and_spread_as_stated() -> None:
    rng = np.random.default_rng(0)
    even = expert_chances(ExpertSkew("uniform"), 64, 4, rng)
    np.testing.assert_allclose(even, 4 / 64)
    drawn = np.array([expert_chances(ExpertSkew("dirichlet", concentration=5.0), 64, 4, rng) for _ in range(2000)])
    np.testing.assert_allclose(drawn.sum(axis=1), 4.0)
    # of a Dirichlet weight: squared variation (E - 1) / (E c + 1)
    assert np.var(drawn) / (4 / 64) ** 2 == pytest.approx(63 / (64 * 5 + 1), rel=0.03)
    steep = expert_chances(ExpertSkew("power_law", alpha=1.2), 16, 8, rng)
    assert steep.sum() == pytest.approx(8.0)
    assert steep.max() == 1.0  # no token chooses an expert twice
    mild = expert_chances(ExpertSkew("power_law", alpha=1.2), 512, 4, rng)
    below = np.sort(mild)[::-1] / mild.min()
    # quantiles of a density x^-1.2 on [1, 6553.6]: P(X < x) = (1 - x^-0.2) / (1 - 6553.6^-0.2)
    share = (1 - below**-0.2) / (1 - 6553.6**-0.2)
    np.testing.assert_allclose(share, 1 - (np.arange(512) + 0.5) / 512, atol=0.01)


def test_copies_go_to_the_most_loaded_experts_and_even_out_the_ranks() -> None:
    """Loads 8, 4, 2, 2 with two further copies: 8 is cut in two, then either half or 4; ranks of three get 8 each."""
    slots = place(np.array([8.0, 4.0, 2.0, 2.0]), 2, 2, np.random.default_rng(0))
    assert sorted(slots.ravel().tolist(), reverse=True) == pytest.approx([4.0, 8 / 3, 8 / 3, 8 / 3, 2.0, 2.0])
    assert slots.sum() == pytest.approx(16.0)
    assert slots.sum(axis=1).tolist() == pytest.approx([26 / 3, 22 / 3])
    kept = place(np.arange(8.0), 4, 0, np.random.default_rng(0))
    assert sorted(kept.ravel().tolist()) == list(range(8))


def test_skew_loads_the_busiest_rank_more_and_redundant_experts_relieve_it() -> None:
    def busiest(skew: ExpertSkew) -> float:
        return ExpertLoads(skew, FFN, 8, LAYERS).mean(1000)[0].choices

    even, mild, steep = (
        busiest(ExpertSkew(kind))
        for kind in ("uniform", "dirichlet", "power_law")  # type: ignore[arg-type]
    )
    assert 1000 * 4 / 8 < even < mild < steep
    assert busiest(ExpertSkew("power_law", redundant_experts=16)) < 1.1 * even
    with pytest.raises(ParallelismError, match="redundant_experts=3 with 64 experts does not fill ep=8"):
        ExpertLoads(ExpertSkew(redundant_experts=3), FFN, 8, LAYERS)


def test_token_counts_between_buckets_are_interpolated() -> None:
    assert position(2 ** (11 / 2)) == (11, pytest.approx(0.0, abs=1e-9))
    assert position(2 ** (11.25 / 2)) == (11, pytest.approx(0.25))
    loads = ExpertLoads(ExpertSkew("uniform"), FFN, 8, LAYERS)
    relative = [loads.mean(tokens)[0].choices / (tokens / 2) for tokens in (64, 76, 91)]
    assert relative[0] > relative[1] > relative[2]


@pytest.fixture(scope="module")
def latencies() -> Callable[[ExpertSkew | None], StepLatency]:
    model, hardware = load_model("deepseek-v4-flash"), load("h200_sxm")
    cut = Parallelism(dp=8, ep=8)
    return lambda skew: StepLatency(model, hardware, cut, 0, skew)


def test_a_step_with_skew_is_the_sum_of_its_ops_and_its_draws_have_that_mean(
    latencies: Callable[[ExpertSkew | None], StepLatency],
) -> None:
    skewed, plain = latencies(ExpertSkew("power_law")), latencies(None)
    load_ = DecodeLoad(64, 64 * 1000, tuple(64 * min(1000, cap) for cap in plain.caps), 512)
    assert not plain.draws_experts
    assert skewed.draws_experts
    for chunks, decode in ([], load_), ([Chunk(4096, 0)], NO_DECODE), ([Chunk(4096, 0)], load_):
        seconds = skewed.mixed_s(chunks, decode, 32_768 if chunks else None)
        ops = skewed.breakdown(chunks, decode, 32_768 if chunks else None)
        assert seconds == pytest.approx(sum(op.seconds for op in ops), rel=1e-6)
        swings = [skewed.experts_swing_s(chunks, decode, 32_768 if chunks else 0, draw) for draw in range(SAMPLES)]
        assert np.mean(swings) == pytest.approx(0.0, abs=1e-9 * seconds)
        assert 0 < np.std(swings) < 0.05 * seconds
    # hot ranks cost most where experts compute
    assert skewed.prefill_s([Chunk(8192, 0)]) > 1.05 * plain.prefill_s([Chunk(8192, 0)])


def test_redundant_experts_take_their_bytes() -> None:
    model, hardware = load_model("deepseek-v4-flash"), load("h200_sxm")
    cut = Parallelism(dp=8, ep=8)
    plain, copied = (plan_memory(model, hardware, cut, redundant_experts=n) for n in (0, 16))
    per_rank = sum(2 * layer.ffn.expert_bytes for layer in model.layers)
    assert copied.weight_bytes - plain.weight_bytes == pytest.approx(per_rank)
    assert replace(copied, weight_bytes=0, kv_capacity_bytes=0) == replace(plain, weight_bytes=0, kv_capacity_bytes=0)
    assert plain.kv_capacity_bytes - copied.kv_capacity_bytes == pytest.approx(per_rank)

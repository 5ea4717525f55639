from __future__ import annotations

import pytest
from support.hardware import with_classes

from hw_profiles.catalog import load
from hw_profiles.efficiency import OpClass
from hw_profiles.profile import HardwareProfile
from simulator.model.architecture import Linear
from simulator.model.layers import linear_op
from simulator.model.ops import Op
from simulator.model.roofline import op_seconds, p_norm, roof_times

GEMM = Linear("gemm", 4096, 8192, "bf16")


def test_gemm_of_one_row_streams_its_weights(peak_h200: HardwareProfile) -> None:
    """4096 x 8192 bf16 weights and 12288 activations over 4.8 TB/s."""
    times = roof_times(linear_op(GEMM, 1), peak_h200)
    assert times.bound == "memory"
    assert times.seconds == pytest.approx((4096 * 8192 * 2 + 12288 * 2) / 4.8e12, rel=1e-3)


def test_gemm_of_many_rows_multiplies_at_peak(peak_h200: HardwareProfile) -> None:
    """2 * 16384 * 4096 * 8192 FLOPs at 989.5 TFLOP/s, against 67 MB + 403 MB at 4.8 TB/s."""
    times = roof_times(linear_op(GEMM, 16384), peak_h200)
    assert times.bound == "compute"
    assert times.seconds == pytest.approx(2 * 16384 * 4096 * 8192 / 989.5e12, rel=1e-3)


def test_flops_of_two_dtypes_add_as_times(peak_h200: HardwareProfile) -> None:
    one = Op("one", OpClass.DENSE_GEMM, {"bf16": 989.5e9})
    both = Op("both", OpClass.DENSE_GEMM, {"bf16": 989.5e9, "fp8": 1979e9})
    assert op_seconds(one, peak_h200) == pytest.approx(1e-3, rel=1e-3)
    assert op_seconds(both, peak_h200) == pytest.approx(2e-3, rel=1e-3)


def test_fractions_latency_and_exponent() -> None:
    """3 ms of compute and 4 ms of memory at half the data sheet, q = 2, and 1 ms floor: 1 + 10 ms, four times."""
    half = with_classes(load("h200_sxm"), matrix_fraction=0.5, memory_fraction=0.5, latency_s=1e-3, exponent=2.0)
    op = Op("op", OpClass.DENSE_GEMM, {"bf16": 3e-3 * 989.5e12}, 4e-3 * 4.8e12, count=4)
    assert op_seconds(op, half) == pytest.approx(4 * 11e-3, rel=1e-3)


def test_link_of_the_op_sets_its_network_rate(peak_h200: HardwareProfile) -> None:
    inside = Op("inside", OpClass.ALL_TO_ALL, network_bytes=450e6, link="scale_up")
    outside = Op("outside", OpClass.ALL_TO_ALL, network_bytes=50e6, link="scale_out")
    assert op_seconds(inside, peak_h200) == pytest.approx(450e6 / peak_h200.scale_up_bandwidth)
    assert op_seconds(outside, peak_h200) == pytest.approx(50e6 / peak_h200.scale_out_bandwidth)
    assert roof_times(outside, peak_h200).bound == "network"


def test_p_norm_lies_between_maximum_and_sum() -> None:
    terms = (3.0, 4.0, 1.0)
    assert p_norm(terms, 1) == pytest.approx(8.0)
    assert 4.0 < p_norm(terms, 3) < 8.0
    assert p_norm(terms, 16) == pytest.approx(4.0, rel=1e-3)


def test_small_op_is_bound_by_latency() -> None:
    assert roof_times(linear_op(Linear("tiny", 64, 64, "bf16"), 1), load("h200_sxm")).bound == "latency"


def test_memory_rate_is_that_of_the_operands_dtype() -> None:
    """4 ms of bytes at the data sheet: 8 ms at half of it, 5 ms with FP8 operands, which reach 0.8."""
    part = with_classes(load("h200_sxm"), memory_fraction=0.5, memory_fraction_by={"fp8": 0.8}, latency_s=0.0)
    for flops, seconds in (({}, 8e-3), ({"bf16": 0.0}, 8e-3), ({"fp8": 0.0}, 5e-3)):
        op = Op("op", OpClass.LATENT_DECODE, flops, 4e-3 * 4.8e12)
        assert op_seconds(op, part) == pytest.approx(seconds, rel=1e-6)


def test_kernels_that_widen_weights_have_rates_of_their_own() -> None:
    """FP8 operands with FP4 weights: 1 ms of FLOPs at the FP8 peak takes 4 ms at a quarter of it, where FP8 weights
    reach half; weights of a type that no kernel is known for take the operands' rate."""
    part = with_classes(
        load("h200_sxm"), matrix_fraction_by={"fp8": 0.5, "fp8 x fp4": 0.25}, latency_s=0.0, latency_s_by={"fp8": 1e-3}
    )
    flops = {"fp8": 1e-3 * part.matrix_peak("fp8")}
    for stored, seconds in ((None, 3e-3), ("fp4", 5e-3), ("int4", 3e-3)):
        op = Op("op", OpClass.LATENT_DECODE, flops, stored=stored)  # type: ignore[arg-type]
        assert op_seconds(op, part) == pytest.approx(seconds, rel=1e-6)


def test_weights_read_again_take_their_share() -> None:
    """10 ms of weights, 5 ms of them once more: 12.5 ms at a share of a half, 11 ms under the kernel with a fifth."""
    part = with_classes(
        load("h200_sxm"), memory_fraction=1.0, latency_s=0.0, reread_share=0.5, reread_share_by={"fp8 x fp4": 0.2}
    )
    for stored, seconds in ((None, 12.5e-3), ("fp4", 11e-3)):
        op = Op("op", OpClass.GROUPED_GEMM, {"fp8": 0.0}, 48e9, again_bytes=24e9, stored=stored)  # type: ignore[arg-type]
        assert op_seconds(op, part) == pytest.approx(seconds, rel=1e-6)


def test_sums_of_a_product_take_their_time_however_narrow_it_is() -> None:
    """7,168 elements at 0.25 ns are 1.792 us; of 8 ranks, one adds up an eighth of them if rows are cut."""
    part = with_classes(
        load("h200_sxm"), memory_fraction=1.0, matrix_fraction=1.0, latency_s=0.0, exponent=16.0, depth_s=0.25e-9,
        depth_s_by={"fp8": 1e-9},
    )  # fmt: skip
    for dtype, shard, seconds in (
        ("bf16", "replicated", 1.792e-6), ("fp8", "replicated", 7.168e-6),
        ("fp8", "row", 0.896e-6), ("fp8", "column", 7.168e-6),
    ):  # fmt: skip
        op = linear_op(Linear("narrow", 7168, 16, dtype, shard=shard), 1, 1 / 8)  # type: ignore[arg-type]
        assert roof_times(op, part).latency_s == pytest.approx(seconds)

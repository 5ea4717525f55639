"""The fit finds the parameters that made synthetic times; gates throw out what physics forbids."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from calibration.op_tables.attention_rows import generation_mla, one_kernel
from calibration.op_tables.row_filters import copied_from, data_sheets_agree, gate_rows
from calibration.op_tables.table_ops import measurements
from calibration.rate_parameters import Parameters
from calibration.roofline_fit import MeasuredWork, Work, fit, kernels_of
from hw_profiles.catalog import load
from hw_profiles.efficiency import OpClass
from hw_profiles.profile import HardwareProfile
from simulator.model.ops import Op, operand_dtype
from simulator.model.roofline import op_seconds

B200 = load("b200_sxm")
Timed = Callable[[str, pd.DataFrame, HardwareProfile], pd.DataFrame]


SHAPES = ((7168, 2048), (4096, 7168), (7168, 16384), (8192, 8192))
NARROW = ((256, 512), (256, 512), (512, 16384), (512, 16384))


def shapes(weights: tuple[tuple[int, int], ...] = SHAPES) -> pd.DataFrame:
    rows = [
        ("bfloat16" if i % 2 else "fp8_block", m, n, k)
        for i, (n, k) in enumerate(weights)
        for m in (1, 16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384)
    ]
    return pd.DataFrame(rows, columns=["gemm_dtype", "m", "n", "k"])


def test_fit_recovers_the_rates_that_made_the_times(timed: Timed, with_rates: Callable[..., HardwareProfile]) -> None:
    truth = with_rates(
        B200, OpClass.DENSE_GEMM,
        matrix_fraction=0.6, matrix_fraction_by={"fp8": 0.45}, memory_fraction=0.8, latency_s=5e-6, exponent=2.5,
        depth_s=4e-10, depth_s_by={"fp8": 9e-10},
    )  # fmt: skip
    measured = measurements("gemm", timed("gemm", shapes(SHAPES + NARROW), truth), B200)
    start = Parameters.of(B200.efficiency.classes, kernels_of(measured))
    found = fit(Work.of(measured, B200, start), start, {OpClass.DENSE_GEMM})
    at = found.parameters.value
    assert at("matrix_fraction", OpClass.DENSE_GEMM, "bf16") == pytest.approx(0.6, rel=0.03)
    assert at("matrix_fraction", OpClass.DENSE_GEMM, "fp8") == pytest.approx(0.45, rel=0.03)
    assert at("memory_fraction", OpClass.DENSE_GEMM) == pytest.approx(0.8, rel=0.03)
    assert at("latency_s", OpClass.DENSE_GEMM) == pytest.approx(5e-6, rel=0.05)
    assert at("depth_s", OpClass.DENSE_GEMM, "bf16") == pytest.approx(4e-10, rel=0.1)
    assert at("depth_s", OpClass.DENSE_GEMM, "fp8") == pytest.approx(9e-10, rel=0.1)
    assert np.median(np.abs(found.held_out)) < 0.02


def test_a_parameter_apart_is_fitted_where_its_class_is_not(
    timed: Timed, with_rates: Callable[..., HardwareProfile]
) -> None:
    """Whole modules tell the depth of a product of which no short row is left."""
    measured = measurements(
        "gemm", timed("gemm", shapes(), with_rates(B200, OpClass.DENSE_GEMM, depth_s_by={"fp8": 9e-10})), B200
    )
    start = Parameters.of(B200.efficiency.classes, kernels_of(measured))
    slot = ("depth_s", OpClass.DENSE_GEMM, "fp8")
    alone = fit(Work.of(measured, B200, start), start, set(), apart={slot}).parameters
    assert alone.value(*slot) == pytest.approx(9e-10, rel=0.05)
    assert alone.value("latency_s", OpClass.DENSE_GEMM) == start.value("latency_s", OpClass.DENSE_GEMM)
    rest = fit(Work.of(measured, B200, start), start, {OpClass.DENSE_GEMM}, apart={slot}).parameters
    assert rest.value(*slot) == start.value(*slot)


def cores(truth: HardwareProfile) -> list[MeasuredWork]:
    """Decode cores from bound by bytes to bound by FLOPs, in two precisions."""
    ops = [
        Op("core", OpClass.LATENT_DECODE, {dtype: work * intensity}, work)
        for dtype in ("bf16", "fp8")
        for intensity in (1.0, 30.0, 3000.0)
        for work in (1e6, 1e7, 1e8, 1e9)
    ]
    return [MeasuredWork("generation_mla", (op,), op_seconds(op, truth), str(i)) for i, op in enumerate(ops)]


def test_each_dtype_has_a_memory_fraction_of_its_own_but_in_dense_products(
    timed: Timed, with_rates: Callable[..., HardwareProfile]
) -> None:
    truth = with_rates(B200, OpClass.LATENT_DECODE, memory_fraction=0.7, memory_fraction_by={"fp8": 0.4})
    measured = cores(truth)
    start = Parameters.of(B200.efficiency.classes, kernels_of(measured))
    found = fit(Work.of(measured, B200, start), start, {OpClass.LATENT_DECODE}).parameters
    assert found.by_kernel("memory_fraction", OpClass.LATENT_DECODE) == pytest.approx(
        {"bf16": 0.7, "fp8": 0.4}, rel=0.03
    )
    fractions = found.fractions(OpClass.LATENT_DECODE, B200.efficiency.classes[OpClass.LATENT_DECODE])
    assert fractions["memory_fraction"] == pytest.approx(0.4, rel=0.03)  # an unseen precision takes the least
    products = measurements("gemm", timed("gemm", shapes(), B200), B200)
    shared = Parameters.of(B200.efficiency.classes, kernels_of(products))
    assert shared.by_kernel("memory_fraction", OpClass.DENSE_GEMM) == {}


def test_work_prices_ops_as_the_simulator_does(timed: Timed) -> None:
    measured = measurements("gemm", timed("gemm", shapes(), B200), B200)
    start = Parameters.of(B200.efficiency.classes, kernels_of(measured))
    predicted = Work.of(measured, B200, start).seconds(start.logs)
    assert predicted == pytest.approx([one.seconds for one in measured], rel=1e-9)


def gated(frame: pd.DataFrame) -> tuple[list[MeasuredWork], set[str]]:
    kept, rejected = gate_rows("gemm", frame, measurements("gemm", frame, B200), B200)
    return kept, {one.rule for one in rejected}


def test_honest_times_pass_the_gates(timed: Timed) -> None:
    frame = timed("gemm", shapes(), B200)
    kept, rules = gated(frame)
    assert len(kept) == len(frame)
    assert rules == set()


def test_times_below_the_data_sheet_are_thrown_out(timed: Timed) -> None:
    frame = timed("gemm", shapes(), B200)
    frame.loc[9, "latency"] *= 0.1  # 16,384 rows: far above the matrix peak
    kept, rules = gated(frame)
    assert "faster than the data sheet" in rules
    assert len(kept) == len(frame) - 1


def test_a_table_several_times_too_slow_is_thrown_out(timed: Timed) -> None:
    frame = timed("gemm", shapes(), B200).assign(kernel_source="good")
    slow = frame.assign(kernel_source="slow", latency=frame["latency"] * 6)
    kept, rules = gated(pd.concat([frame, slow], ignore_index=True))
    assert rules == {"slow table"}
    assert len(kept) == len(frame)


def test_less_time_for_more_work_is_thrown_out(timed: Timed) -> None:
    frame = timed("gemm", shapes(), B200)
    frame.loc[7, "latency"] = frame.loc[6, "latency"] * 0.5
    kept, _ = gated(frame)
    assert len(kept) == len(frame) - 1


def test_copies_are_found_and_judged_by_data_sheets(timed: Timed) -> None:
    frame = timed("gemm", shapes(), B200)
    assert copied_from(frame, {"gb200": frame.copy()}) == "gb200"
    assert copied_from(frame, {"gb200": frame.assign(latency=frame["latency"] * 1.01)}) is None
    same_times_of_other_shapes = frame.assign(latency=frame["latency"].to_numpy()[::-1])
    assert copied_from(frame, {"gb200": same_times_of_other_shapes}) is None
    assert not data_sheets_agree(load("h100_sxm"), load("h200_sxm"))
    assert data_sheets_agree(load("b200_sxm"), load("b200_sxm"))


def test_of_two_kernels_of_the_same_shapes_the_faster_stands_for_the_stack() -> None:
    frame = pd.DataFrame({"batch_size": [1, 2, 4], "kernel_source": "fast", "latency": [1.0, 2.0, 4.0]})
    slow = frame.assign(kernel_source="slow", latency=frame["latency"] * 1.4)
    elsewhere = frame.iloc[:2].assign(batch_size=[8, 16], kernel_source="where the others cannot run")
    kept = one_kernel(pd.concat([elsewhere, slow, frame], ignore_index=True))
    assert set(kept["kernel_source"]) == {"fast"}


def attention_rows(**columns: object) -> pd.DataFrame:
    fixed = {"num_heads": 64, "kernel_source": "k", "latency": 1.0, "step": 1023, "isl": 1024, "batch_size": 4}
    return pd.DataFrame({**fixed, **columns})


def test_cores_over_fp8_entries_multiply_in_fp8() -> None:
    frame = attention_rows(
        num_key_value_heads=8, head_dim=128, attn_dtype="bfloat16", kv_cache_dtype=["bfloat16", "fp8"]
    )
    for family in ("generation_attention", "context_attention"):
        dtypes = [operand_dtype(one.ops[0]) for one in measurements(family, frame, B200)]
        assert dtypes == ["bf16", "fp8"]


def test_prompts_shorter_than_a_tile_are_no_prefill() -> None:
    frame = attention_rows(model="deepseek-ai/DeepSeek-V4-Pro", compress_ratio=128, isl=[1, 1024], step=0)
    assert len(measurements("dsv4_hca_context_module", frame, B200)) == 1


def test_contexts_within_one_split_have_nothing_to_merge() -> None:
    frame = pd.DataFrame({"kv_cache_dtype": "bfloat16", "num_heads": 128, "batch_size": 4, "step": [127, 1023]})
    short, long = (ops for _, ops in generation_mla(frame, B200))
    assert [op.hops for op in short] == [2 / 3]
    assert [op.hops for op in long] == [1]


def test_decode_cores_of_grouped_heads_have_a_floor_of_each_precision() -> None:
    measured = [
        MeasuredWork("table", (Op("core", OpClass.ATTENTION_DECODE, {dtype: 1e6}, size),), floor + size / 7e12, "row")
        for dtype, floor in (("bf16", 9e-6), ("fp8", 17e-6))
        for size in np.geomspace(1e5, 3e9, 20)
    ]
    start = Parameters.of(B200.efficiency.classes, kernels_of(measured))
    found = fit(Work.of(measured, B200, start), start, {OpClass.ATTENTION_DECODE}).parameters
    floors = found.floors(OpClass.ATTENTION_DECODE)
    assert floors["latency_s_by"] == pytest.approx({"bf16": 9e-6, "fp8": 17e-6}, rel=0.03)
    assert floors["latency_s"] == pytest.approx(9e-6, rel=0.03)
    rates = B200.efficiency.classes[OpClass.ATTENTION_DECODE].model_copy(update=floors)
    assert rates.latency_s_of("fp8") == pytest.approx(17e-6, rel=0.03)
    assert rates.latency_s_of("int8") == rates.latency_s


def test_windowed_cores_read_their_window() -> None:
    frame = attention_rows(
        num_key_value_heads=[8, 8, 1], head_dim=64, attn_dtype="bfloat16", kv_cache_dtype="bfloat16",
        window_size=[0, 128, 128],
    )  # fmt: skip
    whole, window = (one.ops[0].hbm_bytes for one in measurements("generation_attention", frame, B200))
    rows = 4 * 64 * 2 * 64 * 2  # queries in and results out
    assert (whole - rows) / (window - rows) == pytest.approx(1024 / 128)


def test_states_of_gated_delta_net_move_once_a_token_in_decode() -> None:
    """64 f32 states of 128 x 128 (and the rows of their convolution), read and written by each of 32 sequences."""
    fixed = {"num_v_heads": 64, "num_k_heads": 16, "head_k_dim": 128, "head_v_dim": 128, "latency": 1.0}
    frame = pd.DataFrame([
        {**fixed, "phase": "generation", "kernel_source": "fused_gated_delta_rule", "batch_size": 32, "seq_len": 1},
        {**fixed, "phase": "generation", "kernel_source": "causal_conv1d_update", "batch_size": 32, "seq_len": 1},
        {**fixed, "phase": "context", "kernel_source": "chunk_gated_delta_rule", "batch_size": 2, "seq_len": 4096},
        {**fixed, "phase": "context", "kernel_source": "chunk_gated_delta_rule", "batch_size": 2, "seq_len": 1},
    ])  # fmt: skip
    decode, prefill = (one.ops[0] for one in measurements("gdn", frame, B200))
    assert decode.hbm_bytes == pytest.approx(32 * 2 * 64 * 128 * 128 * 4, rel=0.02)
    # of a chunk of 64: three products of the state, and five between rows of the chunk
    flops = 64 * (3 * 2 * 128 * 128 + 5 * 2 * 64 * 128)
    assert sum(prefill.flops.values()) == pytest.approx(8192 * flops)
    assert (decode.op_class, prefill.op_class) == (OpClass.RECURRENT_DECODE, OpClass.RECURRENT_PREFILL)

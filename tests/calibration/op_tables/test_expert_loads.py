"""Tables of unfused experts: whose tokens touch which experts, and which rows say something of the kernel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from calibration.op_tables.expert_loads import power_law_counts, touched_in_groups
from calibration.op_tables.row_filters import fastest, gate_rows, slower_kernel
from calibration.op_tables.table_ops import measurements
from calibration.rate_parameters import Parameters
from calibration.roofline_fit import Work, fit, kernels_of
from hw_profiles.catalog import load
from hw_profiles.efficiency import OpClass
from hw_profiles.profile import HardwareProfile

B200 = load("b200_sxm")
Timed = Callable[[str, pd.DataFrame, HardwareProfile], pd.DataFrame]
TOKENS = (1, 16, 64, 256, 1024, 4096)


def table(dtypes: tuple[str, ...] = ("fp8_block",), framework: str = "trtllm", experts: int = 256) -> pd.DataFrame:
    rows = [
        {
            "system": "b200_sxm", "db_framework": framework, "db_version": "1", "moe_dtype": dtype,
            "num_tokens": tokens, "hidden_size": hidden, "inter_size": inner, "topk": 8, "num_experts": experts,
            "moe_tp_size": 1, "moe_ep_size": 1, "distribution": "power_law_1.2", "latency": 1.0,
        }
        for dtype in dtypes
        for hidden, inner in ((7168, 2048), (4096, 1536))
        for tokens in TOKENS
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_power_law_counts_add_up_and_are_uneven() -> None:
    counts = power_law_counts(8192, 256, 1.2, 800.0)
    assert counts.sum() == pytest.approx(8192.0)
    assert counts.max() > 20 * np.median(counts)


def test_missing_choices_go_to_idle_experts() -> None:
    """16 tokens with 6 of 256 experts each: rounded loads fall 17 short of 96."""
    counts = power_law_counts(96, 256, 1.2, 12.8)
    assert counts.sum() == pytest.approx(96.0)
    assert 70 <= (counts > 0).sum() <= 96


def test_a_token_touches_as_many_experts_as_it_chooses() -> None:
    assert touched_in_groups(1, 8, (1,) * 8 + (0,) * 248, 8, 4) == 8


def test_groups_leave_out_experts_that_tokens_were_meant_for() -> None:
    """Eight choices fall into 8 (1 - (7/8)^8) = 5.25 of eight groups; the four fullest hold about 0.83 of them."""
    spread = touched_in_groups(16, 8, (1,) * 128 + (0,) * 128, 8, 4)
    assert 0.75 * 128 < spread < 0.92 * 128
    everywhere = touched_in_groups(16, 8, (1,) * 128 + (0,) * 128, 8, 8)
    assert everywhere == 128


def test_only_frameworks_that_route_in_groups_touch_fewer_experts() -> None:
    grouped, free = (measurements("moe", table(framework=f), B200) for f in ("sglang", "trtllm"))
    for a, b in zip(grouped, free, strict=True):
        shape, tokens = table().loc[int(a.label.split()[-1]), ["hidden_size", "num_tokens"]]
        share = a.ops[0].hbm_bytes / b.ops[0].hbm_bytes
        if shape == 7168 and tokens in (16, 64, 256):
            assert 0.7 < share < 0.95
        else:
            assert share <= 1.0
            assert share == 1.0 or shape == 7168


def test_each_kernel_of_experts_has_rates_and_a_floor_of_its_own(
    timed: Timed, with_rates: Callable[..., HardwareProfile]
) -> None:
    truth = with_rates(
        B200, OpClass.GROUPED_GEMM,
        matrix_fraction_by={"fp8": 0.3, "fp8 x fp4": 0.6}, memory_fraction_by={"fp8": 0.7, "fp8 x fp4": 0.85},
        latency_s_by={"fp8": 12e-6, "fp8 x fp4": 4e-6}, reread_share_by={"fp8": 0.4, "fp8 x fp4": 0.8},
    )  # fmt: skip
    frame = table(("fp8_block", "w4a8_mxfp4_mxfp8"))
    measured = measurements("moe", timed("moe", frame, truth), B200)
    start = Parameters.of(B200.efficiency.classes, kernels_of(measured))
    found = fit(Work.of(measured, B200, start), start, {OpClass.GROUPED_GEMM}).parameters
    before = B200.efficiency.classes[OpClass.GROUPED_GEMM]
    own = (found.fractions(OpClass.GROUPED_GEMM, before), found.floors(OpClass.GROUPED_GEMM))
    rates = before.model_copy(update={**own[0], **own[1], **found.rereads(OpClass.GROUPED_GEMM)})
    expected = (("fp8", 0.3, 0.7, 12e-6, 0.4), ("fp8 x fp4", 0.6, 0.85, 4e-6, 0.8))
    for kernel, matrix, memory, floor, again in expected:
        assert rates.matrix_fraction_of(kernel) == pytest.approx(matrix, rel=0.1)
        assert rates.memory_fraction_of(kernel) == pytest.approx(memory, rel=0.05)
        assert rates.latency_s_of(kernel) == pytest.approx(floor, rel=0.2)
        assert rates.reread_share_of(kernel) == pytest.approx(again, abs=0.1)
    assert rates.memory_fraction_of("fp8 x int4") == rates.memory_fraction_of("fp8")  # its operands' kernel
    assert rates.memory_fraction_of("bf16") == min(rates.memory_fraction_of(k) for k in ("fp8", "fp8 x fp4"))


def test_times_that_are_mostly_other_work_are_thrown_out(timed: Timed) -> None:
    frame = timed("moe", table(), B200)
    kept, rejected = gate_rows("moe", frame, measurements("moe", frame, B200), B200)
    assert len(kept) == len(frame)
    assert rejected == []
    frame.loc[0, "latency"] = 0.3  # 0.3 ms for the eight experts of one token
    kept, rejected = gate_rows("moe", frame, measurements("moe", frame, B200), B200)
    assert [(one.rule, one.rows) for one in rejected] == [("other work", 1)]
    assert len(kept) == len(frame) - 1


def test_of_two_kernels_under_one_name_the_faster_is_kept(timed: Timed) -> None:
    frame = timed("moe", table(), B200)
    both = pd.concat([frame.assign(latency=frame["latency"] * 1.4), frame], ignore_index=True)
    assert list(fastest(both).index) == list(range(len(frame), 2 * len(frame)))
    again = pd.concat([frame.assign(latency=frame["latency"] * 1.05), frame], ignore_index=True)
    assert len(fastest(again)) == len(again)


def test_a_precision_whose_kernel_is_slower_than_elsewhere_is_named(timed: Timed) -> None:
    frame = timed("moe", table(("fp8_block", "nvfp4")), B200)
    slow = frame.assign(latency=np.where(frame["moe_dtype"] == "nvfp4", 1.5, 1.0) * frame["latency"], system="b300")
    assert slower_kernel(slow, {"b200_sxm": frame}) == {"nvfp4": "b200_sxm"}
    assert slower_kernel(frame, {"b300_sxm": slow}) == {}

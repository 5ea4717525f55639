"""Op tables of the installed wheel: parquet files by accelerator, family, stack and version."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from calibration.op_tables import rows, table_ops
from calibration.op_tables.fit_tables import calibrate
from calibration.op_tables.tables import WHEEL, TableError, read_tables, systems
from hw_profiles.catalog import load
from hw_profiles.efficiency import OpClass
from hw_profiles.profile import HardwareProfile

B200 = load("b200_sxm")
Timed = Callable[[str, pd.DataFrame, HardwareProfile], pd.DataFrame]
TRUTH = {"matrix_fraction_by": {"bf16": 0.6}, "matrix_fraction": 0.6, "memory_fraction": 0.8, "latency_s": 3e-6}


def products() -> pd.DataFrame:
    """Columns as in the wheel: nothing says the accelerator but `device`."""
    rows = [
        {"framework": "SGLang", "version": "9", "device": "NVIDIA B200", "op_name": "gemm", "kernel_source": "k",
         "gemm_dtype": "bfloat16", "m": m, "n": n, "k": k, "latency": 1.0}
        for n, k in ((7168, 2048), (4096, 7168), (512, 7168))
        for m in (1, 16, 64, 256, 1024, 4096, 16384)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def experts() -> pd.DataFrame:
    rows = [
        {"framework": "SGLang", "version": "9", "device": "NVIDIA B200", "op_name": "moe", "kernel_source": "k",
         "moe_dtype": "bfloat16", "num_tokens": tokens, "hidden_size": 7168, "inter_size": inner, "topk": 8,
         "num_experts": 256, "moe_tp_size": 1, "moe_ep_size": 1, "distribution": "power_law_1.2", "latency": 1.0}
        for inner in (1024, 2048)
        for tokens in (1, 4, 16, 64, 256, 1024, 4096, 16384)
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture
def wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_rates: Callable[..., HardwareProfile], timed: Timed
) -> Path:
    """An importable package laid out as the wheel is, with an older and a newer version of one table."""
    root = tmp_path / WHEEL / "systems" / "data"
    (tmp_path / WHEEL / "__init__.py").parent.mkdir(parents=True)
    (tmp_path / WHEEL / "__init__.py").write_text("")

    def put(system: str, family: str, version: str, frame: pd.DataFrame) -> None:
        folder = root / system / family / "sglang" / version
        folder.mkdir(parents=True)
        frame.to_parquet(folder / f"{family}_perf.parquet")

    frame = timed("gemm", products(), with_rates(B200, OpClass.DENSE_GEMM, **TRUTH))
    routed = experts().assign(db_framework="sglang")  # where the ops of a row look for it
    routed = timed("moe", routed, with_rates(B200, OpClass.GROUPED_GEMM, memory_fraction=0.7))
    put("b200_sxm", "gemm", "0.5.9", frame.assign(latency=frame["latency"] * 50))
    put("b200_sxm", "gemm", "0.5.10", frame)
    put("b200_sxm", "moe", "0.5.10", routed.drop(columns="db_framework"))
    put("h200_sxm", "gemm", "0.5.10", frame.assign(latency=frame["latency"] * 1.7))
    monkeypatch.syspath_prepend(str(tmp_path))
    return root


def test_tables_of_the_wheel_have_the_columns_of_the_samples(wheel: Path) -> None:
    tables = read_tables("b200_sxm", "sglang")
    assert sorted(tables.frames) == ["gemm", "moe"]
    for frame in tables.frames.values():
        assert set(frame["system"]) == {"b200_sxm"}
        assert set(frame["db_framework"]) == {"sglang"}
        assert set(frame["db_version"]) == {"0.5.10"}
        assert not {"framework", "version", "device"} & set(frame)
    assert systems(None, "sglang") == ["b200_sxm", "h200_sxm"]


def test_rates_are_fitted_from_the_wheel(wheel: Path) -> None:
    found = calibrate("b200_sxm", "sglang")
    assert {(error.family, error.rows) for error in found.errors} == {("gemm", 21), ("moe", 16)}
    assert all(error.held_out < 0.06 for error in found.errors)
    rates = found.efficiency.classes
    assert rates[OpClass.DENSE_GEMM].matrix_fraction_of("bf16") == pytest.approx(0.6, rel=0.05)
    assert rates[OpClass.GROUPED_GEMM].memory_fraction_of("bf16") == pytest.approx(0.7, rel=0.1)


def test_families_beside_others_add_what_they_fitted(wheel: Path) -> None:
    dense, routed = (calibrate("b200_sxm", "sglang", None, (family,)) for family in ("gemm", "moe"))
    both = dense.beside(routed)
    classes = both.efficiency.classes
    assert classes[OpClass.DENSE_GEMM] == dense.efficiency.classes[OpClass.DENSE_GEMM]
    assert classes[OpClass.GROUPED_GEMM] == routed.efficiency.classes[OpClass.GROUPED_GEMM]
    assert [error.family for error in both.errors] == ["gemm", "moe"]


def test_large_tables_are_sampled_among_the_rows_that_are_used(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "LARGEST", 10)
    frame = read_tables("b200_sxm", "sglang").frames["gemm"]
    unused = frame.assign(gemm_dtype="nvfp4")
    assert len(table_ops.measurements("gemm", pd.concat([unused] * 9 + [frame], ignore_index=True), B200)) == 10


def test_a_stack_or_accelerator_without_tables_is_said(wheel: Path) -> None:
    with pytest.raises(TableError, match=r"no tables of system 'mi300x'; it has b200_sxm, h200_sxm"):
        read_tables("mi300x", "sglang")
    with pytest.raises(TableError, match=r"no tables of stack 'vllm' on b200_sxm"):
        read_tables("b200_sxm", "vllm")

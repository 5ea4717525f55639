"""Rows of points files: labels, lengths, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from calibration.serving.points import PointsError, Unpredictable, Worker, parse_point, parse_worker, read_points

ROW = {"model": "DeepSeek-R1", "gpu": "B200", "engine": "SGLang", "precision": "FP8", "n_gpu": 8, "isl": 1000,
       "osl": 500, "concurrency": 16, "decode_parallel": "TP8", "tpot_ms": 12.0}  # fmt: skip


@pytest.mark.parametrize(
    ("label", "gpus", "worker"),
    [
        ("TP8 EP1", 8, Worker(1, 8, False, False)),
        ("TP8 EP8", 8, Worker(1, 8, False, True)),
        ("TP4 EP4 DPattn", 4, Worker(1, 4, True, True)),
        ("TP4/DP4 dp-attention, DeepEP EP4", 4, Worker(1, 4, True, True)),
        ("DEP8", 8, Worker(1, 8, True, True)),
        ("2x(TP8 EP8 DPattn)", 16, Worker(2, 8, True, True)),
        ("4x(TP1 DP4 EP4)", 16, Worker(4, 4, True, True)),
        ("6x(TP1 EP1 DPattn)", 48, Worker(6, 8, True, True)),
        ("1x(TP32 EP32 DPattn)", 32, Worker(1, 32, True, True)),
        ("", 8, Worker(1, 8, False, False)),
        ("TP4", 8, Worker(2, 4, False, False)),
        ("TP1", 1, Worker(1, 1, False, False)),
    ],
)
def test_labels(label: str, gpus: int, worker: Worker) -> None:
    assert parse_worker(label, gpus) == worker


@pytest.mark.parametrize(
    ("extra", "lengths"),
    [
        ({}, (1000, 500)),
        ({"workload": "1000/500 random (0.8-1.0x)"}, (900, 450)),
        ({"workload": "random 1000/500 nominal"}, (500, 250)),
        ({"workload": "random", "notes": "actual mean lengths 610/422"}, (610, 422)),
    ],
)
def test_lengths(extra: dict[str, str], lengths: tuple[float, float]) -> None:
    point = parse_point(0, {**ROW, **extra})
    assert (point.prompt, point.output) == lengths


@pytest.mark.parametrize(
    ("date", "half_years"),
    [("2026-08-15", 0.0), ("2026-05", 0.5), ("2025-08-01", 2.0), ("2026-11-28", -0.5), ("2031-01-01", -1.0),
     ("2026 (docs)", 0.0), (None, 0.0)],
)  # fmt: skip
def test_age_of_software(date: str | None, half_years: float) -> None:
    assert parse_point(0, {**ROW, "date": date}).age == pytest.approx(half_years)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"concurrency": None}, "no concurrency"),
        ({"isl": -5}, "isl is -5; give a positive number"),
        ({"tpot_ms": "abc"}, "tpot_ms is 'abc', which is no number"),
        ({"ttft_ms": "inf"}, "ttft_ms is inf; give a positive number"),
        ({"disaggregated": "perhaps"}, "disaggregated is 'perhaps'"),
        ({"isl": float("nan")}, "no isl"),
        ({"tpot_ms": None}, "no measured metric"),
        ({"disaggregated": 1, "prefill_parallel": ""}, "split into prefill and decode"),
        ({"phase": "warm-up"}, "phase 'warm-up'"),
        ({"n_gpu": 7, "decode_parallel": "2x(TP4)"}, "do not divide"),
    ],
)
def test_rows_that_cannot_be_predicted_say_why(change: dict[str, object], said: str) -> None:
    with pytest.raises(Unpredictable, match=said):
        parse_point(0, {**ROW, **change})


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    empty = tmp_path / "empty.csv"
    empty.write_text("")
    with pytest.raises(PointsError, match="empty"):
        read_points(empty)
    lacking = tmp_path / "lacking.csv"
    lacking.write_text("model,gpu\nx,y\n")
    with pytest.raises(PointsError, match="isl, osl, concurrency"):
        read_points(lacking)
    without = tmp_path / "without.csv"
    without.write_text("model,gpu,isl,osl,concurrency\nx,y,1,1,1\n")
    with pytest.raises(PointsError, match="no metric column"):
        read_points(without)


def test_blank_cells_are_left_out_whatever_stands_for_blank() -> None:
    point = parse_point(0, {**ROW, "ttft_ms": "-", "n_prefill_gpu": 0, "tok_s_per_user": "", "disaggregated": "False"})
    assert dict(point.measured) == {"tpot_ms": 12.0}
    assert not point.disaggregated


@pytest.mark.parametrize(
    ("stat", "notes", "median_ms"),
    [
        ("mean", "p99 TTFT 1.48 s, p99 TPOT 7.86 ms, median TTFT 0.342 s", 342.0),
        ("mean", "p99 TTFT 1.48 s", None),
        ("p50", "median TTFT 0.342 s", None),
    ],
)
def test_a_median_beside_a_mean_is_read_from_the_notes(stat: str, notes: str, median_ms: float | None) -> None:
    point = parse_point(0, {**ROW, "ttft_stat": stat, "notes": notes})
    assert point.median_ttft_ms == (None if median_ms is None else pytest.approx(median_ms))

"""Rows of points files: lengths, pools, refusals."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from calibration.serving.layouts import WorkerLayout
from calibration.serving.points import PointsError, Unpredictable, parse_point, read_points

ROW = {"model": "DeepSeek-R1", "gpu": "B200", "engine": "SGLang", "precision": "FP8", "n_gpu": 8, "isl": 1000,
       "osl": 500, "concurrency": 16, "decode_parallel": "TP8", "tpot_ms": 12.0}  # fmt: skip


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
        ({"decode_parallel": "8 GPU, TP8 (as printed)"}, "as printed or recorded in part"),
        (
            {"disaggregated": 1, "prefill_parallel": "TP 4 per worker", "decode_parallel": "TP 4 per worker"},
            "of one worker",
        ),
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


def test_a_pool_measured_alone_needs_no_output_length_and_no_other_pool() -> None:
    row = {**ROW, "osl": None, "n_gpu": None, "disaggregated": 1, "decode_parallel": "PP2 x TP8 (attention and MoE)"}
    point = parse_point(0, {**row, "phase": "decode", "n_decode_gpu": 16, "isl": 4096})
    assert point.decode == WorkerLayout(1, 16, False, False, stages=2)
    assert (point.prompt, point.output) == (4096, 1)
    with pytest.raises(Unpredictable, match="no osl"):
        parse_point(0, {**row, "n_decode_gpu": 8, "n_prefill_gpu": 8})


def test_drafts_that_nobody_wrote_down_are_none_and_said_to_be_unknown() -> None:
    unknown = parse_point(0, {**ROW, "spec_decode": "not recorded"})
    assert (unknown.drafts, unknown.drafts_recorded) == (0, False)
    assert parse_point(0, {**ROW, "spec_decode": "none"}).drafts_recorded


def test_the_highest_throughput_has_as_many_in_flight_as_there_are() -> None:
    row = {**ROW, "concurrency": None, "workload": "1000/500 trtllm-bench max throughput"}
    assert parse_point(0, row).concurrency == math.inf


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"workload": "agentic trace, 90% KV reuse"}, "prefix cache"),
        ({"notes": "prefix cache off"}, ""),
        ({"notes": "concurrency far above running batch"}, "not the number of requests in flight"),
    ],
)
def test_rows_that_contradict_themselves_are_named(change: dict[str, str], said: str) -> None:
    distrusted = parse_point(0, {**ROW, **change}).distrusted
    assert said in distrusted
    assert bool(distrusted) == bool(said)


def test_flags_of_a_layout_state_limits() -> None:
    flags = "--tp-size=8 --dp-size=8 --enable-dp-attention --max-running-requests=256 --chunked-prefill-size=8192"
    point = parse_point(0, {**ROW, "decode_parallel": flags})
    assert (point.most_running, point.prefill_chunk) == (256, 8192)

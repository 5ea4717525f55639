"""Figures in the README are those of the committed results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import loop
from calibration.replay.report import METRICS, LoadReport

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_loop_table_is_that_of_the_committed_result() -> None:
    result = json.loads(loop.RESULT.read_text(encoding="utf-8"))
    assert loop.table(result["median error"]) in README
    assert result["machine"]["time"][:10] in README
    assert f"{result['requests']} requests" in README


def test_a_rerun_is_against_the_replay_before_of_the_same_load() -> None:
    def row(load: float, seconds: float) -> dict[str, LoadReport]:
        measured = dict.fromkeys(METRICS, seconds)
        return {"forecast": LoadReport("colocated", load, 1, {}, measured, 1.0, {})}

    rows = [row(1.5, 1.0), row(1.5, 1.1), row(1.5, 1.1), row(0.3, 9.0), row(0.3, 9.0), row(0.3, 9.9)]
    assert loop.reruns(rows)["TPOT p50"] == pytest.approx(0.05)
    assert "| TPOT p50, p90, p99 | -, -, - |" in loop.table(
        {"colocated": dict.fromkeys((*loop.PREDICTIONS, "rerun"), loop.reruns([row(1.0, 1.0)]))}
    )

"""Score of the shipped fit on rows that it has not seen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import out_of_sample
from benchmarks.out_of_sample import UNSATURATED, answer, main
from calibration.serving.effects import shipped
from calibration.serving.predict import prepare

ROW = {"model": "DeepSeek-R1", "gpu": "B200", "n_gpu": 8, "engine": "SGLang", "precision": "FP8", "spec_decode": "none",
       "decode_parallel": "TP8", "isl": 1000, "osl": 500, "tpot_ms": 12.0, "ttft_ms": 300.0}  # fmt: skip


def frame(*changes: dict[str, object]) -> pd.DataFrame:
    return pd.DataFrame([{**ROW, **change} for change in changes])


def test_groups_have_eight_rows_or_more_and_refusals_are_counted() -> None:
    few = [{"concurrency": 4, "gpu": "H200"}] * 7
    found = answer(
        prepare(frame(*[{"concurrency": 2**i} for i in range(8)], *few, {}, {"concurrency": 1, "gpu": "X9"})), shipped()
    )
    assert (found["rows"], found["predicted"]) == (17, 15)
    assert [group["gpu"] for group in found["groups"]] == ["B200"]
    assert found["overall"]["tpot_ms"]["rows"] == 15
    assert found["unpredicted"]["no concurrency"] == 1


def test_rows_that_contradict_themselves_are_scored_apart() -> None:
    rate = 16 * 1500 / (0.3 + 499 * 0.012) / 8  # of 16 requests in flight [tokens/s]
    rows = [{"concurrency": 16, "total_tok_s_per_gpu": rate}, {"concurrency": 16, "total_tok_s_per_gpu": rate / 3}]
    found = answer(prepare(frame(*rows)), shipped())
    assert found["overall"]["total_tok_s_per_gpu"]["rows"] == 1
    (rule,) = found["distrusted"]
    assert "Little" in rule
    assert found["distrusted"][rule]["metrics"]["total_tok_s_per_gpu"]["rows"] == 1


def test_first_tokens_that_waited_in_a_queue_are_scored_apart() -> None:
    waited = {"ttft_ms": 0.6 * 500 * 12.0, "concurrency": 64}
    unknown = {"tpot_ms": None, "concurrency": 64}  # nothing to compare with
    found = answer(prepare(frame({"concurrency": 64}, waited, unknown, {**unknown, "concurrency": 1})), shipped())
    assert found["overall"]["ttft_ms"]["rows"] == 4
    assert found["overall"][UNSATURATED]["rows"] == 2


def test_a_first_score_is_not_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points, results = tmp_path / "points.csv", tmp_path / "results.json"
    frame({"concurrency": 8}).to_csv(points)
    command = ["out_of_sample", "--points", str(points), "--json", str(results)]
    monkeypatch.setattr("sys.argv", command)
    main()
    before = results.read_text()
    with pytest.raises(SystemExit):
        main()
    assert results.read_text() == before
    monkeypatch.setattr("sys.argv", [*command, "--key", "later"])
    main()
    kept = json.loads(results.read_text())
    assert list(kept) == ["as_shipped", "later"]
    assert kept["as_shipped"]["files"] == kept["later"]["files"]
    assert np.isfinite(kept["later"]["files"]["points.csv"]["overall"]["tpot_ms"]["median_error"])


def test_the_first_score_that_is_committed_is_of_the_fit_before_it_saw_these_rows() -> None:
    first = json.loads(out_of_sample.RESULTS.read_text(encoding="utf-8"))["as_shipped"]
    assert {name: found["predicted"] for name, found in first["files"].items()} == {
        "published_more.csv": 433,
        "silicon_sample.csv": 1033,
    }


def test_the_later_score_is_of_the_same_fit_on_more_rows() -> None:
    kept = json.loads(out_of_sample.RESULTS.read_text(encoding="utf-8"))
    first, later = kept["as_shipped"], kept["rows_understood_later"]
    assert first["fit"] == later["fit"]
    assert {name: found["sha256"] for name, found in first["files"].items()} == {
        name: found["sha256"] for name, found in later["files"].items()
    }
    assert later["files"]["published_more.csv"]["coverage"] >= 0.92
    assert later["files"]["silicon_sample.csv"]["coverage"] == 1

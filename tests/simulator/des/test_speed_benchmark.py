"""The files that the speed benchmark writes; what they say of speed is not tested."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.des import main, measure


def written(file: Path, *counts: int) -> Any:
    main(["--json", str(file), "--requests", *map(str, counts)])
    return json.loads(file.read_text())


def test_one_run_stands_for_itself_and_several_side_by_side(tmp_path: Path) -> None:
    several = written(tmp_path / "several.json", 40, 300)
    assert [run["requests"] for run in several["runs"]] == [40, 300]
    one = written(tmp_path / "one.json", 300)
    for run in (one, *several["runs"]):
        assert run["requests_per_s"] == pytest.approx(run["requests"] / run["cpu_s"])
        assert run["peak_mib"] > 0
    assert several["runs"][1]["p99"] == one["p99"] == measure(300)["p99"]
    assert several["machine"]["commit"] == one["machine"]["commit"]

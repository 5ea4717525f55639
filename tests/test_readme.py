"""Figures in the README are those of the committed results, and its Python runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import loop
from calibration.replay.report import METRICS, LoadReport

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


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


def test_the_python_example_runs_as_a_script(tmp_path: Path) -> None:
    """Its plan is that of the table above it."""
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    script = tmp_path / "example.py"
    script.write_text(example, encoding="utf-8")
    here = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], cwd=ROOT, env=here, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (gpus,) = re.findall(r"^(\d+) GPUs if the model is right", README, flags=re.MULTILINE)
    assert done.stdout.startswith(f"{gpus} GPUs, TTFT p90 1.")

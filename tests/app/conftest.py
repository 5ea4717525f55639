"""Scenario files for the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hw_profiles import catalog

SCENARIO = """
name = "small"
model = "{model}"

[workload]
kind = "open_loop"
rate = {rate}
requests = 60
prompt = 512
output = 32

[slo]
ttft_s = {ttft_s}
tpot_s = {tpot_s}

[search]
gpus = ["{gpu}"]
forms = ["colocated"]
simulate_top = 1

[deployment.colocated]
gpu = "{gpu}"
instances = 2
tp = {tp}
"""


@pytest.fixture
def scenario_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a scenario that answers in a second; keywords change it, `extra` is put in front."""

    def write(extra: str = "", **changes: object) -> Path:
        values: dict[str, object] = {
            "model": "qwen3-30b-a3b",
            "gpu": "h200",
            "rate": 2.0,
            "tp": 2,
            "ttft_s": 3.0,
            "tpot_s": 0.1,
        }
        path = tmp_path / "scenario.toml"
        path.write_text(extra + SCENARIO.format(**(values | changes)))
        return path

    return write


@pytest.fixture(autouse=True)
def _no_terminal_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parallel test workers set COLUMNS, which stands for a person's terminal here."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def own_profile(tmp_path: Path) -> Path:
    """A profile of one's own for a part of the catalogue, as `calibrate fit` would write it."""
    fit = catalog.fits("h200_sxm")["vllm"]
    classes = {op_class: rates.model_copy(update={"assumed": False}) for op_class, rates in fit.classes.items()}
    update = {
        "stack": "moeplan",
        "origin": "measured",
        "classes": classes,
        "overhead_assumed": False,
        "held_out_error": {"dense_gemm": 0.05, "elementwise": 0.1, "indexer": 0.2},
    }
    path = tmp_path / "profiles" / "h200_sxm@moeplan.json"
    path.parent.mkdir()
    path.write_text(fit.model_copy(update=update).model_dump_json(exclude_none=True), encoding="utf-8")
    return path

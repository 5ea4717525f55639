"""`moeplan catalogue`."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from app.cli import cli


def run(*args: str) -> str:
    result = CliRunner().invoke(cli, ["catalogue", *args])
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


def test_a_model_has_the_keys_that_scripts_read() -> None:
    """Counts of DeepSeek-V4-Pro, worked out from its config by hand."""
    model: dict[str, Any] = json.loads(run("models", "deepseek-v4-pro", "--json"))
    assert model["params_total"] == pytest.approx(1573.0e9, rel=1e-3)
    assert model["params_active"] == pytest.approx(49.78e9, rel=1e-3)
    assert model["params_active_no_embedding"] == pytest.approx(48.85e9, rel=1e-3)
    assert model["weight_bytes"] == pytest.approx(850.7e9, rel=5e-3)
    assert model["kv_bytes_per_token"] == pytest.approx(5031, rel=1e-2)
    assert list(model["kv_bytes"]) == ["8192", "65536", "262144", "1048576"]
    assert list(model["kv_bytes"].values()) == sorted(model["kv_bytes"].values())


def test_every_figure_of_a_gpu_has_its_source() -> None:
    gpu: dict[str, Any] = json.loads(run("gpus", "h200", "--json"))
    assert gpu["name"] == "h200_sxm"
    figures = [gpu["memory_capacity"], gpu["memory_bandwidth"], *gpu["matrix"].values(), *gpu["prices"].values()]
    assert all(figure["source"] and figure["accessed"] and figure["unit"] for figure in figures)
    assert gpu["si"]["memory_bandwidth"] == pytest.approx(4.8e12, rel=0.01)


@pytest.mark.parametrize(("kind", "least"), [("gpus", 24), ("models", 10)])
def test_lists_hold_everything(kind: str, least: int) -> None:
    data = json.loads(run(kind, "--json"))
    assert len(data) >= least
    table = run(kind)
    assert all(entry["name"] in table for entry in data)


@pytest.mark.parametrize("args", [["gpus"], ["models"], ["gpus", "b300"], ["models", "deepseek-v4-flash"]])
@pytest.mark.parametrize("columns", ["80", "120"])
def test_tables_fit_and_carry_no_escapes(args: list[str], columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    text = run(*args)
    assert max(map(len, text.splitlines())) <= int(columns)
    assert "\x1b" not in text
    assert "…" not in text

"""`moeplan catalogue`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from app.cli import cli
from hw_profiles import catalog


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
@pytest.mark.parametrize("columns", ["60", "80", "120"])
def test_tables_fit_and_carry_no_escapes(args: list[str], columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    text = run(*args)
    assert max(map(len, text.splitlines())) <= int(columns)
    assert "\x1b" not in text
    assert "…" not in text


def test_origins_of_speeds(own_profile: Path) -> None:
    """Measured, fitted from published tables, assumed; a fit never reads as assumed, and says what of it is."""
    folder = str(own_profile.parent)
    done = CliRunner().invoke(cli, ["--profiles", folder, "catalogue", "gpus", "--json"])
    assert done.exit_code == 0, done.stderr
    origins = {part["name"]: {s["stack"]: s["origin"] for s in part["speeds"]} for part in json.loads(done.stdout)}
    assert origins["h200_sxm"]["moeplan"] == "measured"
    assert origins["h200_sxm"]["vllm"] == "published"
    assert origins["h200_sxm"]["default"] == "assumed"
    assert origins["a100_sxm"] == {"default": "assumed"}
    done = CliRunner().invoke(cli, ["--profiles", folder, "catalogue", "gpus"])
    marks = {line.split()[0]: line.split()[-1] for line in done.stdout.splitlines() if line.strip()}
    assert (marks["h200_sxm"], marks["h100_sxm"], marks["a100_sxm"]) == ("mp", "p", "a")
    done = CliRunner().invoke(cli, ["--profiles", folder, "catalogue", "gpus", "h200_sxm"])
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert "measured with the runtime, held-out error 10%" in rows["moeplan"]
    assert rows["moeplan"].split()[-1] == "none"
    assert "fitted from published tables" in rows["vllm"]
    assert "point_to_point" in rows["vllm"]


def test_a_machine_of_ones_own_is_in_the_list(own_profile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = json.loads(own_profile.read_text())
    part = catalog.load("h200_sxm").accelerator.model_copy(update={"name": "my_box", "aliases": ()})
    data = fit | {"accelerator": "my_box", "part": part.model_dump(mode="json", exclude_none=True)}
    (own_profile.parent / "my_box@moeplan.json").write_text(json.dumps(data))
    monkeypatch.setenv("MOEPLAN_PROFILES", str(own_profile.parent))
    assert next(line for line in run("gpus").splitlines() if "my_box" in line).split()[-1] == "m"
    assert "measured with the runtime" in run("gpus", "my_box")


def test_a_fit_does_not_read_as_assumed() -> None:
    said = catalog.load("h100_sxm", "vllm").assumptions
    assert not any("not fitted" in line for line in said)
    assert any("fitted from published tables" in line and "moe_fused, point_to_point" in line for line in said)

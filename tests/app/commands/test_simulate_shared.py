"""`moeplan simulate` with mixed pools and with several models on one cluster."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from app.cli import cli

PARTS = """
name = "both"

[cluster]
gpus = { h200 = 8 }

[[models]]
name = "small"
model = "qwen3-30b-a3b"
workload = { kind = "open_loop", rate = 4.0, requests = 40, prompt = 512, output = 32 }
[models.deployment.prefill]
gpu = "h200"
[models.deployment.decode]
gpu = "h200"

[[models]]
name = "large"
model = "gpt-oss-120b"
workload = { kind = "open_loop", rate = 2.0, requests = 30, prompt = 512, output = 32 }
[models.deployment.colocated]
gpu = "h200"
tp = 2
"""


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    path = tmp_path / "parts.toml"
    path.write_text(PARTS)
    return path


def test_two_models_have_tables_and_json_of_their_own(parts: Path, tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("out.json", "rows.csv", "grid.csv", "line.json")}
    asked = ["--json", files["out.json"], "--requests", files["rows.csv"], "--series", files["grid.csv"]]
    result = CliRunner().invoke(cli, list(map(str, ["simulate", parts, *asked, "--timeline", files["line.json"]])))
    assert (result.exit_code, result.stderr) == (0, "")
    assert "both: 2 models on 8 GPUs" in result.stdout
    assert "gpt-oss-120b on 2 GPUs: large" in result.stdout
    data = json.loads(files["out.json"].read_text())
    assert set(data) == {"cluster", "models"}
    assert data["cluster"]["gpus"]["h200_sxm"] == {"total": 8, "models": {"small": 2, "large": 2}, "free": 4}
    assert {name: seen["requests"]["finished"] for name, seen in data["models"].items()} == {"small": 40, "large": 30}
    assert all(seen["uncertainty"]["bands"] for seen in data["models"].values())
    rows, grid = pd.read_csv(files["rows.csv"]), pd.read_csv(files["grid.csv"])
    assert rows["model"].value_counts().to_dict() == {"small": 40, "large": 30}
    assert set(grid["model"]) == {"small", "large"}
    assert json.loads(files["line.json"].read_text())["traceEvents"]


def test_a_part_alone_says_the_same(parts: Path, tmp_path: Path) -> None:
    """The second model by itself, with the seed that the JSON tells."""
    both = json.loads(CliRunner().invoke(cli, ["simulate", str(parts), "--json", "-"]).stdout)
    alone = tmp_path / "alone.toml"
    alone.write_text(PARTS[PARTS.index('name = "large"') :].replace("[models.", "["))
    seed = both["cluster"]["seeds"]["large"]
    found = CliRunner().invoke(cli, ["simulate", str(alone), "--seed", str(seed), "--json", "-"])
    assert json.loads(found.stdout) == both["models"]["large"]


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("simulate", "--trace", "t.csv"), "--trace is for one model"),
        (("simulate", "--replications", "3"), "--replications is for one model"),
        (("plan",), "has [[models]], which only `simulate` plays together"),
    ],
)
def test_what_is_for_one_model_is_refused(parts: Path, args: tuple[str, ...], told: str) -> None:
    command, *flags = args
    result = CliRunner().invoke(cli, [command, str(parts), *flags])
    assert result.exit_code == 2
    assert told in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.stderr


def test_too_large_a_part_is_refused_in_one_sentence(parts: Path) -> None:
    parts.write_text(PARTS.replace("h200 = 8", "h200 = 3"))
    result = CliRunner().invoke(cli, ["simulate", str(parts)])
    assert result.exit_code == 2
    assert "cluster.gpus has 3 h200_sxm and the models ask for 4 at most (small 2, large 2)" in result.stderr


def test_groups_have_a_table(scenario_file: Callable[..., Path]) -> None:
    path = scenario_file()
    text = path.read_text().replace("[deployment.colocated]", "[[deployment.colocated]]")
    path.write_text(text + '\n[[deployment.colocated]]\ngpu = "b200"\n')
    result = CliRunner().invoke(cli, ["simulate", str(path)])
    assert result.exit_code == 0
    for name in ("colocated.h200", "colocated.b200", "USD/Mtok"):
        assert name in result.stdout

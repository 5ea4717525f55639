"""The questions on the command line: files, sentences, exit codes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from app.cli import cli

Write = Callable[..., Path]


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, [*map(str, args)])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_capacity_says_the_rate_and_writes_its_files(scenario_file: Write, tmp_path: Path) -> None:
    made = [tmp_path / name for name in ("a.json", "a.csv", "a.html")]
    path = scenario_file(tpot_s=0.01, ttft_s=0.2)
    done = run("capacity", path, "--no-gains", "--replications", "1", "--executor", "serial",
               "--json", made[0], "--csv", made[1], "--html", made[2])  # fmt: skip
    assert done.exit_code == 0, done.output
    answer = json.loads(made[0].read_text(encoding="utf-8"))
    assert f"Carries {answer['rate']:.4g} requests/s" in done.output
    assert "pool binds" in done.output
    assert "mid-size owner" in done.output  # what the price convention means
    assert len(rows(made[1])) == len(answer["points"])
    assert "plotly" in made[2].read_text(encoding="utf-8").lower()


def test_a_capacity_of_nothing_is_exit_code_one(scenario_file: Write) -> None:
    done = run("capacity", scenario_file(ttft_s=1e-4), "--replications", "1", "--executor", "serial")
    assert done.exit_code == 1
    assert "No rate that was tried keeps the limits" in done.output


def test_frontier_and_sensitivity_write_tables(scenario_file: Write, tmp_path: Path) -> None:
    path, out = scenario_file(), tmp_path / "a.csv"
    done = run("frontier", path, "--verify", "1", "--executor", "serial", "--csv", out)
    assert done.exit_code == 0, done.output
    assert {row["verified"] for row in rows(out)} == {"True", "False"}
    done = run("sensitivity", path, "--samples", "0", "--executor", "serial", "--csv", out, "--vary", "rate=0.5:2")
    assert done.exit_code == 0, done.output
    (rate,) = (row for row in rows(out) if row["name"] == "rate")
    assert (float(rate["low"]), float(rate["high"])) == (0.5, 2.0)


def test_a_plan_is_exported_as_it_was_asked(scenario_file: Write, tmp_path: Path) -> None:
    plan, out = tmp_path / "plan.json", tmp_path / "deploy"
    assert run("plan", scenario_file(), "--json", plan).exit_code == 0
    done = run("export", plan, "--to", "scenario", "--out", out)
    assert done.exit_code == 0, done.output
    asked = run("capacity", out / "scenario.toml", "--no-gains", "--replications", "1", "--executor", "serial")
    assert "on the scenario's 2." in asked.output
    done = run("export", plan, "--to", "kubernetes", "--design", "99", "--out", out)
    assert done.exit_code == 2
    assert "count from 1" in done.output


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["compare", "--a", "h999"], "unknown accelerator 'h999'"),
        (["compare", "--speed", "20", "--tpot", "50ms"], "--speed and --tpot say the same"),
        (["capacity", "--address", "here:1"], "--address is of --executor ray"),
        (["forecast", "--growth", "soon"], "write it as 3x/yr or 5%/mo"),
        (["forecast", "--horizon", "0"], "write it as 12mo or 2yr"),
        (["forecast", "--start", "now"], "write it as 2027-01"),
        (["forecast", "--api-price", "1"], "0.55,2.19,0.14"),
        (["sensitivity", "--vary", "rate"], "write it as rate=0.5:2"),
        (["export", "nowhere.json", "--to", "vllm", "--out", "x"], "cannot be read"),
    ],
)
def test_bad_input_is_one_sentence(args: list[str], problem: str) -> None:
    done = run(*args)
    assert done.exit_code == 2
    assert problem in " ".join(done.output.split())
    assert "Traceback" not in done.output

"""The commands of docs/afternoon.md, one after the other, on invented files of the kind that it names."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.bench_files import Run, vllm, write_lines
from typer.testing import CliRunner

from app.cli import cli

PAGE = (Path(__file__).parents[2] / "docs" / "afternoon.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL) for line in block.splitlines()]
# Slower than the fit that ships: what a stack of one's own has to learn.
STEP_S, PER_CLIENT_S = 9.0e-3, 0.12e-3


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the files that the page starts from."""
    folder = tmp_path_factory.mktemp("desk")
    launch = next(line for line in PAGE.splitlines() if line.startswith("vllm serve"))
    (folder / "server.sh").write_text(launch + "\n")
    for clients in (4, 16, 64):
        run = Run(clients, 20 * clients, ttft_s=0.15 + 0.004 * clients, tpot_s=STEP_S + PER_CLIENT_S * clients)
        write_lines(folder / f"c{clients}.json", [vllm(run)])
    rng = np.random.default_rng(1)
    arrived = 1_796_033_700_000 + np.cumsum(rng.exponential(400, 300)).astype(int)
    rows = [
        f"{t},{rng.integers(100, 4000)},{0 if i % 30 == 7 else rng.integers(20, 500)},200"
        for i, t in enumerate(arrived)
    ]
    (folder / "gateway.csv").write_text("received_ms,prompt_tokens_in,tokens_out,status\n" + "\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def said(desk: Path) -> Iterator[dict[str, str]]:
    """What each command printed, by the command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(desk)
        patch.delenv("MOEPLAN_PROFILES", raising=False)
        answers = {}
        for command in COMMANDS:
            name, *words = shlex.split(command)
            assert name == "moeplan"
            done = CliRunner().invoke(cli, words)
            assert done.exit_code == 0, f"{command}: {done.output}"
            answers[command] = done.output
            os.environ.pop("MOEPLAN_PROFILES", None)  # a command of another process would not have left it
        yield answers


def test_the_page_runs_from_results_to_a_plan(said: dict[str, str], desk: Path) -> None:
    steps = ("import results", "validate", "calibrate serving", "validate", "import traffic", "simulate", "plan")
    assert len(said) == len(steps)
    assert all(f" {step} " in command for step, command in zip(steps, said, strict=True))
    points = pd.read_csv(desk / "points.csv")
    assert points["decode_parallel"].tolist() == ["TP2"] * 3
    assert points["tokens_per_step"].tolist() == [8192] * 3
    assert points["concurrency"].tolist() == [4, 16, 64]
    plan = json.loads((desk / "plan.json").read_text())
    assert plan["designs"][0]["meets_slo"]
    assert "10 rows without a prompt or an answer are left out" in plan["traffic"]


def test_the_own_stack_is_predicted_better_and_the_plan_rests_on_it(said: dict[str, str], desk: Path) -> None:
    def errors(answer: str) -> list[float]:
        return [float(found) for found in re.findall(r"TPOT +3 +([\d.]+)%", answer)]

    before, after = (errors(answer)[0] for command, answer in said.items() if " validate " in command)
    assert after < 0.5 * before
    simulated = next(answer for command, answer in said.items() if " simulate " in command)
    assert "stack 'vllm' are assumed" not in simulated
    assert (desk / "mine" / "h100_sxm@vllm.json").exists()

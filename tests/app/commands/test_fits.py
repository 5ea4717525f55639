"""`moeplan fits`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli import cli

V4_FLASH = ("deepseek-v4-flash", "--gpu", "b200", "--tp", "8", "--ep", "8", "--share", "0.95", "--stack", "vllm")


def test_the_figures_that_scripts_read(tmp_path: Path) -> None:
    file = tmp_path / "fits.json"
    result = CliRunner().invoke(cli, ["fits", *V4_FLASH, "--context", "1048576", "--json", str(file)])
    assert result.exit_code == 0, result.stderr
    found = json.loads(file.read_text())
    assert found["sequences"] == pytest.approx(20.4, rel=0.1)
    parts = sum(found[key] for key in ("weight_bytes", "working_bytes", "outside_bytes", "kv_bytes"))
    assert parts == pytest.approx(0.95 * found["device_bytes"])
    assert "Sequences of 1,048,576 tokens" in result.stdout


def test_no_sequence_of_that_length_is_an_answer_with_exit_code_one() -> None:
    result = CliRunner().invoke(cli, ["fits", "deepseek-v3", "--gpu", "h20", "--tp", "8"])
    assert result.exit_code == 1
    assert "Sequences of 163,840 tokens" in result.stdout


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["deepseek-v3", "--gpu", "h20", "--tp", "4"], "at least 8 h20 would do, as TP8"),
        (["deepseek-v3", "--gpu", "h20", "--tp", "8", "--stack", "tgi"], "unknown stack 'tgi'; use one of"),
        (["deepseek-v3", "--gpu", "h20", "--tp", "8", "--share", "95"], "95 is not between 0 and 1"),
        (["deepseek-v3", "--gpu", "h20", "--tp", "8", "--kv-dtype", "q4"], "kv_dtype='q4' is not supported"),
        (["deepseek-v3", "--gpu", "h21", "--tp", "8"], "unknown accelerator 'h21'"),
        (["deepseek-v3", "--gpu", "h20", "--tp", "3"], "tp=3 does not divide"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(given: list[str], said: str) -> None:
    result = CliRunner().invoke(cli, ["fits", *given])
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1

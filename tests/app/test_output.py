"""JSON output."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from app.errors import InputError, is_input_error, sentence
from app.output import check_writable, plain, progress_bar, write_json
from simulator.scenario import ScenarioError


def test_figures_that_do_not_exist_become_null(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    write_json({"a": float("nan"), "b": np.float64(2.5), "c": (np.int64(3), float("inf")), 8192: "x"}, path)
    assert json.loads(path.read_text()) == {"a": None, "b": 2.5, "c": [3, None], "8192": "x"}


def test_plain_keeps_what_json_knows() -> None:
    data = {"a": [1, 2.5, None, True, "x"], "b": {}}
    assert plain(data) == data


def test_a_new_file_in_an_existing_folder_is_fine(tmp_path: Path) -> None:
    check_writable(tmp_path / "new.json", "--json")
    check_writable(Path("-"), "--json")
    check_writable(None, "--json")
    with pytest.raises(InputError, match="is a directory"):
        check_writable(tmp_path, "--json")


def test_progress_goes_to_stderr_with_the_time_left(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, to rich
    with progress_bar() as progress:
        progress("decode of 4", 1, 4)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "decode of 4" in shown.err
    assert re.search(r"25%.*(-:--:--|\d:\d\d:\d\d)", shown.err)
    monkeypatch.delenv("FORCE_COLOR")
    with progress_bar() as progress:
        progress("decode of 4", 1, 4)
    assert capsys.readouterr() == ("", ""), "silent where nobody looks"


def test_our_defects_keep_their_traceback() -> None:
    assert is_input_error(ScenarioError("x"))
    assert is_input_error(PermissionError(13, "Permission denied", "/x"))
    assert not is_input_error(ValueError("shapes do not match"))
    assert not is_input_error(KeyError("x"))


def test_sentences_are_one_line() -> None:
    assert sentence(ScenarioError("one\n  two")) == "one two"
    assert sentence(PermissionError(13, "Permission denied", "/x")) == "/x: Permission denied"

"""Figures in the README are those of the committed results."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import loop

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_loop_table_is_that_of_the_committed_result() -> None:
    result = json.loads(loop.RESULT.read_text(encoding="utf-8"))
    assert loop.table(result["median error"]) in README
    assert result["machine"]["time"][:10] in README
    assert f"{result['requests']} requests" in README

"""Simulations on several processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

TWICE = """
import os
from simulator.planner.executor import run_all

if __name__ == "__main__":
    for value in ("one", "two"):
        os.environ["MOEPLAN_PROFILES"] = value
        print(*run_all(os.getenv, ["MOEPLAN_PROFILES"] * 3))
"""


def test_processes_have_the_environment_of_the_call_not_of_the_first() -> None:
    """In a process of its own, for the server that starts the workers stays as long as its caller."""
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, check=False)
    assert done.stdout.split("\n") == ["one one one", "two two two", ""], done.stderr


PLAIN_SCRIPT = """
import os
from simulator.planner.executor import run_all

print("once")
print(*run_all(os.path.basename, ["a/b", "c/d", "e/f"]))
"""


def test_a_script_without_a_main_guard_runs_once(tmp_path: Path) -> None:
    script = tmp_path / "plain.py"
    script.write_text(PLAIN_SCRIPT, encoding="utf-8")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout.split("\n") == ["once", "b d f", ""], done.stderr


COUNTING = """
import os
from simulator.planner.executor import run_all

seen = []
run_all(os.path.basename, ["a/b", "c/d", "e/f"], seen.append)
print(*seen)
"""


def test_who_waits_is_told_how_many_have_ended() -> None:
    done = subprocess.run([sys.executable, "-c", COUNTING], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout == "1 2 3\n", done.stderr

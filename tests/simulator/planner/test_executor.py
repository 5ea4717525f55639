"""Simulations on several processes."""

from __future__ import annotations

import subprocess
import sys

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

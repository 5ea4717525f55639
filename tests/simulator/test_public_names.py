"""What `simulator` shows, and that it costs nothing until it is asked for."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import simulator
from simulator.des.simulate import simulate
from simulator.planner.search import plan
from simulator.scenario import Scenario, load_scenario

ROOT = Path(__file__).parents[2]


def test_the_public_names_are_these() -> None:
    questions = ["capacity", "compare", "export", "fits", "forecast", "frontier", "sensitivity"]
    assert simulator.__all__ == sorted(["Scenario", "load_scenario", "plan", "simulate", *questions])
    assert (simulator.Scenario, simulator.load_scenario) == (Scenario, load_scenario)
    assert (simulator.plan, simulator.simulate) == (plan, simulate)


def test_they_are_listed_before_they_are_loaded() -> None:
    assert {*simulator.__all__} <= {*dir(simulator)}


def test_the_stub_shows_the_same_names() -> None:
    stub = ast.parse((ROOT / "simulator" / "__init__.pyi").read_text(encoding="utf-8"))
    shown = [alias.asname for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(name for name in shown if name) == simulator.__all__


def test_another_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="module 'simulator' has no attribute 'validate'"):
        simulator.validate  # type: ignore[attr-defined]  # noqa: B018


def test_importing_the_package_loads_nothing() -> None:
    code = (
        "import sys\nbefore = set(sys.modules)\nimport simulator\n"
        "new = {m for m in set(sys.modules) - before if m.partition('.')[0] not in sys.stdlib_module_names}\n"
        "assert new == {'simulator'}, new"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr

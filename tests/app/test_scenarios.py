"""Options laid over a scenario file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from app.errors import InputError
from app.scenarios import default_scenario, with_changes
from simulator.scenario import ClosedLoop, Lengths, OpenLoop, Scenario, Trace, load_scenario, parse_scenario

CLOSED = {
    "model": "qwen3-30b-a3b",
    "workload": {"kind": "closed_loop", "concurrency": 4, "requests": 8, "prompt": 10, "output": 10},
}


def test_the_default_is_the_question_of_the_readme() -> None:
    scenario = default_scenario()
    assert scenario.model == "deepseek-v4-pro"
    assert scenario.search.gpus == ("b300", "h200")
    assert isinstance(scenario.workload, OpenLoop)
    assert (scenario.workload.rate, scenario.slo.ttft_s, scenario.slo.tpot_s) == (20.0, 3.0, 0.05)
    assert (scenario.workload.prompt.value, scenario.workload.output.value) == (8192, 1024)


def test_nothing_given_changes_nothing(scenario_file: Callable[..., Path]) -> None:
    scenario = load_scenario(scenario_file())
    assert with_changes(scenario) is scenario


def test_options_replace_what_they_name_and_nothing_else(scenario_file: Callable[..., Path]) -> None:
    scenario = load_scenario(scenario_file())
    changed = with_changes(scenario, rate=7.5, isl=100, tpot_s=0.2, gpus=["b300", "H200", "h200-sxm"], seed=3)
    assert isinstance(scenario.workload, OpenLoop)
    assert isinstance(changed.workload, OpenLoop)
    assert changed.workload.rate == 7.5
    assert changed.workload.prompt == Lengths(value=100)
    assert changed.workload.output == scenario.workload.output
    assert changed.workload.requests == scenario.workload.requests
    assert (changed.slo.ttft_s, changed.slo.tpot_s) == (scenario.slo.ttft_s, 0.2)
    assert changed.search.gpus == ("b300_sxm", "h200_sxm")
    assert changed.search.forms == scenario.search.forms
    assert changed.seed == 3
    assert (changed.model, changed.deployment) == (scenario.model, scenario.deployment)


def test_a_trace_replaces_the_workload(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.touch()
    changed = with_changes(default_scenario(), trace=trace)
    assert isinstance(changed.workload, Trace)
    assert changed.workload.path == trace


def test_a_trace_keeps_the_speed_of_the_trace_it_replaces(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.touch()
    old = parse_scenario(CLOSED | {"workload": {"kind": "trace", "path": "old.jsonl", "speed": 2.0}})
    changed = with_changes(old, trace=trace).workload
    assert isinstance(changed, Trace)
    assert (changed.path, changed.speed, changed.format) == (trace, 2.0, "auto")


def test_a_closed_loop_needs_all_three_to_become_open() -> None:
    closed: Scenario = parse_scenario(CLOSED)
    assert isinstance(closed.workload, ClosedLoop)
    with pytest.raises(InputError, match="closed_loop"):
        with_changes(closed, rate=1.0)
    changed = with_changes(closed, rate=1.0, isl=5, osl=6).workload
    assert isinstance(changed, OpenLoop)
    assert (changed.rate, changed.prompt.value, changed.output.value) == (1.0, 5, 6)

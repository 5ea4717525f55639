"""A small cluster that runs in milliseconds, and an executor that starts no processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from simulator.scenario import Scenario, parse_scenario
from simulator.sweep.executor import SweepExecutor


@pytest.fixture
def serial() -> SweepExecutor:
    return SweepExecutor("serial")


@pytest.fixture
def small() -> Callable[..., Scenario]:
    """Qwen3-30B-A3B on a few H200; keys of the scenario may be replaced."""

    def make(**keys: Any) -> Scenario:
        data: dict[str, Any] = {
            "name": "small",
            "model": "qwen3-30b-a3b",
            "workload": {"kind": "open_loop", "rate": 8.0, "requests": 400, "prompt": 1000, "output": 60},
            "slo": {"ttft_s": 0.3, "tpot_s": 0.02},
            "search": {"gpus": ["h200"], "simulate_top": 1, "max_gpus": 32},
            "deployment": {"prefill": {"gpu": "h200"}, "decode": {"gpu": "h200"}},
        }
        return parse_scenario(data | keys)

    return make

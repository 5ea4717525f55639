"""The dashboard's computations, cached."""

from __future__ import annotations

from typing import Any

import streamlit as st

from hw_profiles import catalog
from simulator.des.scenario import Scenario
from simulator.model import presets
from simulator.planner.search import plan


@st.cache_data(show_spinner="Sizing pools and simulating the best designs ...", max_entries=64)
def plan_answer(scenario_json: str) -> dict[str, Any]:
    """The plan for a scenario given as JSON (its JSON is the cache's key)."""
    return plan(Scenario.model_validate_json(scenario_json)).to_json()


@st.cache_data(show_spinner=False)
def offered() -> tuple[list[str], list[str]]:
    """Names of models and accelerators that can be chosen."""
    return presets.names(), catalog.names()

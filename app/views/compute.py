"""The dashboard's computations, cached."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app.catalogue import speeds
from hw_profiles import catalog
from hw_profiles.efficiency import ORIGINS
from simulator.model import presets
from simulator.planner.search import plan
from simulator.scenario import Scenario

REMEMBERED = 64  # plans, of all visitors [assumed]


@st.cache_data(show_spinner="Sizing pools and simulating the best designs ...", max_entries=REMEMBERED)
def plan_answer(scenario_json: str) -> dict[str, Any]:
    """The plan for a scenario given as JSON (its JSON is the cache's key)."""
    return plan(Scenario.model_validate_json(scenario_json)).to_json()


def offered() -> tuple[list[str], list[str]]:
    """Names of models and accelerators that can be chosen."""
    return presets.names(), [*catalog.names(), *catalog.own_names()]


def speeds_of(gpus: list[str]) -> list[dict[str, str]]:
    """Rows for accelerators: the speeds that are known of each, by stack and origin."""
    return [
        {
            "Accelerator": name,
            "Stack": one["stack"],
            "Speed": ORIGINS[one["origin"]],
            "Assumed parts": "all" if one["origin"] == "assumed" else ", ".join(one["assumed"]) or "none",
        }
        for name in gpus
        for one in speeds(catalog.load(name))
    ]

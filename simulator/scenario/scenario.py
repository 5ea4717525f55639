"""The scenario: model, traffic, limits, deployment. What CLI, dashboard, notebooks and tests pass about.

One TOML file serves `simulate` (needs [deployment]) and `plan` (uses [search]).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from simulator.scenario.keys import Count, Drafts
from simulator.scenario.knobs import Knobs
from simulator.scenario.served import RunKeys, Served


class Search(Knobs):
    """What the planner may choose from; its knobs hold for every pool."""

    gpus: Annotated[tuple[str, ...], Field(min_length=1)] = ("h200_sxm", "b200_sxm", "b300_sxm")
    # stacks of the accelerators; left out: the best of those fitted to each, or of one's own
    stacks: tuple[str, ...] = ()
    max_gpus: Count = 4096
    forms: Annotated[tuple[Literal["disaggregated", "colocated"], ...], Field(min_length=1)] = (
        "disaggregated",
        "colocated",
    )
    mixed_pools: bool = True  # prefill and decode may use different accelerators
    simulate_top: Annotated[int, Field(ge=0, strict=True)] = 3  # designs re-run through the discrete-event model
    draft_tokens: Drafts | Literal["auto"] = 0  # auto: the best of some depths where the model ships a draft head
    # mean tokens emitted per step; left out: what a chance of 0.68 for each draft gives (assumed)
    acceptance_length: Annotated[FiniteFloat, Field(ge=1, strict=True)] | None = None
    # chance with which each limit has to hold, errors of the model counted; left out: as predicted
    confidence: Annotated[FiniteFloat, Field(ge=0.5, lt=1, strict=True)] | None = None


class Scenario(Served, RunKeys):
    """One model, to simulate or to plan for."""

    search: Search = Search()

"""Accelerators, stacks and drafts that a question may be answered with, and cheaper ones that it leaves out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hw_profiles.catalog import CatalogError, load, names, stacks_of
from simulator.model.acceptance import ASSUMED_CHANCE, tokens_per_step
from simulator.model.architecture import ModelSpec
from simulator.model.engine import in_service
from simulator.model.presets import load_model
from simulator.planner.engines import Offer
from simulator.scenario import Knobs, Scenario, ScenarioError, Search, priced_knobs, with_knobs

DEPTHS = (0, 1, 2, 3)  # drafts that `auto` chooses from: what published rows of MTP models use [tokens]


def offered(scenario: Scenario, model: ModelSpec) -> list[Offer]:
    """Accelerators with each stack and draft depth to choose from. Raises CatalogError or ScenarioError."""
    search = scenario.search
    found = []
    for gpu in dict.fromkeys(search.gpus):
        for stack in search.stacks or stacks_of(gpu)[0]:
            knobs = priced_knobs(gpu, search, scenario.costs)
            with_knobs(load(gpu, stack), knobs)  # refuses what is not known
            chance = chance_of(gpu, stack, model)
            found += [
                Offer(gpu, stack, count, _accepted(search, count, chance), knobs) for count in _depths(search, model)
            ]
    return list(dict.fromkeys(found))


def own_stacks(scenario: Scenario) -> list[str]:
    """Accelerators whose stacks are one's own, with them: they come before those that ship."""
    if scenario.search.stacks:
        return []
    known = {gpu: stacks_of(gpu) for gpu in dict.fromkeys(scenario.search.gpus)}
    return [f"{gpu} ({', '.join(stacks)})" for gpu, (stacks, own) in known.items() if own]


def _depths(search: Search, model: ModelSpec) -> Sequence[int]:
    if search.draft_tokens == "auto":
        return DEPTHS if model.draft is not None else (0,)
    if search.draft_tokens and model.draft is None:
        raise ScenarioError(
            f"search.draft_tokens={search.draft_tokens} (--drafts), but {model.name} ships no draft head; use 0"
        )
    return (search.draft_tokens,)


def chance_of(gpu: str, stack: str, model: ModelSpec) -> float:
    """That a draft is accepted: what serving of the model said under that stack, else what is assumed."""
    fitted = in_service(load(gpu, stack), model, "colocated").efficiency.acceptance
    return ASSUMED_CHANCE if fitted is None else fitted


def _accepted(search: Search, drafts: int, chance: float) -> float:
    """Mean tokens of a step."""
    if not drafts:
        return 1.0
    if search.acceptance_length is not None:
        return min(search.acceptance_length, 1.0 + drafts)
    return float(tokens_per_step(chance, float(drafts)))


def drafts_assumed(scenario: Scenario, offers: Sequence[Offer]) -> tuple[str, ...]:
    """What drafts rest on, where there are any."""
    drafting = [offer for offer in offers if offer.draft_tokens]
    if scenario.search.acceptance_length is not None or not drafting:
        return ()
    model = load_model(scenario.model)
    chances = sorted({round(chance_of(offer.gpu, offer.stack, model), 2) for offer in drafting})
    said = " to ".join(f"{chance:g}" for chance in dict.fromkeys((chances[0], chances[-1])))
    return (f"a draft token is accepted with a chance of {said} where those before it were",)


@dataclass(frozen=True)
class LeftOut:
    """An accelerator of the same vendor that was not offered. saves: of the cost of a request, by a look at a few cuts
    without queues [share]."""

    gpu: str
    stack: str
    usd_per_gpu_hour: float
    saves: float


def not_offered(scenario: Scenario, gpu: str) -> list[str]:
    """Accelerators of the vendor of `gpu` that are sold, fitted and cost less an hour than the dearest on offer."""
    vendor = load(gpu).accelerator.vendor
    mine = {load(name).name for name in scenario.search.gpus}
    dearest = max((usd(name, scenario) for name in scenario.search.gpus), default=math.inf)
    found = []
    for name in names():
        part = load(name)
        if name in mine or part.accelerator.vendor != vendor or part.accelerator.status != "shipping":
            continue
        if usd(name, scenario) < dearest and stacks_of(name)[0] != ("default",):
            found.append(name)
    return found


def unpriced(knobs: Knobs) -> Knobs:
    """Settings that another accelerator may have too: without a price or a power cap."""
    return Knobs(**{name: value for name, value in knobs.knobs.items() if name in ("memory_share", "kv_dtype")})


def usd(gpu: str, scenario: Scenario) -> float:
    """Price of an accelerator, infinite where there is none; one's own for those of the search. [USD/h]"""
    asked = load(gpu).name in {load(name).name for name in scenario.search.gpus}
    knobs = priced_knobs(gpu, scenario.search if asked else Knobs(), scenario.costs)
    if knobs.usd_per_hour is not None:
        return knobs.usd_per_hour
    try:
        return load(gpu).usd_per_hour(scenario.price_convention).usd_per_hour.value
    except CatalogError:
        return math.inf

"""What is compared: a deployment, or the best deployments that the planner finds for an accelerator and a stack."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hw_profiles.catalog import load, stacks_of
from simulator.model.engine import Form
from simulator.planner.search import plan
from simulator.scenario import Deployment, Scenario, ScenarioError

# Limits of TPOT, as multiples of the scenario's, at which the planner is asked for deployments: they make up a curve.
TPOT_FACTORS = (0.25, 0.4, 0.63, 1.0, 2.0)  # [assumed]
USUAL_TPOT_S = 0.05  # where the scenario has no limit [s; assumed]


@dataclass(frozen=True)
class Side:
    """name: as people write it. deployments: what it may be served with."""

    name: str
    deployments: tuple[Deployment, ...]


def usual_stack(scenario: Scenario, gpu: str) -> str:
    """Of an accelerator where a question names none: the first that the scenario names, or that is fitted to it."""
    return (scenario.search.stacks or stacks_of(gpu)[0])[0]


def accelerator_side(scenario: Scenario, gpu: str, stack: str | None, form: Form | None) -> Side:
    """Deployments on one accelerator (all pools on it) for the scenario's traffic at several limits of TPOT.

    form: of serving; None: the cheaper of both. Raises ScenarioError where nothing serves the model at any of them.
    """
    stack = stack or usual_stack(scenario, gpu)
    part = load(gpu, stack)
    name = part.name if stack == "default" else f"{part.name}@{stack}"
    forms = scenario.search.forms if form is None else (form,)
    search = scenario.search.model_copy(
        update={"gpus": (gpu,), "stacks": (stack,), "forms": forms, "simulate_top": 0, "confidence": None}
    )
    usual = scenario.slo.tpot_s or USUAL_TPOT_S
    found: list[Deployment] = []
    why = None
    for factor in TPOT_FACTORS:
        slo = scenario.slo.model_copy(update={"ttft_s": None, "e2e_s": None, "tpot_s": factor * usual})
        answer = plan(scenario.model_copy(update={"search": search, "slo": slo}))
        why = answer.binding or why
        found += [design.deployment for design in answer.designs if design.deployment not in found]
    if not found:
        raise ScenarioError(f"{name} serves {scenario.model} in no form that was tried: {why}")
    return Side(name, tuple(found))


def deployment_side(name: str, scenario: Scenario) -> Side:
    """The deployment of a scenario of its own."""
    if scenario.deployment is None:
        raise ScenarioError(f"{name} has no [deployment] to compare; add pools to it, or name an accelerator")
    return Side(name, (scenario.deployment,))


def distinct(sides: tuple[Side, ...]) -> tuple[Side, ...]:
    """Sides of one name get a number: a design may be compared with itself."""
    seen: dict[str, int] = {}
    found = []
    for side in sides:
        seen[side.name] = seen.get(side.name, 0) + 1
        found.append(side if seen[side.name] == 1 else replace(side, name=f"{side.name} ({seen[side.name]})"))
    return tuple(found)

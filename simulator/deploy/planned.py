"""Designs of plans as deployments: of a plan made now, or of one that was written as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator.planner.search import plan
from simulator.progress import Progress
from simulator.scenario import Deployment, Pool, Scenario, ScenarioError, parse_scenario

POOLS = ("prefill", "decode", "colocated")


@dataclass(frozen=True)
class PlannedDesign:
    """One design of a plan's JSON. promise: what the plan says of it, as written there."""

    number: int
    model: str
    traffic: str
    slo: dict[str, Any]
    deployment: Deployment
    promise: dict[str, Any]
    assumptions: tuple[str, ...]
    scenario: dict[str, Any] | None  # what was asked, where the file says it


def recommended(scenario: Scenario, progress: Progress | None = None) -> Scenario:
    """The scenario on the deployment that it has, or on the one that a plan recommends for it.

    Raises ScenarioError where no design meets the limits.
    """
    if scenario.deployment is not None:
        return scenario
    answer = plan(scenario, progress)
    best = next((design for design in answer.designs if design.meets_slo), None)
    if best is None:
        why = f": {answer.binding}" if answer.binding else "; relax them, or raise search.max_gpus"
        raise ScenarioError(f"'{scenario.name}' has no [deployment], and no design meets its limits{why}")
    return scenario.model_copy(update={"deployment": best.deployment})


def read_design(path: Path, number: int) -> PlannedDesign:
    """Design `number` (1 is the first) of what `plan --json` wrote. Raises ScenarioError for anything else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"plan {path} cannot be read ({error}); give what `plan --json` wrote") from None
    except json.JSONDecodeError as error:
        raise ScenarioError(f"{path} is not JSON ({error}); give what `plan --json` wrote") from None
    designs = data.get("designs") if isinstance(data, dict) else None
    if not isinstance(designs, list):
        raise ScenarioError(f"{path} has no designs; give what `plan --json` wrote")
    if not 1 <= number <= len(designs):
        raise ScenarioError(f"--design {number}: {path} has {len(designs)} designs; count from 1")
    design = designs[number - 1]
    pools = {
        role: {key: value for key, value in design[role].items() if key in Pool.model_fields}
        for role in POOLS
        if isinstance(design.get(role), dict)
    }
    found = parse_scenario({"model": data.get("model", ""), "deployment": pools}, f"{path}, design {number}")
    assert found.deployment is not None
    return PlannedDesign(
        number,
        found.model,
        str(data.get("traffic", "")),
        dict(data.get("slo") or {}),
        found.deployment,
        {key: value for key, value in design.items() if key not in POOLS},
        tuple(dict.fromkeys([*(data.get("assumptions") or ()), *(design.get("assumptions") or ())])),
        data.get("scenario") if isinstance(data.get("scenario"), dict) else None,
    )

"""The scenario: model, traffic, limits, deployment. What CLI, dashboard, notebooks and tests pass about.

One TOML file serves `simulate` (needs [deployment]) and `plan` (uses [search]).
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, FiniteFloat, ValidationError, model_validator

from simulator.des.scenario.base import Count, Drafts, ScenarioError, Strict
from simulator.des.scenario.deployment import SPELLINGS, Deployment
from simulator.des.scenario.lifecycle import PoolName
from simulator.des.scenario.tenant import Slo, Tenant
from simulator.des.scenario.traffic import ClosedLoop, Offline, Workload

POOLS = get_args(PoolName)


class Search(Strict):
    """What the planner may choose from."""

    gpus: Annotated[tuple[str, ...], Field(min_length=1)] = ("h200_sxm", "b200_sxm", "b300_sxm")
    stack: str = "default"
    max_gpus: Count = 4096
    forms: Annotated[tuple[Literal["disaggregated", "colocated"], ...], Field(min_length=1)] = (
        "disaggregated",
        "colocated",
    )
    mixed_pools: bool = True  # prefill and decode may use different accelerators
    simulate_top: Annotated[int, Field(ge=0, strict=True)] = 3  # designs re-run through the discrete-event model
    draft_tokens: Drafts = 0
    acceptance_length: Annotated[FiniteFloat, Field(ge=1, strict=True)] = 1.0
    # chance with which each limit has to hold, errors of the model counted; left out: as predicted
    confidence: Annotated[FiniteFloat, Field(ge=0.5, lt=1, strict=True)] | None = None


class Scenario(Strict):
    """The traffic is one [workload], or that of several [[tenants]]."""

    name: str = "scenario"
    model: str  # preset name, or path of a Hugging Face config.json
    workload: Workload | None = None
    tenants: tuple[Tenant, ...] = ()
    slo: Slo = Slo()
    deployment: Deployment | None = None
    search: Search = Search()
    price_convention: Literal["hyperscaler_ownership", "neocloud_ownership", "rental_3yr", "on_demand"] = (
        "neocloud_ownership"
    )
    warmup_fraction: Annotated[FiniteFloat, Field(ge=0, lt=1, strict=True)] = 0.1  # first requests left out of metrics
    seed: Annotated[int, Field(ge=0, strict=True)] = 0

    @model_validator(mode="after")
    def _refusals_end(self) -> Scenario:
        limit = None if self.deployment is None else self.deployment.max_queue
        workloads = (self.workload, *(tenant.workload for tenant in self.tenants))
        if limit is not None and any(isinstance(workload, ClosedLoop) for workload in workloads):
            raise ValueError(
                f"deployment.max_queue={limit} does not go with a closed_loop, whose clients would send again at once; "
                "leave it out, or send an open_loop"
            )
        return self

    @model_validator(mode="after")
    def _one_traffic(self) -> Scenario:
        if self.workload is not None and self.tenants:
            raise ValueError("give either [workload] or [[tenants]], each with a workload of its own")
        names = [tenant.name for tenant in self.tenants]
        if "" in names:
            raise ValueError("a tenant is called ''; give it a name")
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two tenants are called '{twice}'; give each a name of its own")
        if sum(isinstance(tenant.workload, Offline) for tenant in self.tenants) > 1:
            raise ValueError("more than one tenant is offline; merge their work into one")
        return self

    def traffic(self) -> tuple[Tenant, ...]:
        """Who sends requests; a lone [workload] is a tenant without a name. Raises ScenarioError for no traffic."""
        if self.tenants:
            return self.tenants
        return (Tenant(name="", workload=self.one_workload()),)

    def one_workload(self) -> Workload:
        """The [workload]; raises ScenarioError where there is none."""
        if self.tenants:
            raise ScenarioError(
                f"'{self.name}' has [[tenants]] where one [workload] is needed; describe their sum as one"
            )
        if self.workload is None:
            raise ScenarioError(f"'{self.name}' has no traffic; add [workload] or [[tenants]] to it, or give a --trace")
        return self.workload


def parse_scenario(data: dict[str, Any], where: str = "scenario") -> Scenario:
    """Build a Scenario; every problem becomes one sentence naming key and value."""
    try:
        return Scenario.model_validate(data)
    except ValidationError as error:
        raise ScenarioError(f"{where}: {_first_problem(error)}") from None


def load_scenario(path: Path) -> Scenario:
    """Read a TOML scenario. Relative trace and model paths are taken from the file's folder."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ScenarioError(f"scenario file {path} does not exist; give the path of a TOML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"scenario file {path} cannot be read ({error}); give a readable TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"{path} is not valid TOML: {error}") from None
    tenants = data.get("tenants")
    for holder in (data, *(tenants if isinstance(tenants, list) else ())):
        workload = holder.get("workload") if isinstance(holder, dict) else None
        if isinstance(workload, dict) and isinstance(workload.get("path"), str):
            workload["path"] = str(path.parent / workload["path"])
    model = data.get("model")
    if isinstance(model, str) and model.endswith(".json"):
        data["model"] = str(path.parent / model)
    return parse_scenario(data, str(path))


def _first_problem(error: ValidationError) -> str:
    """The first validation error as one sentence in the reader's words."""
    problem = error.errors()[0]
    branches = {"open_loop", "closed_loop", "sessions", "offline", "trace"}
    parts = [
        part
        for before, part in zip((None, *problem["loc"]), problem["loc"], strict=False)
        if not ((before == "workload" and part in branches) or (before in POOLS and part in SPELLINGS))
    ]
    key = ".".join(map(str, parts)) or "the file"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{key}'; remove it or correct its spelling"
    if problem["type"] == "missing":
        return f"key '{key}' is missing; add it"
    if problem["type"] == "too_short":
        return f"key '{key}' is empty; name at least one"
    shown = problem.get("input")
    value = f"={shown!r}" if isinstance(shown, (int, float, str, bool)) else ""
    return f"{key}{value}: {message}"

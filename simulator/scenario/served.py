"""A model that is served, and what a run needs besides."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, FiniteFloat, model_validator

from hw_profiles.schema import Convention
from simulator.scenario.costs import Costs
from simulator.scenario.deployment import Deployment
from simulator.scenario.keys import Keys, ScenarioError
from simulator.scenario.tenants import Slo, Tenant
from simulator.scenario.workload import ClosedLoop, Offline, Workload


class Served(Keys):
    """A model that is served: to whom, within which limits, on what.

    The traffic is one [workload], or that of several [[tenants]].
    """

    name: str = "scenario"
    model: str  # preset name, or path of a checkpoint: its folder or config.json
    workload: Workload | None = None
    tenants: tuple[Tenant, ...] = ()
    slo: Slo = Slo()
    deployment: Deployment | None = None

    @model_validator(mode="after")
    def _refusals_end(self) -> Served:
        limit = None if self.deployment is None else self.deployment.max_queue
        workloads = (self.workload, *(tenant.workload for tenant in self.tenants))
        if limit is not None and any(isinstance(workload, ClosedLoop) for workload in workloads):
            raise ValueError(
                f"deployment.max_queue={limit} does not go with a closed_loop, whose clients would send again at once; "
                "leave it out, or send an open_loop"
            )
        return self

    @model_validator(mode="after")
    def _one_traffic(self) -> Served:
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


class RunKeys(Keys):
    """What a run needs besides models, traffic and hardware."""

    price_convention: Convention = "neocloud_ownership"
    costs: Costs = Costs()
    warmup_fraction: Annotated[FiniteFloat, Field(ge=0, lt=1, strict=True)] = 0.1  # first requests left out of metrics
    seed: Annotated[int, Field(ge=0, strict=True)] = 0

"""[cluster] and [[models]]: several models on one cluster, each with a part of it to itself."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, FiniteFloat, model_validator

from simulator.scenario.keys import Count, Keys
from simulator.scenario.scenario import Scenario
from simulator.scenario.served import RunKeys, Served


class Hardware(Keys):
    """What there is to be parted. Without `oversubscription` the models share no network."""

    gpus: Annotated[dict[str, Count], Field(min_length=1)]  # accelerators, by their catalogue names
    # link rate of all prefill pools over that of the spine that the transfers of all models share
    oversubscription: Annotated[FiniteFloat, Field(ge=1, le=1000, strict=True)] | None = None
    # spines side by side: accelerator i of all prefill pools has its NIC on rail i modulo this
    rails: Annotated[int, Field(ge=1, le=1000, strict=True)] = 1

    @model_validator(mode="after")
    def _rails_share_a_spine(self) -> Hardware:
        if self.rails > 1 and self.oversubscription is None:
            raise ValueError(
                f"rails={self.rails} divide a spine that nobody shares; set oversubscription, or remove rails"
            )
        return self


class SharedCluster(RunKeys):
    """Several models that run side by side on a cluster by static partition."""

    name: str = "cluster"
    cluster: Hardware
    models: Annotated[tuple[Served, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _parts(self) -> SharedCluster:
        names = [served.name for served in self.models]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two models are called '{twice}'; give each a name of its own")
        for served in self.models:
            if served.deployment is None:
                raise ValueError(f"model '{served.name}' has no part of the cluster; add a deployment to it")
            own = next((g for g in served.deployment.groups if g.usd_per_hour is not None), None)
            if own is not None:
                raise ValueError(
                    f"model '{served.name}' has usd_per_hour={own.usd_per_hour:g} of its own on {own.gpu}, and free "
                    "accelerators of the cluster cost as much; set costs.usd_per_hour by accelerator"
                )
            transfer = served.deployment.transfer
            if self.cluster.oversubscription is not None and transfer.oversubscription > 1:
                raise ValueError(
                    f"model '{served.name}' has transfer.oversubscription={transfer.oversubscription:g} beside "
                    f"cluster.oversubscription={self.cluster.oversubscription:g}; leave its own out"
                )
            if self.cluster.oversubscription is not None and transfer.network == "scale_up":
                raise ValueError(
                    f"model '{served.name}' transfers with network='scale_up', which has no part in the spine of "
                    f"cluster.oversubscription={self.cluster.oversubscription:g}; leave one of them out"
                )
        return self

    def scenario(self, served: Served, seed: int) -> Scenario:
        """A model and its part by itself."""
        return Scenario(
            **{name: getattr(served, name) for name in Served.model_fields},
            price_convention=self.price_convention,
            costs=self.costs,
            warmup_fraction=self.warmup_fraction,
            seed=seed,
        )

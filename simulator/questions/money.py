"""What months of a fleet cost, draw and emit, and what an API would ask for the same tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from hw_profiles.catalog import CatalogError, load
from hw_profiles.schema import Convention
from simulator.questions.token_cost import TokenCost
from simulator.scenario import Deployment, ScenarioError

HOURS_A_MONTH = 365.25 * 24 / 12
SECONDS_A_MONTH = HOURS_A_MONTH * 3600
CONVENTIONS: tuple[Convention, ...] = ("hyperscaler_ownership", "neocloud_ownership", "rental_3yr", "on_demand")
FOLLOWS_DEMAND = ("on_demand",)  # conventions by which accelerators are given back when demand falls
PUE = 1.2  # power of the hall over that of what is in it [-; assumed]
GRAMS_CO2_PER_KWH = 373.0  # of the grid: mean of the USA in 2022 (EPA eGRID2022) [g/kWh]


@dataclass(frozen=True)
class ApiPrice:
    """USD per million tokens that a provider asks."""

    input: float
    output: float
    cached: float

    @classmethod
    def of(cls, text: str) -> ApiPrice:
        """'0.55,2.19' or '0.55,2.19,0.14': input, output, cached input, which is as input where it is left out.

        >>> ApiPrice.of("0.55, 2.19,0.14")
        ApiPrice(input=0.55, output=2.19, cached=0.14)
        """
        found = re.fullmatch(r"\s*([\d.]+)\s*,\s*([\d.]+)\s*(?:,\s*([\d.]+)\s*)?", text)
        try:
            assert found is not None
            given = float(found[1]), float(found[2])
            return cls(*given, float(found[3]) if found[3] else given[0])
        except (AssertionError, ValueError):
            raise ScenarioError(
                f"API price {text!r} is not understood; write USD per million tokens of input, output and cached "
                "input: 0.55,2.19,0.14"
            ) from None

    def usd_per_s(self, tokens: TokenCost) -> float:
        """For the tokens/s of each kind."""
        return (
            self.input * tokens.input_tok_s + self.cached * tokens.cached_tok_s + self.output * tokens.output_tok_s
        ) / 1e6


def usd_per_hour(deployment: Deployment, convention: Convention) -> float | None:
    """Of all accelerators of a deployment; None where one has no price."""
    total = 0.0
    for group in deployment.groups:
        try:
            total += group.gpus * load(group.gpu, group.stack).usd_per_hour(convention).usd_per_hour.value
        except CatalogError:
            return None
    return total


def stand_ins(deployments: Mapping[str, Deployment]) -> tuple[str, ...]:
    """Sentences on prices of one convention that stand for another's."""
    said = []
    for deployment in deployments.values():
        for group in deployment.groups:
            profile = load(group.gpu, group.stack)
            for convention in CONVENTIONS:
                try:
                    price = profile.usd_per_hour(convention)
                except CatalogError as error:
                    said.append(str(error))
                    break
                if price.convention != convention:
                    said.append(f"{profile.display_name}: {price.usd_per_hour.note}")
    return tuple(dict.fromkeys(said))


def overhead_w(deployment: Deployment) -> float:
    """Of node and network beside the accelerators; 0 for those whose all-in power is not known. [W]"""
    total = 0.0
    for group in deployment.groups:
        profile = load(group.gpu, group.stack)
        if profile.all_in_w is not None and profile.tdp_w is not None:
            total += group.gpus * max(0.0, profile.all_in_w - profile.tdp_w)
    return total


def idle_w(deployment: Deployment, spare: Mapping[str, int]) -> float:
    """Of so many further instances of each pool that do nothing. [W]"""
    total = 0.0
    for pool, more in spare.items():
        group = deployment.lone_pools[pool]
        total += more * group.gpus_per_instance * (load(group.gpu, group.stack).tdp_w or 0.0) * deployment.power.idle
    return total

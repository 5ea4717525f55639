"""Accelerators and models as a scenario's knobs make them: the one way from a pool to its profile."""

from __future__ import annotations

from hw_profiles.catalog import load
from hw_profiles.loading import CatalogError
from hw_profiles.profile import HardwareProfile
from simulator.model.architecture import ModelSpec
from simulator.model.presets import load_model
from simulator.scenario.costs import Costs
from simulator.scenario.deployment import Deployment, Pool
from simulator.scenario.knobs import Knobs


def profile_key(pool: Pool) -> str:
    """What tells the accelerators of pools apart."""
    set_ = "".join(f" {name}={value}" for name, value in pool.knobs.items() if name != "kv_dtype")
    return f"{pool.gpu}@{pool.stack}{set_}"


def hardware_of(pool: Pool, costs: Costs | None = None) -> HardwareProfile:
    """The accelerator of a pool as its operator has set it. Raises CatalogError."""
    return with_knobs(load(pool.gpu, pool.stack), pool, costs)


def with_knobs(profile: HardwareProfile, knobs: Knobs, costs: Costs | None = None) -> HardwareProfile:
    """The accelerator under these settings. costs: prices of one's own by accelerator, where the knobs have none."""
    if knobs.memory_share is not None:
        profile = profile.with_memory_share(knobs.memory_share)
    if knobs.power_cap_w is not None:
        profile = profile.with_power_cap(knobs.power_cap_w)
    price = knobs.usd_per_hour if knobs.usd_per_hour is not None else _own_price(profile, costs)
    return profile if price is None else profile.with_own_price(price)


def priced_knobs(gpu: str, knobs: Knobs, costs: Costs) -> Knobs:
    """These settings of an accelerator, with the price of one's own where there is one."""
    if knobs.usd_per_hour is not None:
        return Knobs(**knobs.knobs)
    own = _own_price(load(gpu), costs)
    return Knobs(**knobs.knobs | ({} if own is None else {"usd_per_hour": own}))


def _own_price(profile: HardwareProfile, costs: Costs | None) -> float | None:
    for name, usd in ({} if costs is None else costs.usd_per_hour).items():
        try:
            known = load(name).name
        except CatalogError:
            known = name  # a file of one's own
        if known == profile.name:
            return usd
    return None


def model_of(name: str, deployment: Deployment | None = None, knobs: Knobs | None = None) -> ModelSpec:
    """The model with the KV type that its pools or a search ask for. Raises ModelError."""
    kv_dtype = knobs.kv_dtype if knobs is not None else deployment.kv_dtype if deployment is not None else None
    return load_model(name, kv_dtype=kv_dtype)

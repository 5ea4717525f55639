"""What a hardware file may say. Every figure carries its unit, source and date; unknown keys are refused."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

Dtype = Literal["fp32", "tf32", "bf16", "int8", "fp8", "fp4"]
Vendor = Literal["NVIDIA", "AMD", "Huawei", "Google", "Intel", "AWS"]


class Strict(BaseModel):
    """Frozen, and no key that is not named here."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Sourced(Strict):
    """One figure with its origin."""

    value: Annotated[FiniteFloat, Field(ge=0)]
    unit: Annotated[str, Field(min_length=1)]
    source: Annotated[str, Field(min_length=3)]
    accessed: date
    note: str = ""
    assumed: bool = False


class ScaleUp(Strict):
    """The fast fabric inside one domain (NVLink, Infinity Fabric, UB, ICI)."""

    link: str
    domain: Sourced  # accelerators that reach each other over it
    bandwidth: Sourced  # one way, per accelerator


class Power(Strict):
    tdp: Sourced | None = None
    all_in: Sourced | None = None  # share of node, network and cooling included


class Accelerator(Strict):
    """Datasheet figures of one accelerator as bought (peaks, not achieved rates)."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    display_name: str
    vendor: Vendor
    generation: str  # "hopper", "blackwell", "cdna3", ...
    status: Literal["shipping", "announced"]
    aliases: tuple[str, ...] = ()
    matrix: dict[Dtype, Sourced]  # dense peak by input dtype
    memory_capacity: Sourced
    memory_bandwidth: Sourced
    memory_kind: str
    sm_count: Sourced | None = None
    scale_up: ScaleUp | None = None
    scale_out: Sourced | None = None  # NIC, one way, per accelerator
    host_link: Sourced | None = None  # one way, per accelerator
    power: Power = Power()
    notes: str = ""


class Price(Strict):
    """USD per accelerator-hour under one convention."""

    accelerator: str
    convention: Literal["hyperscaler_ownership", "neocloud_ownership", "rental_3yr", "on_demand"]
    usd_per_hour: Sourced

"""What a hardware file may say. Every figure carries its unit, source and date; unknown keys are refused."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    RootModel,
    StrictBool,
    StringConstraints,
    model_validator,
)

from hw_profiles.units import UNITS, Dimension, dimension_of, spellings

Dtype = Literal["fp32", "tf32", "bf16", "int8", "fp8", "fp4"]
Vendor = Literal["NVIDIA", "AMD", "Huawei", "Google", "Intel", "AWS", "other"]
Convention = Literal["hyperscaler_ownership", "neocloud_ownership", "rental_3yr", "on_demand", "spot"]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
SHORTEST_SOURCE = 3  # characters; assumed: fewer name nothing
SourceText = Annotated[str, StringConstraints(strip_whitespace=True, min_length=SHORTEST_SOURCE)]
# strict: TOML's true and "80" are not numbers
Figure = Annotated[float, Field(ge=0, strict=True, allow_inf_nan=False)]


def _no_number(day: Any) -> Any:
    if isinstance(day, int | float):  # pydantic would read seconds since 1970
        raise ValueError(f"{day} is not a date; write it as 2026-11-23")
    return day


Day = Annotated[date, BeforeValidator(_no_number)]


class Strict(BaseModel):
    """Frozen, and no key that is not named here."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Sourced(Strict):
    """One figure with its origin."""

    value: Figure
    unit: Annotated[Text, AfterValidator(lambda unit: (dimension_of(unit), unit)[1])]
    source: SourceText
    accessed: Day
    note: str = ""
    assumed: StrictBool = False


def to_si(figure: Sourced) -> float:
    """Value of a figure in FLOP/s, B, B/s, W or USD/h.

    >>> to_si(Sourced(value=400, unit="Gbit/s", source="NIC datasheet", accessed=date(2026, 8, 22)))
    50000000000.0
    """
    return figure.value * UNITS[figure.unit][1]


def _measures(dimension: Dimension, *, whole: bool = False, free: bool = False) -> AfterValidator:
    """A figure of one dimension, above zero unless `free`."""

    def check(figure: Sourced) -> Sourced:
        found = UNITS[figure.unit][0]
        if found != dimension:
            raise ValueError(
                f"unit {figure.unit!r} is a {found}, and this figure is a {dimension}; "
                f"use one of {spellings(dimension)}"
            )
        if figure.value == 0 and not free:
            raise ValueError("value 0 must be above 0; leave the key out where the figure is unknown")
        if whole and figure.value != int(figure.value):
            raise ValueError(f"value {figure.value:g} must be a whole number")
        return figure

    return AfterValidator(check)


ComputeRate = Annotated[Sourced, _measures("compute rate")]
Capacity = Annotated[Sourced, _measures("capacity")]
Bandwidth = Annotated[Sourced, _measures("bandwidth")]
Watts = Annotated[Sourced, _measures("power")]
Count = Annotated[Sourced, _measures("count", whole=True)]
Hourly = Annotated[Sourced, _measures("price", free=True)]


class ScaleUp(Strict):
    """The fast fabric inside one domain (NVLink, Infinity Fabric, UB, ICI, or PCIe of one box)."""

    link: Text
    domain: Count  # accelerators that reach each other over it
    bandwidth: Bandwidth  # one way, per accelerator
    # small all-reduces take one latency, each rank sending to all others at once; else one for each doubling of ranks,
    # as collectives do that pass messages on (NCCL over PCIe)
    one_shot: StrictBool = True


class PowerFigures(Strict):
    """What one accelerator draws at most. [W]"""

    tdp: Watts | None = None
    all_in: Watts | None = None  # share of node, network and cooling included


class Accelerator(Strict):
    """Datasheet figures of one accelerator as bought (peaks, not achieved rates)."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    display_name: Text
    vendor: Vendor
    generation: Text  # "hopper", "blackwell", "cdna3", ...
    status: Literal["shipping", "announced"]
    aliases: tuple[Text, ...] = ()
    matrix: dict[Dtype, ComputeRate]  # dense peak by input dtype; fp32 is the vector rate
    memory_capacity: Capacity  # as the data sheet prints it
    memory_reported: Capacity | None = None  # what the driver shows, where it differs
    memory_withheld: Capacity | None = None  # of that, what the driver keeps from programs
    memory_bandwidth: Bandwidth
    memory_kind: Text
    sm_count: Count | None = None
    scale_up: ScaleUp | None = None
    scale_out: Bandwidth | None = None  # NIC, one way, per accelerator
    host_link: Bandwidth | None = None  # one way, per accelerator
    power: PowerFigures = PowerFigures()
    prices: dict[Convention, Hourly] = {}  # the owner's own, ahead of the catalogue's prices
    notes: str = ""

    @model_validator(mode="after")
    def _has_bf16(self) -> Accelerator:
        if "bf16" not in self.matrix:
            raise ValueError("matrix.bf16 is missing; every other peak falls back to it")
        return self


class Price(Strict):
    """USD per accelerator-hour under one convention."""

    accelerator: str
    convention: Convention
    usd_per_hour: Hourly


class PriceList(RootModel[dict[str, dict[Convention, Hourly]]]):
    """The price file: a table an accelerator, a figure a convention."""

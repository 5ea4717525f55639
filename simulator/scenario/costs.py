"""[costs]: prices of one's own, electricity on top, and how much of what is paid for is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, FiniteFloat

from simulator.scenario.keys import Keys, NonNegative


class Costs(Keys):
    """What serving costs beyond the price list.

    Electricity is what the accelerators are predicted to draw, times pue; it comes on top of the price of the
    accelerators, for prices without power (one's own hardware in one's own room).
    """

    usd_per_hour: Mapping[str, NonNegative] = Field(
        default_factory=dict
    )  # of an accelerator, by its name; ahead of price_convention [USD/h]
    usd_per_kwh: NonNegative = 0.0  # electricity, on top
    # power of the facility over that of the accelerators: cooling and conversion, and the rest of the node
    pue: Annotated[FiniteFloat, Field(ge=1, le=10, strict=True)] = 1.0
    # share of the paid hours in which this traffic is served: tokens and requests cost 1 / utilisation as much
    utilisation: Annotated[FiniteFloat, Field(gt=0, le=1, strict=True)] = 1.0

    @property
    def said(self) -> tuple[str, ...]:
        """What costs count beyond the price list, for reports."""
        said = []
        if self.usd_per_kwh:
            said.append(
                f"cost: electricity at {self.usd_per_kwh:g} USD/kWh comes on top of the price of the accelerators: "
                f"what they draw, times a PUE of {self.pue:g}"
            )
        if self.utilisation < 1:
            said.append(f"cost: this traffic fills {self.utilisation:.0%} of the paid hours")
        return tuple(said)

    def electricity_usd_per_hour(self, watts: float) -> float:
        """
        >>> Costs(usd_per_kwh=0.5, pue=1.5).electricity_usd_per_hour(1000.0)
        0.75
        """
        return watts / 1e3 * self.pue * self.usd_per_kwh

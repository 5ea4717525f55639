"""How far a prediction may be off: spreads of log(measured / predicted) of one pool, from draws of its engine.

A spread is two halves of a normal that meet at the median, so that it keeps p10, p50 and p90 as they were drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import numpy as np
from pydantic import Field, FiniteFloat, model_validator

from hw_profiles.efficiency import WHOLE_STEPS
from hw_profiles.profile import HardwareProfile
from hw_profiles.schema import Strict
from simulator.model.architecture import ModelSpec
from simulator.model.arrays import Floats
from simulator.model.draws import DRAWS, NORMAL
from simulator.model.engine import Form
from simulator.model.parallelism import Parallelism
from simulator.uncertainty.draws import drawn_times

Z90 = NORMAL.inv_cdf(0.9)  # 90th percentile of a standard normal [-]
LEAST = 1e-9  # between the percentiles of a spread [-]; assumed: nothing is known better

Metric = Literal["tpot_s", "ttft_s", "total_tok_s_per_gpu"]
SPREAD_METRICS: tuple[Metric, ...] = get_args(Metric)
Role = Literal["prefill", "decode", "colocated"]  # of a pool


class Spread(Strict):
    """Quantiles of log(measured / predicted); n: draws they come from, 0 where it is no sample."""

    p10: FiniteFloat
    p50: FiniteFloat
    p90: FiniteFloat
    n: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _in_order(self) -> Spread:
        if not self.p10 < self.p50 < self.p90:
            raise ValueError(f"p10={self.p10:g}, p50={self.p50:g}, p90={self.p90:g} do not rise")
        return self

    @classmethod
    def of(cls, logs: Floats) -> Spread:
        """Of draws whose median is what is predicted."""
        low, high = (float(np.percentile(logs, p)) for p in (10, 90))
        return cls(p10=min(low, -LEAST), p50=0.0, p90=max(high, LEAST), n=len(logs))

    def quantile(self, share: float) -> float:
        """The log ratio below which that share of measurements lies; share between 0 and 1."""
        z = NORMAL.inv_cdf(share)
        return self.p50 + z * ((self.p90 - self.p50) if z > 0 else (self.p50 - self.p10)) / Z90

    def chance_below(self, log_ratio: float) -> float:
        """Chance that log(measured / predicted) is below `log_ratio`."""
        half = self.p90 - self.p50 if log_ratio > self.p50 else self.p50 - self.p10
        return NORMAL.cdf((log_ratio - self.p50) / half * Z90)

    def with_noise(self, sigma: float) -> Spread:
        """The spread with an independent error of the prediction itself, standard deviation `sigma` of its log.

        half' = sqrt(half^2 + (z_0.90 sigma)^2), on either side of the median.
        """
        low, high = (math.hypot(half, Z90 * sigma) for half in (self.p50 - self.p10, self.p90 - self.p50))
        return self.model_copy(update={"p10": self.p50 - low, "p90": self.p50 + high})

    @property
    def inverse(self) -> Spread:
        """Of the reciprocal of the figure."""
        return self.model_copy(update={"p10": -self.p90, "p50": -self.p50, "p90": -self.p10})

    @property
    def width(self) -> float:
        return self.p90 - self.p10

    def band(self, value: float) -> dict[str, float]:
        """p10, p50 and p90 of what would be measured where `value` is predicted."""
        return {name: value * math.exp(getattr(self, name)) for name in ("p10", "p50", "p90")}


@dataclass(frozen=True)
class Uncertainty:
    """Spreads of the errors of one pool, by metric, and in words where they come from."""

    kind: str
    accelerator: str  # as displayed
    reason: str
    spreads: dict[Metric, Spread]


def uncertainty_of(
    hardware: HardwareProfile, model: ModelSpec, cut: Parallelism, draft_tokens: int, role: Role
) -> Uncertainty:
    """What is known of a pool. hardware: as the catalogue has it. Raises CatalogError, ParallelismError."""
    form: Form = "colocated" if role == "colocated" else "disaggregated"
    times = drawn_times(hardware, model, cut, draft_tokens, form)
    rate = {"prefill": times.prefill_rate, "decode": times.decode_rate, "colocated": times.rate}[role]
    spreads: dict[Metric, Spread] = {
        "tpot_s": Spread.of(times.tpot),
        "ttft_s": Spread.of(times.ttft),
        "total_tok_s_per_gpu": Spread.of(rate),
    }
    kind, said = _kind(hardware, form, model.name)
    return Uncertainty(kind, hardware.display_name, said, spreads)


def widest(several: Iterable[Uncertainty]) -> Uncertainty:
    """The one whose throughput is least certain: what holds for pools that work in turn."""
    return max(several, key=lambda one: one.spreads["total_tok_s_per_gpu"].width)


def _kind(hardware: HardwareProfile, form: Form, model: str) -> tuple[str, str]:
    stack, efficiency = hardware.stack, hardware.efficiency
    drawn = f"{DRAWS} draws of the fit's parameters, and the noise of one measurement"
    if efficiency.held_out_error.get(WHOLE_STEPS) and efficiency.origin == "measured":
        return (
            "own measurements",
            "kernels measured on such a machine; the band is the held-out error of whole steps there, and no serving "
            "measurement stands behind it",
        )
    if efficiency.origin in ("assumed", "measured"):
        return "assumed", f"rates of stack {stack!r} are assumed, not measured in serving"
    if efficiency.overhead_assumed:
        return "new accelerator", f"not measured in serving with {stack!r}; {drawn}"
    named = [one for one in efficiency.situations if one.when.get("model") == model]
    if not named:
        return "new model", f"{model} is in no serving measurement of the calibration; {drawn}"
    here = [one for one in named if one.when.get("form", form) == form]
    if any(one.deviations for one in here) or not any(one.when.get("form") == form for one in here):
        return "new combination", f"{model} was not measured in {form} serving with {stack!r}; {drawn}"
    return "known", f"{model} was measured in {form} serving with {stack!r}; {drawn}"

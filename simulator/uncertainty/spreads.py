"""How far a prediction may be off: spreads of log(measured / predicted) by what is known of the hardware.

`data/uncertainty.json` holds quantiles of errors on published serving points that the profiles did not see
(`benchmarks.uncertainty` writes it). A spread is two halves of a normal that meet at the median, so that it keeps
p10, p50 and p90 as they were found.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import NormalDist
from typing import Annotated, Literal, get_args

from pydantic import Field, FiniteFloat, model_validator

from hw_profiles.efficiency import WHOLE_STEPS, Efficiency
from hw_profiles.profile import HardwareProfile
from hw_profiles.schema import Strict
from simulator.model.engine import Form

FILE = Path(__file__).parent / "data" / "uncertainty.json"
NORMAL = NormalDist()
Z90 = NORMAL.inv_cdf(0.9)  # 90th percentile of a standard normal [-]
MEDIAN_OF_ABSOLUTE = NORMAL.inv_cdf(0.75)  # median distance of a standard normal from its mean [-]

Metric = Literal["tpot_s", "ttft_s", "total_tok_s_per_gpu"]
SPREAD_METRICS: tuple[Metric, ...] = get_args(Metric)
Knowledge = Literal["known", "new form", "new model", "new engine", "new accelerator", "assumed"]


class Spread(Strict):
    """Quantiles of log(measured / predicted); n: points they come from, 0 where it is no sample."""

    p10: FiniteFloat
    p50: FiniteFloat
    p90: FiniteFloat
    n: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _in_order(self) -> Spread:
        if not self.p10 < self.p50 < self.p90:
            raise ValueError(f"p10={self.p10:g}, p50={self.p50:g}, p90={self.p90:g} do not rise")
        return self

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


class Evidence(Strict):
    """The file: spreads by kind of knowledge, form and metric."""

    source: str
    date: str
    commit: str  # of the code that predicted
    served: dict[str, dict[str, tuple[Form, ...]]]  # accelerator -> stack -> forms measured in the calibration
    spreads: dict[Knowledge, dict[Form, dict[Metric, Spread]]]
    coverage: dict[Knowledge, dict[Form, dict[Metric, float]]]  # inside the band of all other accelerators


@dataclass(frozen=True)
class Uncertainty:
    """Spreads of the errors on one accelerator, by metric, and in words where they come from."""

    kind: str
    accelerator: str  # as displayed
    reason: str
    spreads: dict[Metric, Spread]


@lru_cache(maxsize=1)
def evidence() -> Evidence:
    """The spreads that ship."""
    return Evidence.model_validate(json.loads(FILE.read_text(encoding="utf-8")))


def uncertainty_of(hardware: HardwareProfile, form: Form, model: str = "") -> Uncertainty:
    """What is known of an accelerator under its stack in that form of serving. model: name of the one that is served;
    left out: one that was measured."""
    own = _own_spread(hardware.efficiency)
    if own is not None:
        return Uncertainty(
            "own measurements",
            hardware.display_name,
            "kernels measured on such a machine; the band is the held-out error of whole steps there, and no serving "
            "measurement stands behind it",
            dict.fromkeys(SPREAD_METRICS, own),
        )
    found = evidence()
    kind, said = _kind(hardware, form, model, found.served)
    spreads = found.spreads[kind][form]
    points = spreads["total_tok_s_per_gpu"].n
    said = f"{said}; held-out errors on {points} published {form} points"
    return Uncertainty(kind, hardware.display_name, said, spreads)


def widest(several: Iterable[Uncertainty]) -> Uncertainty:
    """The one whose throughput is least certain: what holds for pools that work in turn."""
    return max(several, key=lambda one: one.spreads["total_tok_s_per_gpu"].width)


def _own_spread(efficiency: Efficiency) -> Spread | None:
    """Normal with the median absolute error of whole steps that a machine's own calibration left out of its fit.

    p90 = -p10 = z_0.90 log(1 + error) / z_0.75
    """
    error = efficiency.held_out_error.get(WHOLE_STEPS)
    if not error:
        return None
    half = Z90 * math.log1p(error) / MEDIAN_OF_ABSOLUTE
    return Spread(p10=-half, p50=0.0, p90=half)


def _kind(
    hardware: HardwareProfile, form: Form, model: str, served: dict[str, dict[str, tuple[Form, ...]]]
) -> tuple[Knowledge, str]:
    stack, efficiency = hardware.stack, hardware.efficiency
    if efficiency.origin == "assumed":
        return "assumed", f"rates of stack {stack!r} are assumed, not measured"
    if not efficiency.served and hardware.name not in served:
        return "new accelerator", "in no serving measurement of the calibration"
    forms = {*efficiency.served, *served.get(hardware.name, {}).get(stack, ())}
    if not forms or (form == "colocated" and form not in forms):
        return "new engine", f"not measured in {form} serving with {stack!r}"
    if model and all(situation.when.get("model") != model for situation in efficiency.situations):
        return "new model", f"{model} is in no serving measurement of the calibration"
    if form not in forms:
        return "new form", f"measured with {stack!r} in colocated serving only"
    return "known", f"measured in {form} serving with {stack!r}"

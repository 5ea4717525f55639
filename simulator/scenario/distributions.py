"""Distributions that a workload draws from: token counts and other whole numbers, and seconds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, model_validator

from simulator.scenario.keys import Count, Duration, Keys, Positive


class Lengths(Keys):
    """Token counts of one side of a request, or turns of a session. A bare number in TOML means `constant`.

    constant: value. uniform: low..high inclusive. exponential: mean. lognormal: median and sigma of the log.
    Draws are whole numbers of at least 1 (`low` at least 1), cut at `maximum` where given.
    """

    kind: Literal["constant", "uniform", "exponential", "lognormal"] = "constant"
    value: Count | None = None
    low: Count | None = None
    high: Count | None = None
    mean: Positive | None = None
    median: Positive | None = None
    sigma: Positive | None = None
    maximum: Count | None = None

    @model_validator(mode="before")
    @classmethod
    def _bare_number(cls, data: Any) -> Any:
        return {"kind": "constant", "value": data} if isinstance(data, (int, float, str)) else data

    @model_validator(mode="after")
    def _complete(self) -> Lengths:
        _demand(self, "lengths", self.kind)
        if self.kind == "uniform" and self.high < self.low:  # type: ignore[operator]
            raise ValueError(f"high={self.high} is below low={self.low}")
        return self


class Seconds(Keys):
    """A time that is drawn. A bare number in TOML means `constant`; the other kinds are those of `Lengths`."""

    kind: Literal["constant", "exponential", "lognormal"] = "constant"
    value: Duration | None = None
    mean: Duration | None = None
    median: Annotated[FiniteFloat, Field(gt=0, le=1e9, strict=True)] | None = None
    sigma: Annotated[FiniteFloat, Field(gt=0, le=5, strict=True)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _bare_number(cls, data: Any) -> Any:
        return {"kind": "constant", "value": data} if isinstance(data, (int, float, str)) else data

    @model_validator(mode="after")
    def _complete(self) -> Seconds:
        _demand(self, "seconds", self.kind)
        return self


NEEDS = {
    "constant": ("value",),
    "uniform": ("low", "high"),
    "exponential": ("mean",),
    "lognormal": ("median", "sigma"),
}


def _demand(drawn: Lengths | Seconds, what: str, kind: str) -> None:
    """Refuse a distribution that lacks one of its parameters."""
    missing = [key for key in NEEDS[kind] if getattr(drawn, key) is None]
    if missing:
        raise ValueError(f"{kind} {what} need {' and '.join(missing)}")

"""[workload]: lengths, arrivals, traces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, model_validator

from simulator.des.scenario.base import Count, NonNegative, Positive, Rate, Strict


class Lengths(Strict):
    """Token counts of one side of a request. A bare number in TOML means `constant`.

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
        needs = {
            "constant": ("value",),
            "uniform": ("low", "high"),
            "exponential": ("mean",),
            "lognormal": ("median", "sigma"),
        }[self.kind]
        missing = [key for key in needs if getattr(self, key) is None]
        if missing:
            raise ValueError(f"{self.kind} lengths need {' and '.join(missing)}")
        if self.kind == "uniform" and self.high < self.low:  # type: ignore[operator]
            raise ValueError(f"high={self.high} is below low={self.low}")
        return self


class SharedPrefix(Strict):
    """Prompts that begin alike: each starts with the first `tokens` of one of `groups` prefixes, drawn at random."""

    tokens: Count
    groups: Count = 1


class Diurnal(Strict):
    """A day's curve of the arrival rate: a cosine from `rate` at its peak to trough * rate half a period later."""

    trough: Annotated[FiniteFloat, Field(gt=0, le=1)] = 0.4
    period_s: Positive = 86_400.0
    peak_s: NonNegative = 43_200.0  # when the first peak comes
    growth_per_day: NonNegative = 0.0  # 0.01: the whole curve rises by 1% a day


class Bursts(Strict):
    """Spells of `rate` between spells of quiet * rate, exponential in length (a Markov-modulated Poisson process)."""

    quiet: Annotated[FiniteFloat, Field(gt=0, lt=1)] = 0.25
    burst_s: Positive = 10.0  # mean length of a burst
    quiet_s: Positive = 60.0  # mean time between bursts


class OpenLoop(Strict):
    """Arrivals that do not wait for answers: Poisson, or Gamma with `burstiness` (squared variation) above 1.

    With `diurnal` or `bursts` the rate changes, and `rate` is the highest of it.
    """

    kind: Literal["open_loop"] = "open_loop"
    rate: Rate  # requests per second
    requests: Count = 2000
    burstiness: Positive = 1.0
    diurnal: Diurnal | None = None
    bursts: Bursts | None = None
    prompt: Lengths
    output: Lengths
    shared_prefix: SharedPrefix | None = None  # counted in the prompt's length; matters to a prefix cache


class ClosedLoop(Strict):
    """A fixed number of clients, each sending its next request when the last one ends (public benchmarks)."""

    kind: Literal["closed_loop"] = "closed_loop"
    concurrency: Count
    requests: Count
    prompt: Lengths
    output: Lengths


class Trace(Strict):
    """Recorded arrivals: Azure CSV (TIMESTAMP, ContextTokens, GeneratedTokens) or Mooncake JSONL."""

    kind: Literal["trace"] = "trace"
    path: Path
    format: Literal["auto", "azure_csv", "mooncake_jsonl"] = "auto"
    speed: Positive = 1.0  # 2 replays twice as fast
    limit: Count | None = None


Workload = Annotated[OpenLoop | ClosedLoop | Trace, Field(discriminator="kind")]

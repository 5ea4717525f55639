"""What every scenario key is built of: strict tables, number types, the error."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

# strict: true and "20" are not numbers. Bounds lie far outside what is real, and inside what a run can count with:
# times that add up to infinity, or that a clock cannot tell from 0, would never let it end.
Positive = Annotated[FiniteFloat, Field(gt=0, strict=True)]
NonNegative = Annotated[FiniteFloat, Field(ge=0, strict=True)]
Duration = Annotated[FiniteFloat, Field(ge=0, le=1e9, strict=True)]  # [s]; 30 years at most
Interval = Annotated[FiniteFloat, Field(ge=1e-3, le=1e9, strict=True)]  # [s] between things that go on and on
Bandwidth = Annotated[FiniteFloat, Field(ge=1e3, strict=True)]  # [B/s]
Rate = Annotated[FiniteFloat, Field(ge=1e-6, le=1e7, strict=True)]  # requests per second; a few a month at least
MOST = 10**9  # far above any real count, far below int64
Count = Annotated[int, Field(ge=1, le=MOST, strict=True)]
MOST_REQUESTS = 10**8  # of a run; each takes some 500 B
RequestCount = Annotated[int, Field(ge=1, le=MOST_REQUESTS, strict=True)]
MOST_INSTANCES = 10**5  # of a pool; each takes some 10 kB
Instances = Annotated[int, Field(ge=1, le=MOST_INSTANCES, strict=True)]
MOST_DRAFTS = 64  # of a step: several times what engines offer (assumed)
Drafts = Annotated[int, Field(ge=0, le=MOST_DRAFTS, strict=True)]  # tokens that a decode step verifies


class ScenarioError(ValueError):
    """A scenario that cannot be understood; the message names the key, the value and the way out."""


class Keys(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

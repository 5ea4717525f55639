"""What every scenario key is built of: strict tables, number types, the error."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

# strict: true and "20" are not numbers
Positive = Annotated[FiniteFloat, Field(gt=0, strict=True)]
NonNegative = Annotated[FiniteFloat, Field(ge=0, strict=True)]
Rate = Annotated[FiniteFloat, Field(ge=1e-6, strict=True)]  # requests per second; a few a month at least
Count = Annotated[int, Field(ge=1, le=10**9, strict=True)]  # far above any real count, far below int64
Instances = Annotated[int, Field(ge=1, le=10**5, strict=True)]


class ScenarioError(ValueError):
    """A scenario that cannot be understood; the message names the key, the value and the way out."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

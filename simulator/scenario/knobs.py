"""What an operator sets on accelerators: memory share, KV type, power cap, price. Of a pool, or of a whole search."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, FiniteFloat, model_validator

from simulator.scenario.keys import Keys, NonNegative, Positive


class Knobs(Keys):
    """Left out: the stack's usual share, the model's usual KV type, no cap, the price of the scenario's convention."""

    # of each accelerator's memory, that the engine takes (see simulator.model.engine_memory for of what)
    memory_share: Annotated[FiniteFloat, Field(gt=0, le=1, strict=True)] | None = Field(
        default=None, validation_alias=AliasChoices("memory_share", "memory_utilisation", "gpu_memory_utilization")
    )
    kv_dtype: Literal["bf16", "fp8"] | None = None
    power_cap_w: Positive | None = None  # of each accelerator [W]
    usd_per_hour: NonNegative | None = None  # of each accelerator [USD/h]

    @model_validator(mode="before")
    @classmethod
    def _no_adapters(cls, data: Any) -> Any:
        if isinstance(data, dict):
            named = next((key for key in data if "lora" in str(key).lower()), None)
            if named is not None:
                raise ValueError(
                    f"'{named}': LoRA adapters are not modelled, neither their memory nor their steps; remove the key "
                    "to see the base model alone"
                )
        return data

    @property
    def knobs(self) -> dict[str, Any]:
        """Those that are set."""
        return {name: value for name in Knobs.model_fields if (value := getattr(self, name)) is not None}


def one_kv_dtype(knobs: Iterable[Knobs]) -> str | None:
    """The KV type of pools that hand KV to each other; ValueError where they differ."""
    found = list(dict.fromkeys(each.kv_dtype for each in knobs))
    if len(found) > 1:
        said = " and ".join(str(each or "the model's own") for each in found)
        raise ValueError(f"kv_dtype is {said} in pools of one deployment; give all pools the same")
    return found[0] if found else None

"""Achieved rates of a software stack on an accelerator, as fractions of datasheet peak, by op class."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, FiniteFloat

from hw_profiles.schema import Strict

Fraction = Annotated[FiniteFloat, Field(gt=0, le=1.5)]
Seconds = Annotated[FiniteFloat, Field(ge=0)]


class OpClass(StrEnum):
    """Ops that share achieved rates."""

    DENSE_GEMM = "dense_gemm"
    GROUPED_GEMM = "grouped_gemm"
    MOE_FUSED = "moe_fused"
    ATTENTION_PREFILL = "attention_prefill"
    ATTENTION_DECODE = "attention_decode"
    INDEXER = "indexer"
    ELEMENTWISE = "elementwise"
    ALL_REDUCE = "all_reduce"  # also all-gather and reduce-scatter
    ALL_TO_ALL = "all_to_all"
    POINT_TO_POINT = "point_to_point"


class ClassEfficiency(Strict):
    """Parameters of t = t0 + ((FLOPs/F)^q + (bytes/B)^q + (net/N)^q)^(1/q) for one op class.

    F, B, N are the datasheet peaks times these fractions.
    """

    matrix_fraction: Fraction
    memory_fraction: Fraction
    network_fraction: Fraction
    latency_s: Seconds  # t0, launch or fabric floor of one op
    exponent: Annotated[FiniteFloat, Field(ge=1, le=16)]
    residual_sigma: Seconds  # std of log(measured / predicted)
    source: Annotated[str, Field(min_length=3)]
    assumed: bool


class Efficiency(Strict):
    """All that is known of a stack's speed on an accelerator, beyond the datasheet."""

    accelerator: str
    stack: str  # "default", "sglang", "vllm", "trtllm", "moeplan", ...
    classes: dict[OpClass, ClassEfficiency]
    step_overhead_s: Seconds  # host: scheduling, sampling, detokenising, launch gaps, per step
    request_overhead_s: Seconds  # tokenise, admission, HTTP, before the first token
    overhead_source: Annotated[str, Field(min_length=3)]
    overhead_assumed: bool
    memory_utilisation: Annotated[FiniteFloat, Field(gt=0, le=1)]  # share of capacity the stack may fill
    provenance: str = ""

    @property
    def assumed(self) -> bool:
        """True while any parameter is a guess and not a measurement."""
        return self.overhead_assumed or any(c.assumed for c in self.classes.values())

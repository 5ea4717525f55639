"""Achieved rates of a software stack on an accelerator, as fractions of datasheet peak, by op class."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, model_validator

from hw_profiles.schema import Accelerator, SourceText, Strict

# Largest share of a data-sheet peak that a profile may hold [-]; assumed. Above 1 only for factors below 1 to meet (see
# `Situation`): no kernel outruns the peak.
LARGEST_STORED = 4.0
MOST_EXPONENT = 16  # of the p-norm [-]; assumed: at it two equal roofs add 4%, as good as none
MOST_TILE_ROWS = 1024  # rows of a ragged tile; assumed: several times the largest tiles of kernels
MOST_SHORT_ROW_FACTOR = 1024  # [-]; assumed: more is a slip of the pen
MOST_REREAD_SHARE = 2  # [-]; assumed: a read again from memory costs what the first did, 1
Fraction = Annotated[FiniteFloat, Field(gt=0, le=LARGEST_STORED)]
RereadShare = Annotated[FiniteFloat, Field(ge=0, le=MOST_REREAD_SHARE)]
StoredSeconds = Annotated[FiniteFloat, Field(ge=0)]
Error = Annotated[FiniteFloat, Field(ge=0)]  # relative, or of a logarithm
Origin = Literal["assumed", "published", "served", "measured"]
ORIGINS: dict[Origin, str] = {
    "measured": "measured with the runtime",
    "published": "fitted from published tables",
    "served": "fitted to serving points of your own",
    "assumed": "assumed",
}

WHOLE_STEPS = "whole steps"  # key of `held_out_error` that a calibration of one's own machine fills


class OpClass(StrEnum):
    """Ops that share achieved rates."""

    DENSE_GEMM = "dense_gemm"
    GROUPED_GEMM = "grouped_gemm"
    MOE_FUSED = "moe_fused"
    ATTENTION_PREFILL = "attention_prefill"  # cores over keys and values of grouped heads
    ATTENTION_DECODE = "attention_decode"
    LATENT_PREFILL = "latent_prefill"  # cores over one latent that all heads share (MLA)
    LATENT_DECODE = "latent_decode"
    SPARSE_PREFILL = "sparse_prefill"  # cores over a window and gathered entries (CSA, HCA, DSA)
    SPARSE_DECODE = "sparse_decode"
    RECURRENT_PREFILL = "recurrent_prefill"  # state of linear attention over chunks of a prompt (KDA, Gated DeltaNet)
    RECURRENT_DECODE = "recurrent_decode"
    INDEXER = "indexer"
    SELECTION = "selection"  # top-k of index scores
    ELEMENTWISE = "elementwise"
    MIXING = "mixing"  # residual streams (mHC)
    ALL_REDUCE = "all_reduce"  # also all-gather and reduce-scatter
    ALL_TO_ALL = "all_to_all"
    POINT_TO_POINT = "point_to_point"


# Classes that a profile may leave out, with those whose rates then stand for theirs.
STANDS_FOR = {
    OpClass.LATENT_PREFILL: OpClass.ATTENTION_PREFILL,
    OpClass.LATENT_DECODE: OpClass.ATTENTION_DECODE,
    OpClass.SPARSE_PREFILL: OpClass.ATTENTION_PREFILL,
    OpClass.SPARSE_DECODE: OpClass.ATTENTION_DECODE,
    OpClass.RECURRENT_PREFILL: OpClass.ATTENTION_PREFILL,
    OpClass.RECURRENT_DECODE: OpClass.ATTENTION_DECODE,
    OpClass.SELECTION: OpClass.ELEMENTWISE,
    OpClass.MIXING: OpClass.ELEMENTWISE,
}


WIDENING = " x "  # between operands and weights in the name of a kernel


def operands_of(kernel: str) -> str:
    """Operand dtype of a kernel.

    >>> operands_of("fp8 x fp4"), operands_of("bf16"), operands_of("")
    ('fp8', 'bf16', '')
    """
    return kernel.partition(WIDENING)[0]


def _of(values: dict[str, float], kernel: str, rest: float) -> float:
    """The value of `kernel`, of others with its operands, or of all."""
    return values[kernel] if kernel in values else values.get(operands_of(kernel), rest)


class ClassEfficiency(Strict):
    """Parameters of t = t0 + d K + ((FLOPs/F)^q + (bytes/B)^q + (net/N)^q)^(1/q) for one op class.

    F, B, N are the datasheet peaks times these fractions. FLOPs include those of ragged tiles (`tile_rows`), bytes
    of short rows count several times (`short_row_factor`), weights read again in part (`reread_share`).
    """

    matrix_fraction: Fraction
    memory_fraction: Fraction
    network_fraction: Fraction
    latency_s: StoredSeconds  # t0, launch or fabric floor of one op
    depth_s: StoredSeconds = 0.0  # d, of one element more in sums of a product, which a tile adds one after the other
    exponent: Annotated[FiniteFloat, Field(ge=1, le=MOST_EXPONENT)]
    residual_sigma: Error  # std of log(measured / predicted)
    # rows by which a ragged tile is filled up, on average: multiplied like any others
    tile_rows: Annotated[FiniteFloat, Field(ge=0, le=MOST_TILE_ROWS)] = 0.0
    # times as long as others that bytes of short rows take (`Op.short_row_bytes`)
    short_row_factor: Annotated[FiniteFloat, Field(ge=1, le=MOST_SHORT_ROW_FACTOR)] = 1.0
    # share of its time that reading weights once more takes, for a further tile of tokens (`Op.again_bytes`)
    reread_share: RereadShare = 0.0
    # By kernel: the operand dtype, or with that of weights that it widens, as in "fp8 x fp4"; "" for ops that multiply
    # nothing.
    # kernels whose fraction of their operands' peak differs
    matrix_fraction_by: dict[str, Fraction] = Field(default_factory=dict)
    # kernels that reach another fraction of the memory bandwidth
    memory_fraction_by: dict[str, Fraction] = Field(default_factory=dict)
    # kernels that read again at another share
    reread_share_by: dict[str, RereadShare] = Field(default_factory=dict)
    # kernels with another floor
    latency_s_by: dict[str, StoredSeconds] = Field(default_factory=dict)
    # and sums of another pace
    depth_s_by: dict[str, StoredSeconds] = Field(default_factory=dict)
    source: SourceText
    assumed: bool

    def matrix_fraction_of(self, kernel: str) -> float:
        """Fraction of the peak of the operands of `kernel`."""
        return _of(self.matrix_fraction_by, kernel, self.matrix_fraction)

    def memory_fraction_of(self, kernel: str) -> float:
        """Fraction of the memory bandwidth that `kernel` reaches."""
        return _of(self.memory_fraction_by, kernel, self.memory_fraction)

    def reread_share_of(self, kernel: str) -> float:
        """Share of the time of a first read that `kernel` takes to read weights again."""
        return _of(self.reread_share_by, kernel, self.reread_share)

    def latency_s_of(self, kernel: str) -> float:
        """Floor of `kernel`. [s]"""
        return _of(self.latency_s_by, kernel, self.latency_s)

    def depth_s_of(self, kernel: str) -> float:
        """Time of one element more in the sums of `kernel`. [s]"""
        return _of(self.depth_s_by, kernel, self.depth_s)


class Situation(Strict):
    """Factors on figures of a profile where all named conditions have these values.

    What the names mean, and which there are, is known to who computes with the profile.
    """

    when: dict[str, str]  # condition -> its value
    factors: dict[str, Annotated[FiniteFloat, Field(gt=0)]] = Field(default_factory=dict)  # by what they multiply
    # What is not known of them: draws of log(factor) less that of the factor itself, in units of 0.01, or where no
    # measurement tells anything its standard deviation.
    drawn: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    deviations: dict[str, Error] = Field(default_factory=dict)


class Efficiency(Strict):
    """All that is known of a stack's speed on an accelerator, beyond the datasheet."""

    accelerator: str
    stack: str  # "default", "sglang", "vllm", "trtllm", "moeplan", ...
    classes: dict[OpClass, ClassEfficiency]
    step_overhead_s: StoredSeconds  # host: scheduling, sampling, detokenising, launch gaps, per step
    kernel_overhead_s: StoredSeconds = 0.0  # the same for each kernel of a decode step
    sequence_overhead_s: StoredSeconds = 0.0  # the same for each running sequence of an attention rank
    exit_latency_s: StoredSeconds = 0.0  # of a collective that leaves the scale-up domain, beyond its class's floor
    request_overhead_s: StoredSeconds  # host: tokenise, admission, HTTP, once per request
    acceptance: Annotated[FiniteFloat, Field(ge=0, lt=1)] | None = None  # chance of a draft if those before it were
    overhead_source: SourceText
    overhead_assumed: bool
    memory_utilisation: Annotated[FiniteFloat, Field(gt=0, le=1)]  # share of capacity the stack may fill
    provenance: str = ""
    origin: Origin = "assumed"
    # median |predicted / measured - 1|, by op class or kind of check
    held_out_error: dict[str, Error] = Field(default_factory=dict)
    situations: tuple[Situation, ...] = ()  # all that hold multiply
    # standard deviation of the log of each factor for a model that no situation names
    unseen: dict[str, Error] = Field(default_factory=dict)
    # standard deviation of the log of one measurement about the model, by metric
    noise: dict[str, Error] = Field(default_factory=dict)
    served: tuple[str, ...] = ()  # conditions that one's own points, which it is fitted to, were run in
    part: Accelerator | None = None  # of a machine that the catalogue does not have

    @model_validator(mode="before")
    @classmethod
    def _fill_classes(cls, data: Any) -> Any:
        """Rates of classes that the data leaves out."""
        if isinstance(data, dict) and isinstance(data.get("classes"), dict):
            given = data["classes"]
            stand_ins = {c: given[s] for c, s in STANDS_FOR.items() if c not in given and s in given}
            return {**data, "classes": {**given, **stand_ins}}
        return data

    @property
    def assumed_parts(self) -> tuple[str, ...]:
        """Op classes that rest on a guess, and the overheads if they do."""
        classes = tuple(op_class.value for op_class, rates in self.classes.items() if rates.assumed)
        return (*classes, "host overheads") if self.overhead_assumed else classes

    @property
    def assumed(self) -> bool:
        """True while any parameter is a guess and not a measurement."""
        return bool(self.assumed_parts)

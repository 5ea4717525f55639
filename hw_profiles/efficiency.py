"""Achieved rates of a software stack on an accelerator, as fractions of datasheet peak, by op class."""

from __future__ import annotations

import json
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, FiniteFloat, model_validator

from hw_profiles.loading import CatalogError, build, read_toml
from hw_profiles.schema import Accelerator, Source, Strict

LARGEST_STORED = 1.5
Fraction = Annotated[FiniteFloat, Field(gt=0, le=LARGEST_STORED)]
Seconds = Annotated[FiniteFloat, Field(ge=0)]
Error = Annotated[FiniteFloat, Field(ge=0)]  # relative
Origin = Literal["assumed", "published", "served", "measured"]
Form = Literal["colocated", "disaggregated"]  # of serving
# What tells situations of one stack apart, and what of it differs by them: rates as multiples, host times as multiples.
Dimension = Literal["model", "form", "attention", "experts", "drafts", "precision"]
# drafting: host time of a step with drafts over that of one without
Part = Literal["memory", "matrix", "network", "launch", "attention", "experts", "kernel_overhead_s", "drafting",
               "request_overhead_s"]  # fmt: skip
PARTS: tuple[Part, ...] = get_args(Part)
ORIGINS: dict[Origin, str] = {
    "measured": "measured with the runtime",
    "published": "fitted from published tables",
    "served": "fitted to serving points of your own",
    "assumed": "assumed",
}

DEFAULT_STACK = "default"
DEFAULT_FILE = "default.toml"
GIVE_A_PROFILE = "give a profile, as `moeplan calibrate fit` writes it"
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
    latency_s: Seconds  # t0, launch or fabric floor of one op
    depth_s: Seconds = 0.0  # d, of one element more in the sums of a product, which a tile adds one after the other
    exponent: Annotated[FiniteFloat, Field(ge=1, le=16)]
    residual_sigma: Seconds  # std of log(measured / predicted)
    # rows by which a ragged tile is filled up, on average: multiplied like any others
    tile_rows: Annotated[FiniteFloat, Field(ge=0, le=1024)] = 0.0
    # times as long as others that bytes of short rows take (`Op.short_row_bytes`)
    short_row_factor: Annotated[FiniteFloat, Field(ge=1, le=1024)] = 1.0
    # share of its time that reading weights once more takes, for a further tile of tokens (`Op.again_bytes`)
    reread_share: Annotated[FiniteFloat, Field(ge=0, le=2)] = 0.0
    # By kernel: the operand dtype, or with that of weights that it widens, as in "fp8 x fp4"; "" for ops that multiply
    # nothing.
    # kernels whose fraction of their operands' peak differs
    matrix_fraction_by: dict[str, Fraction] = Field(default_factory=dict)
    # kernels that reach another fraction of the memory bandwidth
    memory_fraction_by: dict[str, Fraction] = Field(default_factory=dict)
    # kernels that read again at another share
    reread_share_by: dict[str, Annotated[FiniteFloat, Field(ge=0, le=2)]] = Field(default_factory=dict)
    # kernels with another floor
    latency_s_by: dict[str, Seconds] = Field(default_factory=dict)
    # and sums of another pace
    depth_s_by: dict[str, Seconds] = Field(default_factory=dict)
    source: Source
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
    """Factors on parts of a profile where all dimensions have these values (see `simulator.model.engine`)."""

    when: dict[Dimension, str]
    factors: dict[Part, Annotated[FiniteFloat, Field(gt=0)]]


class Efficiency(Strict):
    """All that is known of a stack's speed on an accelerator, beyond the datasheet."""

    accelerator: str
    stack: str  # "default", "sglang", "vllm", "trtllm", "moeplan", ...
    classes: dict[OpClass, ClassEfficiency]
    step_overhead_s: Seconds  # host: scheduling, sampling, detokenising, launch gaps, per step
    kernel_overhead_s: Seconds = 0.0  # the same for each kernel of a decode step
    request_overhead_s: Seconds  # tokenise, admission, HTTP, before the first token
    overhead_source: Source
    overhead_assumed: bool
    memory_utilisation: Annotated[FiniteFloat, Field(gt=0, le=1)]  # share of capacity the stack may fill
    provenance: str = ""
    origin: Origin = "assumed"
    # median |predicted / measured - 1|, by op class or kind of check
    held_out_error: dict[str, Error] = Field(default_factory=dict)
    situations: tuple[Situation, ...] = ()  # what changes with model and form of serving
    served: tuple[Form, ...] = ()  # forms of serving whose points of one's own the profile is fitted to
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


def stacks(accelerator: str, folder: Path) -> list[str]:
    """Stacks that have an efficiency for this accelerator: the default, then the fitted ones."""
    fitted = sorted(path.stem.partition("@")[2] for path in folder.glob(f"{accelerator}@*.json"))
    return [DEFAULT_STACK, *fitted]


def load_efficiency(
    accelerator: str, generation: str, stack: str, folder: Path, elsewhere: Iterable[str] = ()
) -> Efficiency:
    """The fit of `stack` on `accelerator`, or the assumed fractions of its generation.

    Fits are files `<accelerator>@<stack>.json` in `folder`, defaults the tables of default.toml. Stacks with a fit
    `elsewhere` are named where this one is unknown.
    """
    if stack == DEFAULT_STACK:
        return _default(accelerator, generation, folder / DEFAULT_FILE)
    known = stacks(accelerator, folder)
    if stack not in known:
        known += [other for other in elsewhere if other not in known]
        raise CatalogError(f"no efficiency of stack {stack!r} on {accelerator}; there is {', '.join(known)}")
    path = folder / f"{accelerator}@{stack}.json"
    return _matching(read_fit(path), accelerator, stack, path)


def read_fit(path: Path) -> Efficiency:
    """One profile file; CatalogError names what is wrong with it."""
    data = read_json(path)
    if not (isinstance(data, dict) and "classes" in data):
        raise CatalogError(f"{path.name}: it holds no classes of ops; {GIVE_A_PROFILE}")
    return build(Efficiency, data, path)


def read_json(path: Path) -> Any:
    """What a JSON file holds; CatalogError where it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CatalogError(f"{path} does not exist; {GIVE_A_PROFILE}") from None
    except OSError as error:
        raise CatalogError(f"{path} cannot be read ({error.strerror}); {GIVE_A_PROFILE}") from None
    except UnicodeDecodeError:
        raise CatalogError(f"{path.name}: not readable JSON: it is not UTF-8 text; {GIVE_A_PROFILE}") from None
    except ValueError as error:
        raise CatalogError(f"{path.name}: not readable JSON: {error}; {GIVE_A_PROFILE}") from None


def _matching(fit: Efficiency, accelerator: str, stack: str, path: Path) -> Efficiency:
    if (fit.accelerator, fit.stack) != (accelerator, stack):
        raise CatalogError(
            f"{path.name}: it describes {fit.accelerator}@{fit.stack}, not {accelerator}@{stack}; "
            "rename the file or fix the keys accelerator and stack"
        )
    return complete(fit, path)


def complete(fit: Efficiency, path: Path) -> Efficiency:
    """The fit, if it prices every class of ops."""
    missing = [c.value for c in OpClass if c not in fit.classes]
    if missing:
        raise CatalogError(
            f"{path.name}: classes lacks {', '.join(missing)}; fit it again with `moeplan calibrate fit`"
        )
    return fit


def _default(accelerator: str, generation: str, path: Path) -> Efficiency:
    """[base] of default.toml with the table of the generation (or the one it is `like`) laid over it."""
    tables = read_toml(path)
    base: dict[str, Any] = tables["base"]
    own: dict[str, Any] = tables.get(generation, {})
    if "like" in own:
        own = tables[own["like"]]
    classes = {
        op_class: {**parameters, **own.get("classes", {}).get(op_class, {}), "assumed": True}
        for op_class, parameters in base["classes"].items()
    }
    for op_class in set(own.get("classes", {})) - set(classes):
        raise CatalogError(f"{path.name}: unknown key {generation}.classes.{op_class}")
    data = {
        **base,
        **own,
        "classes": classes,
        "accelerator": accelerator,
        "stack": DEFAULT_STACK,
        "overhead_assumed": True,
    }
    return _matching(build(Efficiency, data, path), accelerator, DEFAULT_STACK, path)

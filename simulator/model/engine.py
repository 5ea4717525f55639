"""What an engine adds to its kernels: rates and host times as it serves one model in one way.

A profile holds what holds for its stack on its accelerator in colocated serving of any model. Its situations multiply
that, all of them that hold, as the effects of a serving fit add up in logs (`calibration.serving.export_profiles`).
Their names are defined here: the conditions that tell situations of one stack apart, and the factors by which they
differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Literal, cast, get_args

from hw_profiles.efficiency import ClassEfficiency, Efficiency, OpClass
from hw_profiles.loading import CatalogError
from hw_profiles.profile import HardwareProfile
from simulator.model.architecture import ModelSpec
from simulator.model.parallelism import Parallelism

Form = Literal["colocated", "disaggregated"]  # of serving
FORMS: tuple[Form, ...] = get_args(Form)
Condition = Literal["model", "form", "attention", "experts", "drafts", "precision"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)
# Multiples of rates (memory, matrix, network; attention and experts on top for their own kernels), of launch floors,
# and of host times. drafting: host time of a step with drafts over that of one without. [-]
Factor = Literal["memory", "matrix", "network", "launch", "attention", "experts", "kernel_overhead_s", "drafting",
                 "request_overhead_s"]  # fmt: skip
FACTORS: tuple[Factor, ...] = get_args(Factor)
When = tuple[tuple[Condition, str], ...]
DRAFTS: tuple[Condition, str] = ("drafts", "drafts")

CORES = (
    OpClass.ATTENTION_PREFILL, OpClass.ATTENTION_DECODE, OpClass.LATENT_PREFILL, OpClass.LATENT_DECODE,
    OpClass.SPARSE_PREFILL, OpClass.SPARSE_DECODE, OpClass.RECURRENT_PREFILL, OpClass.RECURRENT_DECODE,
    OpClass.INDEXER, OpClass.SELECTION,
)  # fmt: skip
EXPERTS = (OpClass.GROUPED_GEMM, OpClass.MOE_FUSED)
# Largest share of a peak that a stack reaches in a situation: the peak. [-]
LARGEST_FRACTION = 1.0
FRACTION_DIGITS = 4  # decimals of a share of a peak: finer ones say nothing beside the fit's error
FLOOR_DIGITS = 4  # significant ones of a launch floor


def form_of(disaggregated: bool) -> Form:
    return "disaggregated" if disaggregated else "colocated"


def attention_of(data_parallel: bool) -> str:
    return "data parallel" if data_parallel else "tensor parallel"


def experts_of(expert_parallel: bool) -> str:
    return "expert parallel" if expert_parallel else "expert slices"


def drafts_of(draft_tokens: int) -> str:
    return DRAFTS[1] if draft_tokens else "no drafts"


def in_service(
    hardware: HardwareProfile, model: ModelSpec, cut: Parallelism, draft_tokens: int, form: Form
) -> HardwareProfile:
    """`hardware` with what its stack's fit says of this model, cut and form; as it is where it says nothing.

    The precision is that of the routed experts, or of the last layer's projections. Raises CatalogError.
    """
    last = next(layer.ffn for layer in reversed(model.layers) if not layer.ffn.absent)
    precision = last.expert_dtype if last.experts else last.linears[-1].dtype
    return in_situation(
        hardware,
        (
            ("model", model.name),
            ("form", form),
            ("attention", attention_of(cut.dp > 1)),
            ("experts", experts_of(cut.ep > 1)),
            ("drafts", drafts_of(draft_tokens)),
            ("precision", precision),
        ),
    )


SITUATIONS_REMEMBERED = 256  # accelerators in a situation; assumed: a plan asks for a few dozen


@lru_cache(maxsize=SITUATIONS_REMEMBERED)
def in_situation(hardware: HardwareProfile, when: When) -> HardwareProfile:
    """The accelerator as its stack drives it there. when: value of each condition that is known.

    Raises CatalogError where the profile names what no engine has.
    """
    _check_names(hardware.efficiency)
    if not hardware.efficiency.situations:
        return hardware
    known = dict(when)
    given = dict.fromkeys(FACTORS, 1.0)
    for factors in _factors_in(hardware.efficiency, known):
        for name, factor in factors.items():
            given[name] *= factor
    if known.get("drafts") == DRAFTS[1]:
        given["kernel_overhead_s"] *= given["drafting"]
    return replace(hardware, efficiency=driven(hardware.efficiency, given, LARGEST_FRACTION))


def _factors_in(efficiency: Efficiency, known: Mapping[Condition, str]) -> Iterator[Mapping[Factor, float]]:
    """Of each situation that holds, its names checked before."""
    for situation in efficiency.situations:
        when = cast("Mapping[Condition, str]", situation.when)
        if all(known.get(condition) == value for condition, value in when.items()):
            yield cast("Mapping[Factor, float]", situation.factors)


def _check_names(efficiency: Efficiency) -> None:
    """The profile itself takes any names, for it does not know what they mean."""
    given = {
        "served": (efficiency.served, FORMS),
        "situations: when": ({name for one in efficiency.situations for name in one.when}, CONDITIONS),
        "situations: factors": ({name for one in efficiency.situations for name in one.factors}, FACTORS),
    }
    for key, (names, meant) in given.items():
        unknown = sorted(set(names) - set(meant))
        if unknown:
            raise CatalogError(
                f"profile {efficiency.accelerator}@{efficiency.stack}: {key}: unknown name {unknown[0]!r}; "
                f"use one of {', '.join(meant)}"
            )


def driven(efficiency: Efficiency, given: Mapping[Factor, float], largest: float) -> Efficiency:
    """Rates, launch floors and host times multiplied; those of steps without drafts. largest: fraction of a peak."""
    return efficiency.model_copy(
        update={
            "classes": {name: _scaled(name, rates, given, largest) for name, rates in efficiency.classes.items()},
            "kernel_overhead_s": efficiency.kernel_overhead_s * given["kernel_overhead_s"],
            "request_overhead_s": efficiency.request_overhead_s * given["request_overhead_s"],
        }
    )


def _scaled(
    op_class: OpClass, rates: ClassEfficiency, given: Mapping[Factor, float], largest: float
) -> ClassEfficiency:
    own = given["attention"] if op_class in CORES else given["experts"] if op_class in EXPERTS else 1.0

    def share(value: float, rate: float) -> float:
        return round(min(largest, value * rate), FRACTION_DIGITS)

    def floor(seconds: float) -> float:
        return float(f"{seconds * given['launch']:.{FLOOR_DIGITS}g}")

    matrix, memory = given["matrix"] * own, given["memory"] * own
    return rates.model_copy(
        update={
            "matrix_fraction": share(rates.matrix_fraction, matrix),
            "matrix_fraction_by": {k: share(f, matrix) for k, f in rates.matrix_fraction_by.items()},
            "memory_fraction": share(rates.memory_fraction, memory),
            "memory_fraction_by": {k: share(f, memory) for k, f in rates.memory_fraction_by.items()},
            "network_fraction": share(rates.network_fraction, given["network"]),
            "latency_s": floor(rates.latency_s),
            "latency_s_by": {k: floor(s) for k, s in rates.latency_s_by.items()},
            "depth_s": floor(rates.depth_s),
            "depth_s_by": {k: floor(s) for k, s in rates.depth_s_by.items()},
        }
    )

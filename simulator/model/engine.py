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
from typing import Any, Literal, cast, get_args

from hw_profiles.efficiency import ClassEfficiency, Efficiency, OpClass, Situation
from hw_profiles.loading import CatalogError
from hw_profiles.profile import HardwareProfile
from simulator.model.architecture import ModelSpec

Form = Literal["colocated", "disaggregated"]  # of serving
FORMS: tuple[Form, ...] = get_args(Form)
Condition = Literal["model", "form"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)
# Multiples of rates (memory, matrix, network; attention and experts on top for their own kernels), of host times and of
# what leaving the scale-up domain costs; of the odds that a draft is accepted. [-]
Factor = Literal["memory", "matrix", "network", "attention", "experts", "kernel_overhead_s", "sequence_overhead_s",
                 "exit_latency_s", "acceptance", "request_overhead_s"]  # fmt: skip
FACTORS: tuple[Factor, ...] = get_args(Factor)
# Standard deviation of the log of each over all stacks, before anything is measured (assumed).
DEVIATIONS: dict[Factor, float] = {
    "memory": 0.2, "matrix": 0.4, "network": 0.5, "attention": 0.4, "experts": 0.3, "kernel_overhead_s": 0.7,
    "sequence_overhead_s": 0.8, "exit_latency_s": 0.7, "acceptance": 0.5, "request_overhead_s": 0.8,
}  # fmt: skip
# Of the log of one measurement about the model, by metric (assumed).
NOISE = {"tpot_ms": 0.1, "total_tok_s_per_gpu": 0.1, "ttft_ms": 0.3}
When = tuple[tuple[Condition, str], ...]

CORES = (
    OpClass.ATTENTION_PREFILL, OpClass.ATTENTION_DECODE, OpClass.LATENT_PREFILL, OpClass.LATENT_DECODE,
    OpClass.SPARSE_PREFILL, OpClass.SPARSE_DECODE, OpClass.RECURRENT_PREFILL, OpClass.RECURRENT_DECODE,
    OpClass.INDEXER, OpClass.SELECTION,
)  # fmt: skip
EXPERTS = (OpClass.GROUPED_GEMM, OpClass.MOE_FUSED)
# Largest share of a peak that a stack reaches in a situation: the peak. [-]
LARGEST_FRACTION = 1.0
FRACTION_DIGITS = 4  # decimals of a share of a peak: finer ones say nothing beside the fit's error


def form_of(disaggregated: bool) -> Form:
    return "disaggregated" if disaggregated else "colocated"


def in_service(hardware: HardwareProfile, model: ModelSpec, form: Form) -> HardwareProfile:
    """`hardware` with what its stack's fit says of this model and form; as it is where it says nothing.

    Raises CatalogError.
    """
    return in_situation(hardware, (("model", model.name), ("form", form)))


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
    return replace(hardware, efficiency=driven(hardware.efficiency, given, LARGEST_FRACTION))


def holding(efficiency: Efficiency, known: Mapping[Condition, str]) -> Iterator[Situation]:
    """Each situation that holds."""
    for situation in efficiency.situations:
        when = cast("Mapping[Condition, str]", situation.when)
        if all(known.get(condition) == value for condition, value in when.items()):
            yield situation


def _factors_in(efficiency: Efficiency, known: Mapping[Condition, str]) -> Iterator[Mapping[Factor, float]]:
    """Of each situation that holds, its names checked before."""
    for situation in holding(efficiency, known):
        yield cast("Mapping[Factor, float]", situation.factors)


def _check_names(efficiency: Efficiency) -> None:
    """The profile itself takes any names, for it does not know what they mean."""
    given = {
        "served": (efficiency.served, FORMS),
        "situations: when": ({name for one in efficiency.situations for name in one.when}, CONDITIONS),
        "situations: factors": (
            {name for one in efficiency.situations for name in (*one.factors, *one.drawn, *one.deviations)},
            FACTORS,
        ),
        "unseen": (efficiency.unseen, FACTORS),
        "noise": (efficiency.noise, NOISE),
    }
    for key, (names, meant) in given.items():
        unknown = sorted(set(names) - set(meant))
        if unknown:
            raise CatalogError(
                f"profile {efficiency.accelerator}@{efficiency.stack}: {key}: unknown name {unknown[0]!r}; "
                f"use one of {', '.join(meant)}"
            )


def driven(efficiency: Efficiency, given: Mapping[Factor, float], largest: float) -> Efficiency:
    """Rates, host times and odds of drafts multiplied. largest: fraction of a peak."""
    times = ("kernel_overhead_s", "sequence_overhead_s", "exit_latency_s", "request_overhead_s")
    update: dict[str, Any] = {name: getattr(efficiency, name) * given[cast(Factor, name)] for name in times}
    if efficiency.acceptance is not None:
        odds = efficiency.acceptance / (1 - efficiency.acceptance) * given["acceptance"]
        update["acceptance"] = odds / (1 + odds)
    classes = {name: _scaled(name, rates, given, largest) for name, rates in efficiency.classes.items()}
    return efficiency.model_copy(update={"classes": classes, **update})


def _scaled(
    op_class: OpClass, rates: ClassEfficiency, given: Mapping[Factor, float], largest: float
) -> ClassEfficiency:
    own = given["attention"] if op_class in CORES else given["experts"] if op_class in EXPERTS else 1.0

    def share(value: float, rate: float) -> float:
        return round(min(largest, value * rate), FRACTION_DIGITS)

    matrix, memory = given["matrix"] * own, given["memory"] * own
    return rates.model_copy(
        update={
            "matrix_fraction": share(rates.matrix_fraction, matrix),
            "matrix_fraction_by": {k: share(f, matrix) for k, f in rates.matrix_fraction_by.items()},
            "memory_fraction": share(rates.memory_fraction, memory),
            "memory_fraction_by": {k: share(f, memory) for k, f in rates.memory_fraction_by.items()},
            "network_fraction": share(rates.network_fraction, given["network"]),
        }
    )

"""What a stack's rates and host times become in a situation: with that model, in that form of serving.

A profile holds what holds for its stack on its accelerator in colocated serving of any model. Situations multiply it,
all of them that hold, as the effects of a serving fit add up in logs (`calibration.serving.export_profiles`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from hw_profiles.efficiency import PARTS, ClassEfficiency, Dimension, Efficiency, Form, OpClass, Part
from hw_profiles.profile import HardwareProfile

CORES = (
    OpClass.ATTENTION_PREFILL, OpClass.ATTENTION_DECODE, OpClass.LATENT_PREFILL, OpClass.LATENT_DECODE,
    OpClass.SPARSE_PREFILL, OpClass.SPARSE_DECODE, OpClass.RECURRENT_PREFILL, OpClass.RECURRENT_DECODE,
    OpClass.INDEXER, OpClass.SELECTION,
)  # fmt: skip
EXPERTS = (OpClass.GROUPED_GEMM, OpClass.MOE_FUSED)
LARGEST_FRACTION = 1.0  # that a stack reaches in a situation; a profile may hold more, for factors below 1 to meet

When = tuple[tuple[Dimension, str], ...]
DRAFTS: tuple[Dimension, str] = ("drafts", "drafts")


def form_of(disaggregated: bool) -> Form:
    return "disaggregated" if disaggregated else "colocated"


def attention_of(data_parallel: bool) -> str:
    return "data parallel" if data_parallel else "tensor parallel"


def experts_of(expert_parallel: bool) -> str:
    return "expert parallel" if expert_parallel else "expert slices"


def drafts_of(draft_tokens: int) -> str:
    return DRAFTS[1] if draft_tokens else "no drafts"


@lru_cache(maxsize=256)
def in_situation(hardware: HardwareProfile, when: When) -> HardwareProfile:
    """The accelerator as its stack drives it there. when: value of each dimension that is known."""
    if not hardware.efficiency.situations:
        return hardware
    known = dict(when)
    given = dict.fromkeys(PARTS, 1.0)
    for situation in hardware.efficiency.situations:
        if all(known.get(dimension) == value for dimension, value in situation.when.items()):
            for part, factor in situation.factors.items():
                given[part] *= factor
    if known.get("drafts") == DRAFTS[1]:
        given["kernel_overhead_s"] *= given["drafting"]
    return replace(hardware, efficiency=driven(hardware.efficiency, given, LARGEST_FRACTION))


def driven(efficiency: Efficiency, given: Mapping[Part, float], largest: float) -> Efficiency:
    """Rates, launch floors and host times multiplied; those of steps without drafts. largest: fraction of a peak."""
    return efficiency.model_copy(
        update={
            "classes": {name: _scaled(name, rates, given, largest) for name, rates in efficiency.classes.items()},
            "kernel_overhead_s": efficiency.kernel_overhead_s * given["kernel_overhead_s"],
            "request_overhead_s": efficiency.request_overhead_s * given["request_overhead_s"],
        }
    )


def _scaled(op_class: OpClass, rates: ClassEfficiency, given: Mapping[Part, float], largest: float) -> ClassEfficiency:
    own = given["attention"] if op_class in CORES else given["experts"] if op_class in EXPERTS else 1.0

    def share(value: float, rate: float) -> float:
        return round(min(largest, value * rate), 4)

    def floor(seconds: float) -> float:
        return float(f"{seconds * given['launch']:.4g}")

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

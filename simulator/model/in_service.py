"""The accelerator as a stack drives it when it serves one model in one way."""

from __future__ import annotations

from hw_profiles.efficiency import Form
from hw_profiles.profile import HardwareProfile
from simulator.model.architecture import ModelSpec
from simulator.model.engine import attention_of, drafts_of, experts_of, in_situation
from simulator.model.parallelism import Parallelism


def in_service(
    hardware: HardwareProfile, model: ModelSpec, cut: Parallelism, draft_tokens: int, form: Form
) -> HardwareProfile:
    """`hardware` with what its stack's fit says of this model, cut and form; as it is where it says nothing.

    The precision is that of the routed experts, or of the last layer's projections.
    """
    last = model.layers[-1].ffn
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

"""How the schedulers of a stack batch prompts.

vLLM V1, and ATOM, which is built on it, fill decode steps with chunks; SGLang runs prompts in steps of their own before
it decodes; TensorRT-LLM adds whole prompts to decode steps, or chunks where `enable_chunked_prefill` is set.
"""

from __future__ import annotations

from simulator.steady_state.step_table import Batching

POLICIES: dict[str, tuple[Batching, ...]] = {"sglang": ("prefill_first",), "trtllm": ("inflight", "chunked")}
UNSAID_POLICIES: tuple[Batching, ...] = ("chunked",)


def batchings_of(family: str) -> tuple[Batching, ...]:
    """What a stack can be set to, its default first."""
    return POLICIES.get(family, UNSAID_POLICIES)


def batching_of(family: str) -> Batching:
    """What a stack does where nothing is said."""
    return batchings_of(family)[0]

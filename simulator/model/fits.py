"""What fits on a cut of a model: weights, what the engine holds, room for KV, and the tokens and sequences in it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from hw_profiles.catalog import fits as fitted_stacks
from hw_profiles.catalog import load
from hw_profiles.efficiency_files import DEFAULT_STACK
from hw_profiles.loading import CatalogError
from hw_profiles.profile import HardwareProfile
from simulator.model.engine_memory import BY_STACK, engine_memory
from simulator.model.limits import TOKENS_PER_STEP
from simulator.model.memory import MemoryPlan, plan_memory
from simulator.model.parallelism import Parallelism, ParallelismError
from simulator.model.presets import load_model


@dataclass(frozen=True)
class Fits:
    """Memory of one accelerator [B], and what one instance holds.

    Sequences of `context` tokens each, with fractions; beside them the tokens of one step are in the windows of a rank.
    logged: as the engine's start-up log counts, which may have a step's tokens in the windows of every sequence.
    """

    model: str
    gpu: str
    stack: str
    cut: str
    gpus: int
    ranks: int  # attention ranks, each with KV of its own
    context: int  # tokens of each sequence
    memory_share: float
    kv_dtype: str
    device_bytes: float  # what a program can have
    weight_bytes: float
    working_bytes: float
    outside_bytes: float
    kv_bytes: float
    kv_bytes_per_token: float
    kv_bytes_per_sequence: float
    page_tokens: int
    tokens_per_rank: int
    tokens: int
    sequences_per_rank: float
    sequences: float
    sequences_logged: float
    tokens_logged: int
    assumptions: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def fits(
    model: str,
    gpu: str,
    parallelism: Parallelism,
    *,
    stack: str = DEFAULT_STACK,
    context: int | None = None,
    memory_share: float | None = None,
    kv_dtype: str | None = None,
    dcp: int = 1,
    max_tokens_per_step: int = TOKENS_PER_STEP,
    max_sequences: int | None = None,
    draft_tokens: int = 0,
) -> Fits:
    """What an instance of `model` under `parallelism` holds. context: of each sequence, None for the model's longest.
    memory_share: None for the stack's usual one. max_sequences: of a rank.

    Raises DoesNotFitError, ParallelismError, ModelError or CatalogError.
    """
    spec = load_model(model, kv_dtype=kv_dtype)
    hardware = _hardware(gpu, stack)
    if memory_share is not None:
        hardware = hardware.with_memory_share(memory_share)
    engine = engine_memory(stack)
    plan = plan_memory(
        spec,
        hardware,
        parallelism,
        max_tokens_per_step,
        draft_tokens,
        max_sequences=max_sequences,
        dcp=dcp,
        engine=engine,
    )
    length = context or spec.max_positions
    if length > spec.max_positions:
        raise ParallelismError(f"context={length} exceeds the {spec.max_positions} tokens that {spec.name} takes")
    in_step = max_tokens_per_step * plan.window_bytes_per_token
    sequences = max(0.0, plan.kv_capacity_bytes - in_step) / plan.sequence_bytes(length)
    logged = sequences
    if engine.counts_chunks:
        logged = plan.kv_capacity_bytes / _counted_bytes(plan, length, max_tokens_per_step)
    tokens, tokens_logged = (_tokens(plan, length, count) for count in (sequences, logged))
    return Fits(
        model=spec.name,
        gpu=hardware.name,
        stack=stack,
        cut=f"{parallelism}" + (f" DCP{dcp}" if dcp > 1 else ""),
        gpus=parallelism.gpus,
        ranks=parallelism.dp,
        context=length,
        memory_share=hardware.efficiency.memory_utilisation,
        kv_dtype=next((a.kv_dtype for a, _ in spec.attentions if a.ratio), spec.attentions[0][0].kv_dtype),
        device_bytes=hardware.usable_memory_bytes,
        weight_bytes=plan.weight_bytes,
        working_bytes=plan.activation_bytes,
        outside_bytes=plan.outside_bytes,
        kv_bytes=plan.kv_capacity_bytes,
        kv_bytes_per_token=plan.kv_bytes_per_token,
        kv_bytes_per_sequence=plan.kv_bytes_per_sequence,
        page_tokens=plan.page_tokens,
        tokens_per_rank=tokens,
        tokens=tokens * parallelism.dp,
        sequences_per_rank=sequences,
        sequences=sequences * parallelism.dp,
        sequences_logged=logged * parallelism.dp,
        tokens_logged=tokens_logged * parallelism.dp,
        assumptions=(*spec.assumptions, f"engine: {engine.source}", *_memory_assumptions(hardware)),
    )


def _hardware(gpu: str, stack: str) -> HardwareProfile:
    """The accelerator under the stack where there is a fit, else under the default: memory needs no rates."""
    known = {DEFAULT_STACK, *fitted_stacks(gpu)}
    if stack in known:
        return load(gpu, stack)
    hardware = load(gpu)  # refuses an unknown accelerator first
    if stack not in BY_STACK:
        raise CatalogError(f"unknown stack {stack!r}; use one of {', '.join(sorted(known | set(BY_STACK)))}")
    return hardware


def _counted_bytes(plan: MemoryPlan, context: int, chunk: int) -> float:
    """KV of a sequence with `chunk` of its tokens in the windows. [B]"""
    return plan.sequence_bytes(context) + min(chunk, context) * plan.window_bytes_per_token


def _tokens(plan: MemoryPlan, context: int, sequences: float) -> int:
    """Tokens in the room of a rank: in whole pages, or as many sequences of `context` as fit where windows or states
    take room too."""
    if plan.kv_bytes_per_sequence:
        return int(sequences * context)
    page = plan.page_tokens * plan.kv_bytes_per_token
    return int(plan.kv_capacity_bytes / page) * plan.page_tokens


def _memory_assumptions(hardware: HardwareProfile) -> tuple[str, ...]:
    return tuple(text for text in hardware.assumptions if ": memory_" in text)

"""What fits on one accelerator: weights under the cut, working memory, and room for KV.

Everything is per accelerator and taken at the fullest pipeline stage. The stack fills `memory_utilisation` of the
device; the rest is for graphs, communication buffers and fragmentation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from hw_profiles.profile import HardwareProfile
from hw_profiles.units import human_bytes
from simulator.model.architecture import F32_BYTES, AttentionSpec, LayerSpec, Linear, ModelSpec
from simulator.model.kv import state_bytes, window_bytes
from simulator.model.limits import TOKENS_PER_STEP
from simulator.model.moe import INPUT_BYTES
from simulator.model.ops import ACTIVATION_BYTES
from simulator.model.parallelism import MOST_GPUS, Parallelism, ParallelismError
from simulator.model.sharding import Cut

# Rows of a step for one whose f32 logits are held; assumed: prefill needs its last rows only, and decode steps are far
# smaller than the token budget.
ROWS_PER_LOGITS = 8
RESIDUAL_COPIES = 2  # of the residual streams; assumed: a layer's input and output


class DoesNotFitError(ValueError):
    """The model does not fit the cut; says what it needs, what there is, and the fewest accelerators that would do."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one accelerator. Sequences are those of one data-parallel rank."""

    weight_bytes: float
    activation_bytes: float
    kv_capacity_bytes: float
    kv_bytes_per_token: float  # growth of one sequence
    kv_bytes_per_sequence: float  # window and state of one sequence, whatever its length

    def max_sequences(self, context: int) -> int:
        """Sequences of `context` tokens (at least 1) each that fit on a rank."""
        one = self.kv_bytes_per_sequence + self.kv_bytes_per_token * max(context, 1)
        return int(self.kv_capacity_bytes / one)


def plan_memory(
    model: ModelSpec,
    hardware: HardwareProfile,
    parallelism: Parallelism,
    max_tokens_per_step: int = TOKENS_PER_STEP,
    draft_tokens: int = 0,
    redundant_experts: int = 0,
) -> MemoryPlan:
    """What is left for KV. max_tokens_per_step: of one data-parallel rank; redundant_experts: further copies of
    experts in each layer, over all its ranks. Raises DoesNotFitError."""
    parallelism.check(model)
    plan = _plan(model, hardware, parallelism, max_tokens_per_step, draft_tokens)
    if redundant_experts:
        copied = sum(layer.ffn.expert_bytes for layer in model.layers if layer.ffn.experts)
        copied *= redundant_experts / (parallelism.stage_size * parallelism.pp)
        plan = replace(plan, weight_bytes=plan.weight_bytes + copied, kv_capacity_bytes=plan.kv_capacity_bytes - copied)
    if plan.kv_capacity_bytes <= plan.kv_bytes_per_sequence + plan.kv_bytes_per_token:
        raise DoesNotFitError(_refusal(model, hardware, parallelism, plan, max_tokens_per_step, draft_tokens))
    return plan


def weight_bytes_per_gpu(model: ModelSpec, cut: Cut, drafts: bool = False) -> float:
    """Weights on one accelerator of the fullest stage: 1/pp of the layers, embedding and LM head cut by tp. [B]

    Data-parallel and context-parallel ranks copy all but the routed experts.
    """
    layers = sum(_layer_bytes(layer, cut) * count for layer, count in model.kinds)
    layers *= cut.layers_per_stage(len(model.layers)) / len(model.layers)
    ends = model.lm_head.weight_bytes + (0.0 if model.tied_embedding else model.embedding.weight_bytes)
    if cut.parallelism.pp > 1:  # first and last stage hold one each
        ends = max(model.embedding.weight_bytes, model.lm_head.weight_bytes)
    total = layers + ends / cut.tp + model.other_param_bytes
    if drafts and model.draft:
        total += sum(_layer_bytes(layer, cut) for layer in model.draft.layers)
        total += sum(_held(linear, cut) for linear in model.draft.linears) + model.draft.other_param_bytes
    return total


def _held(linear: Linear, cut: Cut, attention: AttentionSpec | None = None) -> float:
    return linear.weight_bytes * cut.linear_share(linear, attention)


def _layer_bytes(layer: LayerSpec, cut: Cut) -> float:
    attention, ffn = layer.attention, layer.ffn
    total = sum(_held(linear, cut, attention) for linear in attention.linears)
    total += sum(_held(linear, cut) for linear in ffn.linears)
    total += attention.other_param_bytes + ffn.other_param_bytes + layer.norm_param_bytes
    if layer.mixing:
        total += 2 * layer.mixing.param_bytes_per_site
    return total + ffn.experts * ffn.expert_bytes / cut.parallelism.stage_size


def activation_bytes(model: ModelSpec, cut: Cut, tokens: int) -> float:
    """Working memory of a step with `tokens` rows on each data-parallel rank. [B]

    Copies of the residual streams, plus the larger of: all attention projections of a layer at once, or what a rank's
    experts receive, hold between their products, and return (uniform routing); plus f32 logits of some rows.
    """
    parallelism = cut.parallelism
    rows = tokens / parallelism.cp
    streams = max(layer.mixing.streams if layer.mixing else 1 for layer, _ in model.kinds)
    residual = RESIDUAL_COPIES * rows * streams * model.hidden * ACTIVATION_BYTES
    widest = 0.0
    for layer, _ in model.kinds:
        projected = sum(x.outputs * cut.linear_share(x, layer.attention) for x in layer.attention.linears)
        attention = rows * projected * ACTIVATION_BYTES
        ffn = layer.ffn
        shared = rows * sum(x.outputs * cut.linear_share(x) for x in ffn.linears) * ACTIVATION_BYTES
        choices = tokens * parallelism.dp * ffn.experts_per_token / parallelism.ep
        inner = (ffn.matrices - 1) * ffn.expert_intermediate / cut.expert_tp * ACTIVATION_BYTES
        received = ffn.expert_hidden * (INPUT_BYTES[ffn.expert_compute] + ACTIVATION_BYTES)
        widest = max(widest, attention, shared + choices * (received + inner))
    logits = tokens / ROWS_PER_LOGITS * model.vocab / cut.tp * F32_BYTES
    return residual + widest + logits


def _kv_bytes(model: ModelSpec, cut: Cut, draft_tokens: int) -> tuple[float, float]:
    """(growth per token, fixed per sequence) on one accelerator. [B]"""
    stage = cut.layers_per_stage(len(model.layers)) / len(model.layers)
    growth, fixed = _layers_kv(model.kinds, cut, draft_tokens)
    if draft_tokens and model.draft:
        draft_growth, draft_fixed = _layers_kv([(layer, 1) for layer in model.draft.layers], cut, draft_tokens)
        return growth * stage + draft_growth, fixed * stage + draft_fixed
    return growth * stage, fixed * stage


def _layers_kv(layers: Iterable[tuple[LayerSpec, int]], cut: Cut, draft_tokens: int) -> tuple[float, float]:
    growth = fixed = 0.0
    for layer, count in layers:
        attention = layer.attention
        growth += count * cut.stored_bytes(attention)
        fixed += count * window_bytes(attention) * cut.kv_share(attention)
        # recurrent state is cut by head, as the projections that feed it are; compressor rows are copied
        fixed += count * state_bytes(attention, draft_tokens > 0) / (1 if attention.compressor else cut.tp)
    return growth, fixed


def _plan(
    model: ModelSpec, hardware: HardwareProfile, parallelism: Parallelism, tokens: int, draft_tokens: int
) -> MemoryPlan:
    cut = Cut.of(parallelism, hardware)
    weights = weight_bytes_per_gpu(model, cut, draft_tokens > 0)
    activations = activation_bytes(model, cut, tokens)
    usable = hardware.memory_bytes * hardware.efficiency.memory_utilisation
    growth, fixed = _kv_bytes(model, cut, draft_tokens)
    return MemoryPlan(weights, activations, usable - weights - activations, growth, fixed)


def _refusal(
    model: ModelSpec,
    hardware: HardwareProfile,
    parallelism: Parallelism,
    plan: MemoryPlan,
    tokens: int,
    draft_tokens: int,
) -> str:
    usable = hardware.memory_bytes * hardware.efficiency.memory_utilisation
    fewest = _fewest_gpus(model, hardware, tokens, draft_tokens)
    way_out = (
        f"at least {fewest} {hardware.name} would do"
        if fewest
        else f"no cut of up to {MOST_GPUS} {hardware.name} would do; use an accelerator with more memory"
    )
    return (
        f"{model.name} under {parallelism} needs {human_bytes(plan.weight_bytes)} of weights and "
        f"{human_bytes(plan.activation_bytes)} of working memory per accelerator, {hardware.name} offers "
        f"{human_bytes(usable)} (leaving no room for one token of KV); {way_out}"
    )


def _fewest_gpus(model: ModelSpec, hardware: HardwareProfile, tokens: int, draft_tokens: int) -> int | None:
    """Fewest accelerators, in powers of two, over tensor-parallel and data-parallel cuts with spread experts."""
    experts = max(layer.ffn.experts for layer in model.layers)
    gpus = 1
    while gpus <= MOST_GPUS:
        ep = gpus if experts and experts % gpus == 0 else 1
        for candidate in (Parallelism(tp=gpus, ep=ep), Parallelism(dp=gpus, ep=ep)):
            try:
                candidate.check(model)
            except ParallelismError:
                continue
            plan = _plan(model, hardware, candidate, tokens, draft_tokens)
            if plan.kv_capacity_bytes > plan.kv_bytes_per_sequence + plan.kv_bytes_per_token:
                return gpus
        gpus *= 2
    return None

"""What fits on one accelerator: weights under the cut, working memory, and room for KV.

Everything is per accelerator and taken at the fullest pipeline stage. The engine fills a share of the device (see
`EngineMemory.share_of`); the rest is for graphs and fragmentation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from hw_profiles.profile import HardwareProfile
from hw_profiles.units import human_bytes
from simulator.model.architecture import F32_BYTES, AttentionSpec, LayerSpec, Linear, ModelSpec, MoeSpec
from simulator.model.engine_memory import OTHER, EngineMemory, engine_memory, outside_bytes
from simulator.model.kv_pages import KvLayout, kv_layout
from simulator.model.limits import TOKENS_PER_STEP
from simulator.model.ops import ACTIVATION_BYTES
from simulator.model.parallelism import MOST_GPUS, Parallelism, ParallelismError
from simulator.model.precision import as_multiplied_on
from simulator.model.sharding import Cut

RESIDUAL_COPIES = 2  # of the residual streams; assumed: a layer's input and output
MOST_SHARE = 0.95  # of a device, as recipes set it at most (vLLM recipes for V4 on H200 and B200)


class DoesNotFitError(ValueError):
    """The model does not fit the cut; says what it needs, what there is, and a way out that works."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one accelerator. Sequences are those of one data-parallel rank."""

    weight_bytes: float
    activation_bytes: float
    outside_bytes: float  # contexts and communication buffers
    kv_capacity_bytes: float
    kv_bytes_per_token: float  # growth of one sequence
    kv_bytes_per_sequence: float  # window and state of one sequence, whatever its length
    page_tokens: int = 1  # by which a sequence grows
    window_bytes_per_token: float = 0.0  # of window layers, while tokens are computed

    def sequence_bytes(self, context: int) -> float:
        """KV of a sequence of `context` tokens (at least 1), in whole pages. [B]"""
        pages = math.ceil(max(context, 1) / self.page_tokens)
        return self.kv_bytes_per_sequence + self.kv_bytes_per_token * pages * self.page_tokens

    def max_sequences(self, context: int) -> int:
        """Sequences of `context` tokens each that fit on a rank."""
        return int(self.kv_capacity_bytes / self.sequence_bytes(context))

    @property
    def holds_a_token(self) -> bool:
        """Whether there is room for the KV of a sequence at all."""
        return self.kv_capacity_bytes >= self.sequence_bytes(1)


@dataclass(frozen=True)
class StepRoom:
    """What memory depends on beside the model and its cut.

    tokens: of a step on one data-parallel rank. sequences: likewise, None where not told. redundant_experts: further
    copies of experts in each layer, over all its ranks. dcp: tensor-parallel ranks over which the tokens of one KV
    head are spread in decode.
    """

    tokens: int = TOKENS_PER_STEP
    sequences: int | None = None
    draft_tokens: int = 0
    redundant_experts: int = 0
    dcp: int = 1


def plan_memory(
    model: ModelSpec,
    hardware: HardwareProfile,
    parallelism: Parallelism,
    max_tokens_per_step: int = TOKENS_PER_STEP,
    draft_tokens: int = 0,
    redundant_experts: int = 0,
    *,
    max_sequences: int | None = None,
    dcp: int = 1,
    engine: EngineMemory | None = None,
) -> MemoryPlan:
    """What is left for KV. engine: that of the hardware's stack, if not given. Raises DoesNotFitError."""
    parallelism.check(model)
    model = as_multiplied_on(model, hardware)
    _check_dcp(model, parallelism, dcp)
    load = StepRoom(max_tokens_per_step, max_sequences, draft_tokens, redundant_experts, dcp)
    engine = engine or engine_memory(hardware.stack)
    plan = _plan(model, hardware, parallelism, load, engine)
    if not plan.holds_a_token:
        raise DoesNotFitError(_refusal(model, hardware, parallelism, plan, load, engine))
    return plan


def _check_dcp(model: ModelSpec, parallelism: Parallelism, dcp: int) -> None:
    """Ranks that hold copies of a KV head may share its tokens: refuse more of them."""
    heads = [attention.kv_heads for attention, _ in model.attentions if attention.ratio]
    copies = min((parallelism.tp // min(parallelism.tp, count) for count in heads), default=1)
    if dcp < 1 or copies % dcp:
        allowed = [n for n in range(1, copies + 1) if copies % n == 0]
        raise ParallelismError(
            f"dcp={dcp} does not divide the {copies} tensor-parallel ranks that hold the same KV head; use one of "
            f"{allowed}"
        )


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


def activation_bytes(
    model: ModelSpec, cut: Cut, tokens: int, engine: EngineMemory = OTHER, sequences: int | None = None
) -> float:
    """Working memory of an engine whose steps have `tokens` rows and `sequences` on each data-parallel rank. [B]

    What is always held; the workspace of the widest experts: rows that a rank's experts receive (uniform routing), wide
    enough for either product, and the second product's input; and the larger of two that are not held at once: a
    layer's projections beside the residual streams, or the logits of the last rows as sampling holds them.
    """
    rows = tokens / cut.parallelism.cp
    layers = [layer for layer, _ in model.kinds]
    streams = max(layer.mixing.streams if layer.mixing else 1 for layer in layers)
    widest = max(rows * _projected(layer, cut) * ACTIVATION_BYTES for layer in layers)
    widest += RESIDUAL_COPIES * rows * streams * model.hidden * ACTIVATION_BYTES
    experts = max(_expert_workspace(layer.ffn, cut, tokens) for layer in layers)
    sampled = min(tokens, sequences or engine.sampled_rows)
    logits = engine.logits_copies * sampled * model.vocab * F32_BYTES
    return engine.resident_bytes + experts + max(widest, logits)


def _projected(layer: LayerSpec, cut: Cut) -> float:
    """Elements of a row that a layer holds at once: of all attention projections, or of the dense part of its FFN."""
    attention = sum(x.outputs * cut.linear_share(x, layer.attention) for x in layer.attention.linears)
    return max(attention, sum(x.outputs * cut.linear_share(x) for x in layer.ffn.linears))


def _expert_workspace(ffn: MoeSpec, cut: Cut, tokens: int) -> float:
    if not ffn.experts:
        return 0.0
    choices = tokens * cut.parallelism.dp * ffn.experts_per_token / cut.parallelism.ep
    inner = ffn.expert_intermediate / cut.expert_tp
    return choices * (max((ffn.matrices - 1) * inner, ffn.expert_hidden) + inner) * ACTIVATION_BYTES


def _kv(model: ModelSpec, cut: Cut, engine: EngineMemory, load: StepRoom) -> KvLayout:
    """On one accelerator of the fullest stage."""
    drafts = load.draft_tokens > 0
    stage = cut.layers_per_stage(len(model.layers)) / len(model.layers)
    main = kv_layout(model.kinds, cut, engine, drafts, load.dcp)
    growth, fixed = main.bytes_per_token * stage, main.bytes_per_sequence * stage
    windows = main.window_bytes_per_token * stage
    if drafts and model.draft:
        own = kv_layout([(layer, 1) for layer in model.draft.layers], cut, engine, drafts, load.dcp)
        growth, fixed = growth + own.bytes_per_token, fixed + own.bytes_per_sequence
        windows += own.window_bytes_per_token
    return KvLayout(growth, fixed, main.page_tokens, windows)


def _plan(
    model: ModelSpec, hardware: HardwareProfile, parallelism: Parallelism, load: StepRoom, engine: EngineMemory
) -> MemoryPlan:
    cut = Cut.of(parallelism, hardware)
    weights = weight_bytes_per_gpu(model, cut, load.draft_tokens > 0)
    if load.redundant_experts:
        copied = sum(layer.ffn.expert_bytes * count for layer, count in model.kinds if layer.ffn.experts)
        weights += copied * load.redundant_experts / (parallelism.stage_size * parallelism.pp)
    working = activation_bytes(model, cut, load.tokens, engine, load.sequences)
    outside = outside_bytes(engine, parallelism)
    room = _room(hardware, engine, weights, working, outside)
    kv = _kv(model, cut, engine, load)
    return MemoryPlan(
        weights,
        working,
        outside,
        room,
        kv.bytes_per_token,
        kv.bytes_per_sequence,
        kv.page_tokens,
        kv.window_bytes_per_token,
    )


def _room(hardware: HardwareProfile, engine: EngineMemory, weights: float, working: float, outside: float) -> float:
    """Memory for KV. [B]"""
    share, device = hardware.efficiency.memory_utilisation, hardware.usable_memory_bytes
    left = device - outside - weights - working
    if engine.share_of == "total":
        return share * device - outside - weights - working
    if engine.share_of == "before_loading":
        return min(left, share * (device - outside) - weights)
    return share * left


def _refusal(
    model: ModelSpec,
    hardware: HardwareProfile,
    parallelism: Parallelism,
    plan: MemoryPlan,
    load: StepRoom,
    engine: EngineMemory,
) -> str:
    share = hardware.efficiency.memory_utilisation
    needs = (
        f"{model.name} under {parallelism} needs {human_bytes(plan.weight_bytes)} of weights, "
        f"{human_bytes(plan.activation_bytes)} of working memory and {human_bytes(plan.outside_bytes)} of buffers per "
        f"accelerator; {hardware.name} offers {human_bytes(hardware.usable_memory_bytes)}, of which the engine takes "
        f"{share:g}, and no room is left for one token of KV"
    )
    return f"{needs}; {_way_out(model, hardware, parallelism, load, engine)}"


def _way_out(
    model: ModelSpec, hardware: HardwareProfile, parallelism: Parallelism, load: StepRoom, engine: EngineMemory
) -> str:
    """A change after which the plan holds."""
    wider = hardware.with_memory_share(MOST_SHARE)
    mean = hardware.efficiency.memory_utilisation < MOST_SHARE
    if mean and _plan(model, wider, parallelism, load, engine).holds_a_token:
        return f"memory_share = {MOST_SHARE:g} would do"
    fewest = _fewest_gpus(model, hardware, load, engine)
    if fewest is not None:
        return f"at least {fewest.gpus} {hardware.name} would do, as {fewest}"
    return f"no cut of up to {MOST_GPUS} {hardware.name} would do; use an accelerator with more memory"


def _fewest_gpus(
    model: ModelSpec, hardware: HardwareProfile, load: StepRoom, engine: EngineMemory
) -> Parallelism | None:
    """Cut of the fewest accelerators that holds the model, in powers of two, over tensor-parallel and data-parallel
    cuts with spread experts."""
    experts = max(layer.ffn.experts for layer, _ in model.kinds)
    gpus = 1
    while gpus <= MOST_GPUS:
        ep = gpus if experts and experts % gpus == 0 else 1
        shapes = (Parallelism(tp=gpus, ep=ep), Parallelism(tp=gpus), Parallelism(dp=gpus, ep=ep))
        for candidate in dict.fromkeys(shapes):
            try:
                candidate.check(model)
            except ParallelismError:
                continue
            if _plan(model, hardware, candidate, replace(load, dcp=1), engine).holds_a_token:
                return candidate
        gpus *= 2
    return None

"""Parts that several families share: grouped-query attention, feed-forward blocks, whole models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from simulator.model.architecture import (
    ABSENT,
    BYTES_PER_PARAM,
    F32_BYTES,
    AttentionSpec,
    DraftHead,
    LayerSpec,
    Linear,
    ModelSpec,
    MoeSpec,
    Shard,
    TensorKind,
    WeightDtype,
)
from simulator.model.families.kv_layout import check_index_dtype, check_kv_dtype, gqa_entry_bytes
from simulator.model.families.reader import ConfigReader


@dataclass(frozen=True)
class Context:
    """What every family builder is given: the configuration, its plain type and the asked KV types.

    checkpoint_kv: KV type that the checkpoint has scales for.
    """

    reader: ConfigReader
    name: str
    plain: WeightDtype
    kv_dtype: str | None = None  # None: the family's usual one
    index_dtype: str | None = None
    notes: list[str] = field(default_factory=list)  # assumptions found on the way
    checkpoint_kv: WeightDtype | None = None

    @property
    def plain_bytes(self) -> float:
        return BYTES_PER_PARAM[self.plain]

    def kv(self, default: WeightDtype) -> WeightDtype:
        """Storage of the KV cache: as asked, or the family's usual one, which is then noted as assumed."""
        if self.kv_dtype is not None:
            return check_kv_dtype(self.kv_dtype)
        if self.checkpoint_kv is not None:
            self.note(f"KV cache stored in {self.checkpoint_kv}, as the checkpoint's quantisation says")
            return self.checkpoint_kv
        self.note(f"KV cache stored in {default} (a serving choice, not in the configuration)")
        return default

    def index(self, default: WeightDtype) -> WeightDtype:
        """Storage and score precision of index keys, in the same manner."""
        if self.index_dtype is not None:
            return check_index_dtype(self.index_dtype)
        self.note(f"index keys stored and scored in {default} (a serving choice, not in the configuration)")
        return default

    def note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)

    def linear(
        self,
        tensor: TensorKind | None,
        name: str,
        inputs: int,
        outputs: int,
        shard: Shard = "replicated",
        bias: bool = False,
        rows_per_token: int = 1,
        groups: int = 1,
    ) -> Linear:
        """A projection, in the plain type so far; tensor: what a checkpoint may quantise it as, None: never."""
        return Linear(
            name,
            inputs,
            outputs,
            self.plain,
            groups=groups,
            shard=shard,
            bias=bias,
            rows_per_token=rows_per_token,
            tensor=tensor,
        )


def gqa_attention(
    ctx: Context,
    *,
    head_dim: int,
    window: int | None = None,
    qkv_bias: bool = False,
    out_bias: bool = False,
    norm_params: int = 0,
    sinks: bool = False,
    output_gate: bool = False,
    head_gate: bool = False,
    v_dim: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    values_are_keys: bool = False,
) -> AttentionSpec:
    """Grouped-query attention, full or with a sliding window. norm_params: of q and k norms.

    output_gate, head_gate: before the output projection, of each element or each head. v_dim: width of values where it
    is not that of keys. heads, kv_heads: where they are not the configuration's. values_are_keys: one projection makes
    both, which are stored one by one all the same (only keys are rotated).
    """
    reader = ctx.reader
    hidden = reader.integer("hidden_size")
    heads = reader.integer("num_attention_heads") if heads is None else heads
    kv_heads = reader.integer("num_key_value_heads", default=heads) if kv_heads is None else kv_heads
    v_dim = head_dim if v_dim is None else v_dim
    if heads % kv_heads:
        raise reader.fail(f"num_key_value_heads={kv_heads} does not divide num_attention_heads={heads}")
    dtype = ctx.kv("bf16")
    entry = gqa_entry_bytes(kv_heads, head_dim, v_dim, dtype)
    other = norm_params + (heads if sinks else 0)
    gate: tuple[Linear, ...] = ()
    if output_gate or head_gate:
        gate = (ctx.linear("attention", "gate_proj", hidden, heads * (v_dim if output_gate else 1), "column"),)
    values = (ctx.linear("attention", "v_proj", hidden, kv_heads * v_dim, "column", qkv_bias),)
    return AttentionSpec(
        kind="gqa" if window is None else "swa",
        heads=heads,
        kv_heads=kv_heads,
        qk_dim=head_dim,
        v_dim=v_dim,
        prefill_qk_dim=head_dim,
        prefill_v_dim=v_dim,
        window=window,
        ratio=1 if window is None else 0,
        entry_bytes=entry if window is None else 0.0,
        window_entry_bytes=0.0 if window is None else entry,
        state_bytes=0.0,
        linears=(
            ctx.linear("attention", "q_proj", hidden, heads * head_dim, "column", qkv_bias),
            ctx.linear("attention", "k_proj", hidden, kv_heads * head_dim, "column", qkv_bias),
            *(() if values_are_keys else values),
            *gate,
            ctx.linear("attention", "o_proj", heads * v_dim, hidden, "row", out_bias),
        ),
        other_params=other,
        other_param_bytes=other * ctx.plain_bytes,
        kv_dtype=dtype,
    )


_STATE_BYTES = F32_BYTES  # of one element of the recurrent state [B]
# Per head and token, in units of key x value width: decay 1, k-S product 2, rank-one update 2, q-S product 2. [FLOP]
_STATE_FLOPS = 7.0
# Kernels of prompts take chunks of C tokens (flash-linear-attention). For each token and head of key width K and value
# width V the state meets the chunk in three products and keys, values and queries of the chunk meet each other in five:
# 6 K V + 2 C (3 K + 2 V) FLOP.
_CHUNK = 64  # C [tokens]


def delta_attention(
    ctx: Context,
    kind: str,
    *,
    heads: int,
    key_heads: int,
    key_dim: int,
    value_dim: int,
    kernel: int,
    linears: tuple[Linear, ...],
    other_params: int,
) -> AttentionSpec:
    """Linear attention by the delta rule: one key_dim x value_dim state per (value) head, whatever the context, behind
    a depth-wise convolution over `kernel` tokens of queries, keys and values. other_params: beside that convolution."""
    width = 2 * key_heads * key_dim + heads * value_dim
    other = width * kernel + other_params
    return AttentionSpec(
        kind=kind,
        heads=heads,
        kv_heads=key_heads,
        qk_dim=key_dim,
        v_dim=value_dim,
        prefill_qk_dim=key_dim,
        prefill_v_dim=value_dim,
        window=0,
        ratio=0,
        entry_bytes=0.0,
        window_entry_bytes=0.0,
        state_bytes=heads * key_dim * value_dim * _STATE_BYTES + width * (kernel - 1) * ctx.plain_bytes,
        linears=linears,
        other_params=other,
        other_param_bytes=other * ctx.plain_bytes,
        state_flops_per_token=_STATE_FLOPS * heads * key_dim * value_dim,
        chunk_flops_per_token=heads * (6 * key_dim * value_dim + 2 * _CHUNK * (3 * key_dim + 2 * value_dim)),
        convolution_width=width,
    )


def no_attention(ctx: Context) -> AttentionSpec:
    """Of a layer that is a feed-forward alone."""
    return AttentionSpec(
        kind=ABSENT,
        heads=0,
        kv_heads=1,
        qk_dim=0,
        v_dim=0,
        prefill_qk_dim=0,
        prefill_v_dim=0,
        window=0,
        ratio=0,
        entry_bytes=0.0,
        window_entry_bytes=0.0,
        state_bytes=0.0,
        linears=(),
        other_params=0,
        other_param_bytes=0.0,
    )


def no_ffn(ctx: Context) -> MoeSpec:
    """Of a layer that mixes tokens alone."""
    return MoeSpec(0, 0, 0, ctx.reader.integer("hidden_size"), ctx.plain, ctx.plain, routing="none")


def gated_ffn(
    ctx: Context, tensor: TensorKind, prefix: str, hidden: int, width: int, bias: bool = False, gated: bool = True
) -> tuple[Linear, Linear]:
    """Gate and up projection as one matrix, or the up projection alone, and down projection."""
    first = ("gate_up", 2 * width) if gated else ("up_alone", width)
    return (
        ctx.linear(tensor, f"{prefix}_{first[0]}", hidden, first[1], "column", bias),
        ctx.linear(tensor, f"{prefix}_down", width, hidden, "row", bias),
    )


def dense_ffn(ctx: Context, width: int, bias: bool = False, gated: bool = True) -> MoeSpec:
    """A feed-forward without routed experts."""
    hidden = ctx.reader.integer("hidden_size")
    return MoeSpec(
        experts=0,
        experts_per_token=0,
        expert_intermediate=0,
        expert_hidden=hidden,
        expert_dtype=ctx.plain,
        expert_compute=ctx.plain,
        routing="none",
        linears=gated_ffn(ctx, "dense_ffn", "dense", hidden, width, bias, gated),
    )


def moe_ffn(
    ctx: Context,
    *,
    experts: int,
    experts_per_token: int,
    width: int,
    shared_width: int = 0,
    correction_bias: bool = False,
    router_bias: bool = False,
    expert_bias: bool = False,
    gated: bool = True,
) -> MoeSpec:
    """Routed experts with scored routing and, if shared_width, a shared expert of that width."""
    hidden = ctx.reader.integer("hidden_size")
    if experts_per_token > experts:
        raise ctx.reader.fail(f"{experts_per_token} experts per token exceed {experts} experts")
    linears: tuple[Linear, ...] = (ctx.linear(None, "router", hidden, experts, bias=router_bias),)
    if shared_width:
        linears += gated_ffn(ctx, "shared_expert", "shared", hidden, shared_width, gated=gated)
    correction = experts if correction_bias else 0
    return MoeSpec(
        experts=experts,
        experts_per_token=experts_per_token,
        expert_intermediate=width,
        expert_hidden=hidden,
        expert_dtype=ctx.plain,
        expert_compute=ctx.plain,
        routing="scored",
        matrices=3 if gated else 2,
        expert_bias=expert_bias,
        linears=linears,
        other_params=correction,
        other_param_bytes=correction * F32_BYTES,
    )


def plain_layer(ctx: Context, attention: AttentionSpec, ffn: MoeSpec) -> LayerSpec:
    """A layer with one norm before attention and one before the feed-forward."""
    norms = 2 * ctx.reader.integer("hidden_size")
    return LayerSpec(attention, ffn, None, norms, norms * ctx.plain_bytes)


def has_draft(ctx: Context, key: str = "num_nextn_predict_layers") -> bool:
    """Whether the configuration has an MTP module; of more than one no family here is known."""
    drafts = ctx.reader.integer(key, default=0, minimum=0)
    if drafts > 1:
        raise ctx.reader.fail(f"key {key!r} is {drafts}; only 0 and 1 are supported")
    return drafts == 1


def next_token_draft(ctx: Context, layer: LayerSpec) -> DraftHead:
    """DeepSeek-V3-type MTP module: two norms, a 2h -> h projection, one layer and its own final norm."""
    hidden = ctx.reader.integer("hidden_size")
    norms = 3 * hidden
    return DraftHead(
        layers=(layer,),
        linears=(ctx.linear(None, "eh_proj", 2 * hidden, hidden),),
        other_params=norms,
        other_param_bytes=norms * ctx.plain_bytes,
    )


def whole_model(
    ctx: Context,
    family: str,
    layers: Sequence[LayerSpec],
    draft: DraftHead | None = None,
    extra_params: int = 0,
    extra_bytes: float = 0.0,
    norm_bytes: float | None = None,
    tied: bool = False,
) -> ModelSpec:
    """Layers between an embedding and an LM head, with a final norm.

    extra_*: beside that norm. tied: where the configuration does not say.
    """
    reader = ctx.reader
    hidden, vocab = reader.integer("hidden_size"), reader.integer("vocab_size")
    norm_bytes = ctx.plain_bytes if norm_bytes is None else norm_bytes
    positions = reader.first_of("max_position_embeddings", "model_max_length")  # Kimi Linear has the second
    return ModelSpec(
        name=ctx.name,
        family=family,
        hidden=hidden,
        vocab=vocab,
        max_positions=reader.integer(positions),
        layers=tuple(layers),
        draft=draft,
        embedding=ctx.linear(None, "embedding", vocab, hidden),
        lm_head=ctx.linear(None, "lm_head", hidden, vocab, "column"),
        tied_embedding=reader.flag("tie_word_embeddings", tied),
        other_params=hidden + extra_params,
        other_param_bytes=hidden * norm_bytes + extra_bytes,
        source=reader.text("_source", reader.where),
        published_total=reader.text("_published_total", ""),
        published_active=reader.text("_published_active", ""),
        assumptions=tuple(ctx.notes),
    )

"""Qwen3-Next and Qwen3.5-MoE: three Gated DeltaNet layers to one of gated grouped-query attention, all routed.

Sources: transformers `qwen3_next`, `qwen3_5_moe`; the MTP layer is that of SGLang's and vLLM's `qwen3_next_mtp`.
"""

from __future__ import annotations

from dataclasses import replace

from simulator.model.architecture import AttentionSpec, ModelSpec, MoeSpec
from simulator.model.families.blocks import (
    Context,
    delta_attention,
    dense_ffn,
    gqa_attention,
    has_draft,
    moe_ffn,
    next_token_draft,
    plain_layer,
    whole_model,
)

_KINDS = ("linear_attention", "full_attention")


def _gated_delta_net(ctx: Context) -> AttentionSpec:
    """Several value heads to each key head; one decay and one step size per value head."""
    reader = ctx.reader
    hidden = reader.integer("hidden_size")
    heads, key_heads = reader.integer("linear_num_value_heads"), reader.integer("linear_num_key_heads")
    key_dim, value_dim = reader.integer("linear_key_head_dim"), reader.integer("linear_value_head_dim")
    if heads % key_heads:
        raise reader.fail(f"linear_num_key_heads={key_heads} does not divide linear_num_value_heads={heads}")
    width = heads * value_dim
    return delta_attention(
        ctx,
        "gdn",
        heads=heads,
        key_heads=key_heads,
        key_dim=key_dim,
        value_dim=value_dim,
        kernel=reader.integer("linear_conv_kernel_dim", default=4),
        linears=(
            ctx.linear("attention", "qkv_proj", hidden, 2 * key_heads * key_dim + width, "column"),
            ctx.linear("attention", "gate_proj", hidden, width, "column"),
            ctx.linear(None, "beta_decay_proj", hidden, 2 * heads, "column"),
            ctx.linear("attention", "o_proj", width, hidden, "row"),
        ),
        other_params=2 * heads + value_dim,  # decay offset and rate, output norm
    )


def _experts(ctx: Context) -> MoeSpec:
    """Routed experts and one shared expert behind a gate of its own."""
    reader = ctx.reader
    shared = reader.integer("shared_expert_intermediate_size", default=0, minimum=0)
    ffn = moe_ffn(
        ctx,
        experts=reader.integer("num_experts"),
        experts_per_token=reader.integer("num_experts_per_tok"),
        width=reader.integer("moe_intermediate_size"),
        shared_width=shared,
    )
    if not shared:
        return ffn
    return replace(ffn, linears=(*ffn.linears, ctx.linear(None, "shared_gate", reader.integer("hidden_size"), 1)))


def build(ctx: Context, family: str) -> ModelSpec:
    """Model from `layer_types`, or from `full_attention_interval` where the configuration has no list."""
    reader = ctx.reader
    count = reader.integer("num_hidden_layers")
    if reader.has("layer_types"):
        types = reader.choices("layer_types", _KINDS, least=count)[:count]
    else:
        every = reader.integer("full_attention_interval", default=4)
        types = [_KINDS[(i + 1) % every == 0] for i in range(count)]
    head_dim = reader.integer("head_dim")
    bias = reader.flag("attention_bias", False)
    full = gqa_attention(
        ctx, head_dim=head_dim, qkv_bias=bias, out_bias=bias, norm_params=2 * head_dim,
        output_gate=reader.flag("attn_output_gate", True),
    )  # fmt: skip
    attention = {"full_attention": full, "linear_attention": _gated_delta_net(ctx)}
    routed = family != "qwen3_5_text"
    dense_layers = set(reader.numbers("mlp_only_layers")) if routed else set(range(count))
    experts = _experts(ctx) if routed else dense_ffn(ctx, reader.integer("intermediate_size"))
    dense = dense_ffn(ctx, reader.integer("intermediate_size")) if dense_layers else experts
    layers = [
        plain_layer(ctx, attention[kind], dense if i in dense_layers else experts) for i, kind in enumerate(types)
    ]
    drafts = has_draft(ctx, "mtp_num_hidden_layers")
    return whole_model(ctx, family, layers, next_token_draft(ctx, plain_layer(ctx, full, experts)) if drafts else None)

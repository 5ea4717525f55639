"""Kimi Linear and Kimi K3: recurrent layers (KDA) between MLA layers; K3 adds gates and a latent MoE.

Sources: transformers `kimi_linear` for the common part. K3's own parts (full-rank gate, MLA output gate, experts
at a latent width) are read from its configuration; together they reproduce its published 2.78T.
"""

from __future__ import annotations

from dataclasses import replace

from simulator.model.architecture import AttentionSpec, Linear, ModelSpec, MoeSpec
from simulator.model.families.blocks import (
    Context,
    delta_attention,
    dense_ffn,
    moe_ffn,
    plain_layer,
    whole_model,
)
from simulator.model.families.mla import latent_attention


def _delta_attention(ctx: Context) -> AttentionSpec:
    """Kimi Delta Attention: one head_dim x head_dim state per head, whatever the context."""
    hidden = ctx.reader.integer("hidden_size")
    linear = ctx.reader.section("linear_attn_config")
    heads, head_dim = linear.integer("num_heads"), linear.integer("head_dim")
    width = heads * head_dim
    gate: tuple[Linear, ...]
    if linear.flag("use_full_rank_gate", False):
        gate = (ctx.linear("attention", "gate_proj", hidden, width, "column"),)
    else:
        gate = (
            ctx.linear("attention", "gate_a_proj", hidden, head_dim),
            ctx.linear("attention", "gate_b_proj", head_dim, width, "column"),
        )
    return delta_attention(
        ctx,
        "kda",
        heads=heads,
        key_heads=heads,
        key_dim=head_dim,
        value_dim=head_dim,
        kernel=linear.integer("short_conv_kernel_size", default=4),
        linears=(
            ctx.linear("attention", "q_proj", hidden, width, "column"),
            ctx.linear("attention", "k_proj", hidden, width, "column"),
            ctx.linear("attention", "v_proj", hidden, width, "column"),
            ctx.linear("attention", "forget_a_proj", hidden, head_dim),
            ctx.linear("attention", "forget_b_proj", head_dim, width, "column"),
            ctx.linear("attention", "beta_proj", hidden, heads, "column"),
            *gate,
            ctx.linear("attention", "o_proj", width, hidden, "row"),
        ),
        other_params=width + heads + head_dim,  # decay offset and rate, output norm
    )


def _experts(ctx: Context) -> MoeSpec:
    """Routed experts, at `routed_expert_hidden_size` where given: one projection down to it and one back."""
    reader = ctx.reader
    hidden, width = reader.integer("hidden_size"), reader.integer("moe_intermediate_size")
    ffn = moe_ffn(
        ctx,
        experts=reader.integer("num_experts"),
        experts_per_token=reader.integer("num_experts_per_token"),
        width=width,
        shared_width=width * reader.integer("num_shared_experts", default=0, minimum=0),
        correction_bias=True,
    )
    latent = reader.integer("routed_expert_hidden_size", default=hidden)
    if latent == hidden:
        return ffn
    norm = latent if reader.flag("latent_moe_use_norm", False) else 0
    return replace(
        ffn,
        expert_hidden=latent,
        linears=(
            *ffn.linears,
            ctx.linear("shared_expert", "latent_down", hidden, latent),
            ctx.linear("shared_expert", "latent_up", latent, hidden),
        ),
        other_params=ffn.other_params + norm,
        other_param_bytes=ffn.other_param_bytes + norm * ctx.plain_bytes,
    )


def build(ctx: Context, family: str) -> ModelSpec:
    """Model from the layer lists of `linear_attn_config` (counted from 1)."""
    reader = ctx.reader
    count = reader.integer("num_hidden_layers")
    section = reader.section("linear_attn_config")
    full, recurrent = set(section.numbers("full_attn_layers")), set(section.numbers("kda_layers"))
    if full & recurrent or full | recurrent != set(range(1, count + 1)):
        raise section.fail(f"full_attn_layers and kda_layers do not share out the layers 1 to {count}")
    if reader.has("attn_res_block_size"):
        ctx.note("weights of the residual attention across blocks are left out (shape not published; small)")
    first = reader.integer("first_k_dense_replace", default=0, minimum=0)
    experts = _experts(ctx)
    dense = dense_ffn(ctx, reader.integer("intermediate_size")) if first else experts
    latent = latent_attention(ctx, None, output_gate=reader.flag("mla_use_output_gate", False))
    delta = _delta_attention(ctx)
    return whole_model(
        ctx,
        family,
        [plain_layer(ctx, latent if i + 1 in full else delta, dense if i < first else experts) for i in range(count)],
    )

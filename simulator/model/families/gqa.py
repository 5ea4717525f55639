"""Families of grouped-query attention: Llama-type dense, Mixtral, Qwen3-MoE, GLM-4.5, MiniMax-M2 and M3, gpt-oss.

Sources: transformers `llama`, `qwen2`, `qwen3`, `mistral`, `mixtral`, `qwen3_moe`, `glm4_moe`, `minimax_m2`,
`minimax_m3_vl`, `gpt_oss`.
"""

from __future__ import annotations

from dataclasses import replace

from simulator.model.architecture import AttentionSpec, Indexer, ModelSpec
from simulator.model.families.blocks import (
    Context,
    dense_ffn,
    gqa_attention,
    has_draft,
    moe_ffn,
    next_token_draft,
    plain_layer,
    whole_model,
)
from simulator.model.families.grouped import head_dim_of
from simulator.model.families.kv_layout import index_key_bytes
from simulator.model.families.reader import ConfigReader


def _window(reader: ConfigReader) -> int | None:
    """Sliding window of every layer, unless `use_sliding_window` switches it off."""
    if not reader.has("sliding_window") or not reader.flag("use_sliding_window", True):
        return None
    return reader.integer("sliding_window")


def build_dense(ctx: Context, family: str) -> ModelSpec:
    """Llama, Mistral, Qwen2 and Qwen3."""
    reader = ctx.reader
    head_dim = head_dim_of(reader)
    bias = reader.flag("attention_bias", False)
    window = None
    if family == "mistral":
        window = _window(reader)
    elif reader.flag("use_sliding_window", False):
        raise reader.fail("use_sliding_window=true is not supported for this family; set it to false")
    attention = gqa_attention(
        ctx,
        head_dim=head_dim,
        window=window,
        qkv_bias=bias or family == "qwen2",
        out_bias=bias,
        norm_params=2 * head_dim if family == "qwen3" else 0,
    )
    ffn = dense_ffn(ctx, reader.integer("intermediate_size"), reader.flag("mlp_bias", False))
    layer = plain_layer(ctx, attention, ffn)
    return whole_model(ctx, family, [layer] * reader.integer("num_hidden_layers"))


def build_mixtral(ctx: Context, family: str) -> ModelSpec:
    """Mixtral: every layer routed."""
    reader = ctx.reader
    ffn = moe_ffn(
        ctx,
        experts=reader.integer("num_local_experts"),
        experts_per_token=reader.integer("num_experts_per_tok"),
        width=reader.integer("intermediate_size"),
    )
    attention = gqa_attention(ctx, head_dim=head_dim_of(reader), window=_window(reader))
    return whole_model(ctx, family, [plain_layer(ctx, attention, ffn)] * reader.integer("num_hidden_layers"))


def build_qwen3_moe(ctx: Context, family: str) -> ModelSpec:
    """Qwen3-MoE: per-head q and k norms; dense layers where the configuration says so."""
    reader = ctx.reader
    if reader.flag("use_sliding_window", False):
        raise reader.fail("use_sliding_window=true is not supported for this family; set it to false")
    count = reader.integer("num_hidden_layers")
    head_dim = head_dim_of(reader)
    bias = reader.flag("attention_bias", False)
    attention = gqa_attention(ctx, head_dim=head_dim, qkv_bias=bias, out_bias=bias, norm_params=2 * head_dim)
    routed = moe_ffn(
        ctx,
        experts=reader.integer(reader.first_of("num_experts", "num_local_experts")),
        experts_per_token=reader.integer("num_experts_per_tok"),
        width=reader.integer("moe_intermediate_size"),
    )
    dense_layers = set(reader.numbers("mlp_only_layers"))
    every = reader.integer("decoder_sparse_step", default=1)
    sparse = [i not in dense_layers and (i + 1) % every == 0 for i in range(count)]
    dense = routed if all(sparse) else dense_ffn(ctx, reader.integer("intermediate_size"))
    return whole_model(
        ctx, family, [plain_layer(ctx, attention, routed if is_sparse else dense) for is_sparse in sparse]
    )


def build_glm4_moe(ctx: Context, family: str) -> ModelSpec:
    """GLM-4.5, 4.6 and Air: dense layers first, one shared expert, one MTP layer."""
    reader = ctx.reader
    head_dim = head_dim_of(reader)
    attention = gqa_attention(
        ctx,
        head_dim=head_dim,
        qkv_bias=reader.flag("attention_bias", False),
        norm_params=2 * head_dim if reader.flag("use_qk_norm", False) else 0,
    )
    width = reader.integer("moe_intermediate_size")
    routed = moe_ffn(
        ctx,
        experts=reader.integer("n_routed_experts"),
        experts_per_token=reader.integer("num_experts_per_tok"),
        width=width,
        shared_width=width * reader.integer("n_shared_experts", default=0, minimum=0),
        correction_bias=True,
    )
    first = reader.integer("first_k_dense_replace", default=0, minimum=0)
    dense = dense_ffn(ctx, reader.integer("intermediate_size")) if first else routed
    layers = [
        plain_layer(ctx, attention, dense if i < first else routed) for i in range(reader.integer("num_hidden_layers"))
    ]
    draft = next_token_draft(ctx, plain_layer(ctx, attention, routed)) if has_draft(ctx) else None
    return whole_model(ctx, family, layers, draft)


def build_minimax_m2(ctx: Context, family: str) -> ModelSpec:
    """MiniMax-M2 and M2.5: q and k norms over all heads together, no shared expert."""
    reader = ctx.reader
    head_dim = head_dim_of(reader)
    width_q = reader.integer("num_attention_heads") * head_dim
    width_k = reader.integer("num_key_value_heads") * head_dim
    attention = gqa_attention(
        ctx, head_dim=head_dim, norm_params=width_q + width_k if reader.flag("use_qk_norm", True) else 0
    )
    ffn = moe_ffn(
        ctx,
        experts=reader.integer("num_local_experts"),
        experts_per_token=reader.integer("num_experts_per_tok"),
        width=reader.integer("intermediate_size"),
        shared_width=reader.integer("shared_intermediate_size", default=0, minimum=0),
        correction_bias=reader.flag("use_routing_bias", True),
    )
    if reader.flag("use_mtp", False):
        ctx.note("the MTP modules that the configuration names are left out: their weights are not published")
    return whole_model(ctx, family, [plain_layer(ctx, attention, ffn)] * reader.integer("num_hidden_layers"))


def build_minimax_m3(ctx: Context, family: str) -> ModelSpec:
    """MiniMax-M3: dense layers first, then routed ones whose attention reads blocks of tokens that an indexer picks."""
    reader = ctx.reader
    count = reader.integer("num_hidden_layers")
    sparse = reader.section("sparse_attention_config")
    head_dim = head_dim_of(reader)
    full = gqa_attention(ctx, head_dim=head_dim, norm_params=2 * head_dim if reader.flag("use_qk_norm", True) else 0)
    chosen = _block_sparse(ctx, sparse, full) if sparse.flag("use_sparse_attention", True) else full
    routed = moe_ffn(
        ctx,
        experts=reader.integer("num_local_experts"),
        experts_per_token=reader.integer("num_experts_per_tok"),
        width=reader.integer("intermediate_size"),
        shared_width=reader.integer("shared_intermediate_size", default=0, minimum=0),
        correction_bias=reader.flag("use_routing_bias", True),
    )
    dense = dense_ffn(ctx, reader.integer("dense_intermediate_size"))
    chooses = sparse.choices("sparse_attention_freq", (0, 1), least=count)
    routes = reader.choices("moe_layer_freq", (0, 1), least=count)
    layers = [plain_layer(ctx, chosen if chooses[i] else full, routed if routes[i] else dense) for i in range(count)]
    ctx.note("the MTP modules that the configuration names are left out: no checkpoint lists their weights")
    return whole_model(ctx, family, layers)


def _block_sparse(ctx: Context, sparse: ConfigReader, full: AttentionSpec) -> AttentionSpec:
    """Grouped heads over the best blocks of tokens: an index head for each KV head, one index key a token.

    Every KV head picks its own blocks, whose tokens are as many as a selection of that size.
    """
    heads, head_dim = sparse.integer("sparse_num_index_heads"), sparse.integer("sparse_index_dim")
    hidden = ctx.reader.integer("hidden_size")
    dtype = ctx.index("bf16")
    topk = sparse.integer("sparse_topk_blocks") * sparse.integer("sparse_block_size")
    ctx.note("blocks are chosen at the price of as many single tokens")
    norms = 2 * head_dim
    return replace(
        full,
        kind="msa",
        indexer=Indexer(heads, head_dim, topk, index_key_bytes(head_dim, dtype), dtype),
        linears=(
            *full.linears,
            ctx.linear("attention", "indexer_wq", hidden, heads * head_dim),
            ctx.linear("attention", "indexer_wk", hidden, head_dim),
        ),
        other_params=full.other_params + norms,
        other_param_bytes=full.other_param_bytes + norms * ctx.plain_bytes,
    )


def build_gpt_oss(ctx: Context, family: str) -> ModelSpec:
    """gpt-oss: windowed and full layers by turns, attention sinks, biases everywhere."""
    reader = ctx.reader
    count = reader.integer("num_hidden_layers")
    types = reader.choices("layer_types", ("sliding_attention", "full_attention"), least=count)[:count]
    bias = reader.flag("attention_bias", True)
    attention = {
        kind: gqa_attention(ctx, head_dim=head_dim_of(reader), window=window, qkv_bias=bias, out_bias=bias, sinks=True)
        for kind, window in (
            ("sliding_attention", reader.integer("sliding_window")),
            ("full_attention", None),
        )
    }
    ffn = moe_ffn(
        ctx,
        experts=reader.integer("num_local_experts"),
        experts_per_token=reader.integer("num_experts_per_tok"),
        width=reader.integer("intermediate_size"),
        router_bias=True,
        expert_bias=True,
    )
    return whole_model(ctx, family, [plain_layer(ctx, attention[kind], ffn) for kind in types])

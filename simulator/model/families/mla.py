"""DeepSeek V2, V3, R1, V3.2, Kimi K2 and GLM-5: latent attention (MLA), some with an indexer (DSA)."""

from __future__ import annotations

from dataclasses import replace

from simulator.model.architecture import F32_BYTES, AttentionSpec, Indexer, LayerSpec, ModelSpec, MoeSpec
from simulator.model.families.blocks import (
    Context,
    dense_ffn,
    has_draft,
    moe_ffn,
    next_token_draft,
    plain_layer,
    whole_model,
)
from simulator.model.families.kv_layout import index_key_bytes, mla_entry_bytes


def latent_attention(ctx: Context, indexer: Indexer | None, output_gate: bool = False) -> AttentionSpec:
    """MLA: one latent of kv_lora_rank + rope per token for all heads.

    Decode runs absorbed (scores over latent + rope, values of latent width); prefill decompressed.
    A layer that takes another layer's selection has no indexer weights of its own.
    """
    reader = ctx.reader
    hidden = reader.integer("hidden_size")
    heads = reader.integer("num_attention_heads")
    nope, rope = reader.integer("qk_nope_head_dim"), reader.integer("qk_rope_head_dim")
    v_dim, latent = reader.integer("v_head_dim"), reader.integer("kv_lora_rank")
    # DeepSeek-V2-Lite has no low-rank query; its config.json says null.
    q_rank = reader.integer("q_lora_rank") if reader.has("q_lora_rank") else None
    bias = reader.flag("attention_bias", False)
    dtype = ctx.kv("bf16" if indexer is None else "fp8")

    linears = [ctx.linear("attention", "kv_a_proj", hidden, latent + rope, bias=bias)]
    if q_rank is None:
        linears.append(ctx.linear("attention", "q_proj", hidden, heads * (nope + rope), "column"))
    else:
        linears += [
            ctx.linear("attention", "q_a_proj", hidden, q_rank, bias=bias),
            ctx.linear("attention", "q_b_proj", q_rank, heads * (nope + rope), "column"),
        ]
    linears += [
        ctx.linear("attention", "kv_b_proj", latent, heads * (nope + v_dim), "column"),
        ctx.linear("attention", "o_proj", heads * v_dim, hidden, "row", bias),
    ]
    if output_gate:
        linears.append(ctx.linear("attention", "gate_proj", hidden, heads * v_dim, "column"))
    other = latent + (q_rank or 0)
    if indexer is not None and indexer.shares_layer is None:
        if q_rank is None:
            raise reader.fail("key 'q_lora_rank' is missing; the indexer reads the low-rank query")
        linears += [
            ctx.linear("attention", "indexer_wq_b", q_rank, indexer.heads * indexer.head_dim),
            ctx.linear("attention", "indexer_wk", hidden, indexer.head_dim),
            ctx.linear(None, "indexer_weights", hidden, indexer.heads),
        ]
        other += 2 * indexer.head_dim  # LayerNorm of the key, weight and bias
    return AttentionSpec(
        kind="mla" if indexer is None else "dsa",
        heads=heads,
        kv_heads=1,
        qk_dim=latent + rope,
        v_dim=latent,
        prefill_qk_dim=nope + rope,
        prefill_v_dim=v_dim,
        window=None,
        ratio=1,
        entry_bytes=mla_entry_bytes(latent, rope, dtype),
        window_entry_bytes=0.0,
        state_bytes=0.0,
        linears=tuple(linears),
        other_params=other,
        other_param_bytes=other * ctx.plain_bytes,
        indexer=indexer,
        kv_dtype=dtype,
    )


def read_indexer(ctx: Context, shares_layer: int | None = None) -> Indexer:
    """Lightning indexer of DSA; scores in the type its keys are stored in (fp8 unless asked otherwise)."""
    reader = ctx.reader
    head_dim = reader.integer("index_head_dim")
    dtype = ctx.index("fp8")
    key_bytes = index_key_bytes(head_dim, dtype)
    return Indexer(
        heads=reader.integer("index_n_heads"),
        head_dim=head_dim,
        topk=reader.integer("index_topk"),
        key_bytes=key_bytes if shares_layer is None else 0.0,
        dtype=dtype,
        shares_layer=shares_layer,
    )


def _shared_layers(ctx: Context, layers: int) -> list[int | None]:
    """For each layer, the earlier layer whose selection it takes (GLM-5.2: all but the "full" ones)."""
    if not ctx.reader.has("indexer_types"):
        return [None] * layers
    types = ctx.reader.choices("indexer_types", ("full", "shared"), least=layers)[:layers]
    if types[0] != "full":
        raise ctx.reader.fail("key 'indexer_types' starts with 'shared'; the first layer must be 'full'")
    shares: list[int | None] = []
    for i, kind in enumerate(types):
        shares.append(None if kind == "full" else max(j for j in range(i) if types[j] == "full"))
    return shares


def _ffns(ctx: Context, layers: int, family: str) -> list[MoeSpec]:
    """Dense feed-forwards first, routed ones after."""
    reader = ctx.reader
    width = reader.integer("moe_intermediate_size")
    shared = reader.integer("n_shared_experts", default=0, minimum=0)
    # V3 and later correct the load by a per-expert bias (noaux_tc); V2 does not. GLM-5 leaves the key out.
    scored = reader.text("scoring_func", "sigmoid" if family == "glm4_moe_lite" else "")
    method = reader.text("topk_method", "noaux_tc" if scored == "sigmoid" else "")
    routed = moe_ffn(
        ctx,
        experts=reader.integer("n_routed_experts"),
        experts_per_token=reader.integer("num_experts_per_tok"),
        width=width,
        shared_width=shared * width,
        correction_bias=method == "noaux_tc",
    )
    if reader.has("mlp_layer_types"):
        types = reader.choices("mlp_layer_types", ("dense", "sparse"), least=layers)[:layers]
        sparse = [kind == "sparse" for kind in types]
    else:
        first = reader.integer("first_k_dense_replace", default=0, minimum=0)
        every = reader.integer("moe_layer_freq", default=1)
        sparse = [i >= first and i % every == 0 for i in range(layers)]
    dense = dense_ffn(ctx, reader.integer("intermediate_size")) if not all(sparse) else None
    return [routed if is_sparse or dense is None else dense for is_sparse in sparse]


def build_longcat(ctx: Context, family: str) -> ModelSpec:
    """LongCat-Flash: each layer two attentions and two dense feed-forwards, with experts beside the first; some of the
    experts that a token may choose do nothing.

    Source: transformers `longcat_flash`.
    """
    reader = ctx.reader
    hidden = reader.integer("hidden_size")
    experts, idle = reader.integer("n_routed_experts"), reader.integer("zero_expert_num", default=0, minimum=0)
    chosen = reader.integer(reader.first_of("moe_topk", "num_experts_per_tok"))
    working = max(1, round(chosen * experts / (experts + idle)))
    if idle:
        ctx.note(
            f"of {chosen} experts a token chooses {working} on average do something (idle ones as likely as others)"
        )
    routed = moe_ffn(
        ctx,
        experts=experts,
        experts_per_token=working,
        width=reader.integer("expert_ffn_hidden_size"),
        correction_bias=True,
    )
    dense = dense_ffn(ctx, reader.integer("ffn_hidden_size"))
    router = ctx.linear(None, "router", hidden, experts + idle, bias=reader.flag("router_bias", False))
    both = replace(
        routed,
        linears=(router, *dense.linears),
        other_params=experts + idle,
        other_param_bytes=(experts + idle) * F32_BYTES,
    )
    attention = latent_attention(ctx, None)
    pair = [plain_layer(ctx, attention, both), plain_layer(ctx, attention, dense)]
    if reader.integer("num_nextn_predict_layers", default=0, minimum=0):
        ctx.note("the MTP layers that num_nextn_predict_layers names are left out")
    return whole_model(ctx, family, pair * (reader.integer("num_hidden_layers") // 2))


def build(ctx: Context, family: str) -> ModelSpec:
    """Model of MLA layers; DSA where the configuration names an indexer. MTP as the configuration counts it.

    Source: transformers `deepseek_v2`, `deepseek_v3`, `deepseek_v32`, `glm_moe_dsa`.
    """
    reader = ctx.reader
    count = reader.integer("num_hidden_layers")
    sparse_attention = family in ("deepseek_v32", "glm_moe_dsa")
    shares = _shared_layers(ctx, count) if sparse_attention else [None] * count

    def layer(ffn: MoeSpec, shares_layer: int | None) -> LayerSpec:
        indexer = read_indexer(ctx, shares_layer) if sparse_attention else None
        return plain_layer(ctx, latent_attention(ctx, indexer), ffn)

    ffns = _ffns(ctx, count, family)
    layers = [layer(ffn, shared) for ffn, shared in zip(ffns, shares, strict=True)]
    draft = next_token_draft(ctx, layer(ffns[-1], None)) if has_draft(ctx) else None
    return whole_model(ctx, family, layers, draft)

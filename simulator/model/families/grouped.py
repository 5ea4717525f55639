"""Families of grouped-query attention that a row of traits describes, and the few that need a step more.

Sources: transformers `llama4`, `mimo_v2_flash`, `step3p7`, `gemma4` and the families of `traits`.
"""

from __future__ import annotations

from dataclasses import replace

from simulator.model.architecture import AttentionSpec, LayerSpec, ModelSpec, MoeSpec
from simulator.model.families.blocks import Context, dense_ffn, gqa_attention, moe_ffn, whole_model
from simulator.model.families.layer_lists import routed_layers, windowed_layers
from simulator.model.families.reader import ConfigReader
from simulator.model.families.traits import TRAITS, Flag, Routed, Traits

_NOPE_EVERY = 4  # Llama-4: of so many layers the last has no rotation and reads the whole context


def head_dim_of(reader: ConfigReader) -> int:
    """`head_dim`, or hidden / heads where the configuration leaves it out."""
    if reader.has("head_dim"):
        return reader.integer("head_dim")
    hidden, heads = reader.integer("hidden_size"), reader.integer("num_attention_heads")
    if hidden % heads:
        raise reader.fail(f"num_attention_heads={heads} does not divide hidden_size={hidden}; give head_dim")
    return hidden // heads


def build(ctx: Context, family: str) -> ModelSpec:
    """A family of `traits`."""
    traits, reader = TRAITS[family], ctx.reader
    count = reader.integer("num_hidden_layers")
    windowed = windowed_layers(reader, count, traits.window_every)
    attentions = {flag: _attention(ctx, traits, flag) for flag in set(windowed)}
    if traits.routed is None:
        routed = [False] * count
        ffns = {False: _dense(ctx, traits, ("intermediate_size",))}
    else:
        routed = routed_layers(reader, count, traits.routed.first_dense)
        ffns = {flag: _ffn(ctx, traits, traits.routed, flag) for flag in set(routed)}
    layers = {
        pair: norm_layer(ctx, attentions[pair[0]], ffns[pair[1]], traits.norms, traits.norm_bias)
        for pair in set(zip(windowed, routed, strict=True))
    }
    return finished(ctx, family, [layers[pair] for pair in zip(windowed, routed, strict=True)], traits)


def finished(ctx: Context, family: str, layers: list[LayerSpec], traits: Traits) -> ModelSpec:
    """The layers as a model of the family. Drafts that no builder of these families models are left out, and said."""
    key = ctx.reader.first_of("num_nextn_predict_layers", "num_mtp_modules", "mtp_num_hidden_layers")
    if ctx.reader.has(key) and ctx.reader.integer(key, minimum=0):
        ctx.note(f"the MTP layers that {key} names are left out")
    hidden = ctx.reader.integer("hidden_size")
    extra = (hidden if traits.norm_bias else 0) + (ctx.reader.integer("vocab_size") if traits.head_bias else 0)
    if traits.head_bias and not ctx.reader.flag("lm_head_bias", False):
        extra -= ctx.reader.integer("vocab_size")
    return whole_model(ctx, family, layers, None, extra, extra * ctx.plain_bytes, tied=traits.tied)


def norm_layer(ctx: Context, attention: AttentionSpec, ffn: MoeSpec, norms: int, with_bias: bool = False) -> LayerSpec:
    """A layer with `norms` norms of the hidden width."""
    params = norms * ctx.reader.integer("hidden_size") * (2 if with_bias else 1)
    return LayerSpec(attention, ffn, None, params, params * ctx.plain_bytes)


def says(reader: ConfigReader, flag: Flag) -> bool:
    """A fixed flag, or what its key says."""
    return reader.flag(flag, False) if isinstance(flag, str) else flag


def _attention(ctx: Context, traits: Traits, windowed: bool) -> AttentionSpec:
    reader = ctx.reader
    head_dim = head_dim_of(reader)
    heads = reader.integer("num_attention_heads")
    kv_heads = reader.integer("num_key_value_heads", default=heads)
    norms = {"none": 0, "per_head": 2 * head_dim, "all_heads": (heads + kv_heads) * head_dim}
    return gqa_attention(
        ctx,
        head_dim=head_dim,
        window=reader.integer("sliding_window") if windowed else None,
        qkv_bias=says(reader, traits.qkv_bias),
        out_bias=says(reader, traits.out_bias),
        norm_params=norms[traits.head_norms],
        sinks=traits.sinks,
        output_gate=traits.output_gate,
    )


def _dense(ctx: Context, traits: Traits, width: tuple[str, ...]) -> MoeSpec:
    reader = ctx.reader
    ffn = dense_ffn(ctx, _one(reader, width), says(reader, traits.mlp_bias), gated=traits.gated)
    if not traits.ffn_extra:
        return ffn
    return replace(ffn, other_params=traits.ffn_extra, other_param_bytes=traits.ffn_extra * ctx.plain_bytes)


def _ffn(ctx: Context, traits: Traits, routed: Routed, with_experts: bool) -> MoeSpec:
    if not with_experts:
        return _dense(ctx, traits, routed.dense_width)
    reader = ctx.reader
    width = _one(reader, routed.width)
    shared = _one(reader, routed.shared, 0) * width if routed.shared else 0
    if routed.shared_width:
        shared = _one(reader, routed.shared_width, 0)
    ffn = moe_ffn(
        ctx,
        experts=_one(reader, routed.experts),
        experts_per_token=_one(reader, routed.chosen),
        width=width,
        shared_width=shared,
        correction_bias=routed.correction,
        gated=routed.gated,
    )
    if not (routed.shared_gate and shared):
        return ffn
    return replace(ffn, linears=(*ffn.linears, ctx.linear(None, "shared_gate", reader.integer("hidden_size"), 1)))


def _one(reader: ConfigReader, keys: tuple[str, ...], default: int | None = None) -> int:
    """A whole number of the first key that is there; of a list with one value for each layer, that value."""
    key = reader.first_of(*keys)
    value = reader.config.get(key)
    if isinstance(value, list) and value:
        if any(item != value[0] for item in value):
            raise reader.fail(f"key {key!r} differs by layer, which is not supported")
        return ConfigReader({key: value[0]}, reader.where).integer(key)
    return reader.integer(key, default, minimum=0 if default is not None else 1)


def build_llama4(ctx: Context, family: str) -> ModelSpec:
    """Llama-4: routed layers between dense ones; layers with rotation read the chunk that their token is in."""
    reader, traits = ctx.reader, TRAITS[family]
    count = reader.integer("num_hidden_layers")
    if reader.has("no_rope_layers"):
        windowed = [bool(flag) for flag in reader.choices("no_rope_layers", (0, 1), least=count)[:count]]
    else:
        every = reader.integer("no_rope_layer_interval", default=_NOPE_EVERY)
        windowed = [(i + 1) % every != 0 for i in range(count)]
    chunk = reader.integer("attention_chunk_size") if reader.has("attention_chunk_size") else None
    if chunk is not None:
        ctx.note(f"layers that read the chunk of {chunk} tokens that a token is in are priced as a window of that size")
    full = _attention(ctx, traits, False)
    near = full if chunk is None else gqa_attention(
        ctx, head_dim=head_dim_of(reader), window=chunk,
        qkv_bias=says(reader, traits.qkv_bias), out_bias=says(reader, traits.out_bias),
    )  # fmt: skip
    assert traits.routed is not None
    routed = routed_layers(reader, count)
    ffns = {flag: _ffn(ctx, traits, traits.routed, flag) for flag in set(routed)}
    return finished(
        ctx,
        family,
        [norm_layer(ctx, near if windowed[i] else full, ffns[routed[i]], 2) for i in range(count)],
        traits,
    )


def build_mimo_v2(ctx: Context, family: str) -> ModelSpec:
    """MiMo-V2: windowed layers with sinks and KV heads of their own, values narrower than keys."""
    reader = ctx.reader
    count = reader.integer("num_hidden_layers")
    windowed = windowed_layers(reader, count, None)
    if not reader.has("layer_types") and not reader.has("hybrid_layer_pattern"):
        windowed = [i != 0 and (i + 1) % 6 != 0 for i in range(count)]
    bias = reader.flag("attention_bias", False)
    attentions = {}
    for near in set(windowed):
        prefix = "swa_" if near else ""

        def size(key: str, prefix: str = prefix) -> int:
            return reader.integer(reader.first_of(prefix + key, key))

        sinks = "add_swa_attention_sink_bias" if near else "add_full_attention_sink_bias"
        kv_heads = "swa_num_key_value_heads"
        attentions[near] = gqa_attention(
            ctx,
            head_dim=size("head_dim"),
            v_dim=size("v_head_dim"),
            heads=size("num_attention_heads"),
            kv_heads=reader.integer(kv_heads, default=2 * reader.integer("num_key_value_heads")) if near else None,
            window=reader.integer(reader.first_of("sliding_window", "sliding_window_size")) if near else None,
            qkv_bias=bias,
            sinks=reader.flag(sinks, near),
        )
    routed = routed_layers(reader, count, first_dense=1)
    traits = Traits(routed=Routed(experts=("n_routed_experts",), shared=("n_shared_experts",), correction=True))
    assert traits.routed is not None
    ffns = {flag: _ffn(ctx, traits, traits.routed, flag) for flag in set(routed)}
    layers = [norm_layer(ctx, attentions[windowed[i]], ffns[routed[i]], 2) for i in range(count)]
    return finished(ctx, family, layers, traits)


def build_step3p7(ctx: Context, family: str) -> ModelSpec:
    """Step-3.5 and 3.7: windowed layers may have more heads; a gate for each head; dense layers first."""
    reader = ctx.reader
    count = reader.integer("num_hidden_layers")
    windowed = windowed_layers(reader, count, None)
    heads = reader.integer("num_attention_heads")
    other = reader.section("attention_other_setting") if reader.has("attention_other_setting") else reader
    near_heads = reader.integer("num_sliding_attention_heads", default=other.integer("num_attention_heads", heads))
    groups = reader.first_of("num_attention_groups", "num_key_value_heads")
    head_dim = head_dim_of(reader)
    attentions = {
        near: gqa_attention(
            ctx,
            head_dim=head_dim,
            heads=near_heads if near else heads,
            kv_heads=reader.integer(groups),
            window=reader.integer("sliding_window") if near else None,
            norm_params=2 * head_dim,
            head_gate=reader.flag("use_head_wise_attn_gate", True),
        )
        for near in set(windowed)
    }
    routed = routed_layers(reader, count, first_dense=3)
    traits = Traits(
        routed=Routed(
            experts=("moe_num_experts", "num_experts", "n_routed_experts"),
            chosen=("moe_top_k", "num_experts_per_tok"),
            shared_width=("share_expert_dim", "share_expert_dims"),
            correction=reader.flag("use_moe_router_bias", True),
        )
    )
    assert traits.routed is not None
    ffns = {flag: _ffn(ctx, traits, traits.routed, flag) for flag in set(routed)}
    layers = [norm_layer(ctx, attentions[windowed[i]], ffns[routed[i]], 2) for i in range(count)]
    return finished(ctx, family, layers, traits)


def build_step3(ctx: Context, family: str) -> ModelSpec:
    """Step-3: all query heads, made from a low rank, read one wide head of keys and one of values.

    Source: vLLM `step3_text` and arXiv 2507.19427 (multi-matrix factorisation attention).
    """
    reader = ctx.reader
    count, hidden = reader.integer("num_hidden_layers"), reader.integer("hidden_size")
    heads, head_dim, rank = (
        reader.integer("num_attention_heads"),
        reader.integer("head_dim"),
        reader.integer("share_q_dim"),
    )
    attention = gqa_attention(
        ctx, head_dim=head_dim, kv_heads=reader.integer("num_attention_groups", default=1), norm_params=rank
    )
    queries = (
        ctx.linear("attention", "q_a_proj", hidden, rank),
        ctx.linear("attention", "wq", rank, heads * head_dim, "column"),
    )
    attention = replace(attention, linears=(*queries, *attention.linears[1:]))
    traits = Traits(
        routed=Routed(experts=("moe_num_experts",), chosen=("moe_top_k",), shared_width=("share_expert_dim",))
    )
    assert traits.routed is not None
    routed = routed_layers(reader, count)
    ffns = {flag: _ffn(ctx, traits, traits.routed, flag) for flag in set(routed)}
    return finished(ctx, family, [norm_layer(ctx, attention, ffns[flag], 2) for flag in routed], traits)


def build_gemma4(ctx: Context, family: str) -> ModelSpec:
    """Gemma 4: full layers with wider heads, whose values are their keys; experts beside a dense feed-forward."""
    reader = ctx.reader
    for key in ("hidden_size_per_layer_input", "num_kv_shared_layers"):
        if reader.integer(key, default=0, minimum=0):
            raise reader.fail(f"{key}={reader.config[key]} (Gemma 4 for devices) is not supported; use 26B-A4B or 31B")
    count, hidden = reader.integer("num_hidden_layers"), reader.integer("hidden_size")
    windowed = windowed_layers(reader, count, 6)
    windowed[-1] = False
    wide = _of_full_layers(reader)
    one_projection = reader.flag("attention_k_eq_v", False)
    bias = reader.flag("attention_bias", False)

    def attention(near: bool) -> AttentionSpec:
        head_dim = reader.integer("head_dim") if near else wide.integer("head_dim")
        own = reader if near or not one_projection else wide
        return gqa_attention(
            ctx,
            head_dim=head_dim,
            kv_heads=own.integer("num_key_value_heads"),
            window=reader.integer("sliding_window") if near else None,
            qkv_bias=bias,
            out_bias=bias,
            norm_params=2 * head_dim,
            values_are_keys=one_projection and not near,
        )

    attentions = {near: attention(near) for near in set(windowed)}
    ffn = dense_ffn(ctx, reader.integer("intermediate_size"))
    norms = 4
    if reader.flag("enable_moe_block", False):
        norms = 7
        experts = moe_ffn(
            ctx,
            experts=reader.integer("num_experts"),
            experts_per_token=reader.integer(reader.first_of("top_k_experts", "num_experts_per_tok")),
            width=reader.integer(reader.first_of("moe_intermediate_size", "expert_intermediate_size")),
        )
        scales = hidden + experts.experts  # of the router's input and of each expert
        ffn = replace(
            experts,
            linears=(*experts.linears, *ffn.linears),
            other_params=scales,
            other_param_bytes=scales * ctx.plain_bytes,
        )
    return finished(
        ctx, family, [norm_layer(ctx, attentions[near], ffn, norms) for near in windowed], Traits(tied=True)
    )


def _of_full_layers(reader: ConfigReader) -> ConfigReader:
    """Head width and KV heads of Gemma 4's full layers: from keys of their own, or by layer as transformers writes
    them back."""
    found = {key: reader.config.get(key) for key in ("head_dim", "num_key_value_heads")}
    by_layer = reader.config.get("per_layer_config")
    if isinstance(by_layer, dict) and by_layer:
        found.update(next(entry for entry in by_layer.values() if isinstance(entry, dict)))
    for key, own in (("head_dim", "global_head_dim"), ("num_key_value_heads", "num_global_key_value_heads")):
        if reader.has(own):
            found[key] = reader.config[own]
    return ConfigReader(found, reader.where)

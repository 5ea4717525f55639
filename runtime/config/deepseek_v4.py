"""config.json of DeepSeek V4, as published and as transformers writes it."""

from __future__ import annotations

from runtime.config.fields import Raw, divides, mtp_layers, need, scoring, shared_fields, yarn
from runtime.config.spec import (
    AttentionKind,
    CompressedAttention,
    ConfigError,
    MlpKind,
    ModelConfig,
    MoEConfig,
    RopeConfig,
    StreamsConfig,
)

_KIND_OF_NAME: dict[str, AttentionKind] = {
    "sliding_attention": "window",
    "compressed_sparse_attention": "sparse",
    "heavily_compressed_attention": "heavy",
}
# Tokens that an entry of each compressor stands for, as published.
SPARSE_RATIO, HEAVY_RATIO = 4, 128
_KIND_OF_RATIO: dict[int, AttentionKind] = {0: "window", SPARSE_RATIO: "sparse", HEAVY_RATIO: "heavy"}


def read_v4(raw: Raw) -> ModelConfig:
    shared = shared_fields(raw)
    layers, heads, head_dim = shared["num_layers"], need(raw, "num_attention_heads"), need(raw, "head_dim")
    if raw.get("num_key_value_heads", 1) != 1:
        raise ConfigError(f"num_key_value_heads={raw['num_key_value_heads']}: DeepSeek V4 has 1; use 1")
    if need(raw, "n_routed_experts") < need(raw, "num_experts_per_tok"):
        raise ConfigError(f"num_experts_per_tok={raw['num_experts_per_tok']} exceeds n_routed_experts")
    if raw.get("norm_topk_prob", True) is not True:
        raise ConfigError("norm_topk_prob=false: DeepSeek V4 normalises its routing weights; use true")
    groups = need(raw, "o_groups")
    divides("o_groups", groups, "num_attention_heads", heads)
    kinds, rates = _v4_attention_kinds(raw, layers)
    rope, compress_rope = _v4_rope(raw, head_dim, shared["max_position_embeddings"])
    attention = CompressedAttention(
        num_heads=heads,
        head_dim=head_dim,
        q_lora_rank=need(raw, "q_lora_rank"),
        o_groups=groups,
        o_lora_rank=need(raw, "o_lora_rank"),
        window=need(raw, "sliding_window"),
        sparse_ratio=rates["compressed_sparse_attention"],
        heavy_ratio=rates["heavily_compressed_attention"],
        index_heads=need(raw, "index_n_heads"),
        index_dim=need(raw, "index_head_dim"),
        index_topk=need(raw, "index_topk"),
        rope=rope,
        compress_rope=compress_rope,
    )
    if attention.index_dim < rope.dim:
        raise ConfigError(f"index_head_dim={attention.index_dim} is smaller than the rotated dimensions {rope.dim}")
    return ModelConfig(
        family="deepseek_v4",
        **shared,
        attention=attention,
        attention_kinds=kinds,
        mlp_kinds=_v4_mlp_kinds(raw, layers),
        moe=MoEConfig(
            num_experts=need(raw, "n_routed_experts"),
            top_k=need(raw, "num_experts_per_tok"),
            intermediate_size=need(raw, "moe_intermediate_size"),
            num_shared=int(raw.get("n_shared_experts", 1)),
            scoring=scoring(raw.get("scoring_func", "sqrtsoftplus")),
            normalize=True,
            scale=need(raw, "routed_scaling_factor", float),
            has_bias=True,
            swiglu_limit=need(raw, "swiglu_limit", float),
        ),
        dense_intermediate_size=None,
        streams=StreamsConfig(need(raw, "hc_mult"), need(raw, "hc_sinkhorn_iters"), need(raw, "hc_eps", float)),
        num_mtp_layers=mtp_layers(raw),
    )


def _v4_attention_kinds(raw: Raw, layers: int) -> tuple[tuple[AttentionKind, ...], dict[str, int]]:
    """One kind a layer, from `layer_types` or `compress_ratios` (whose tail beyond the layers is for MTP)."""
    rates = {"compressed_sparse_attention": SPARSE_RATIO, "heavily_compressed_attention": HEAVY_RATIO}
    rates |= raw.get("compress_rates") or {}
    if names := raw.get("layer_types"):
        unknown = sorted(set(names) - set(_KIND_OF_NAME))
        if unknown:
            raise ConfigError(f"layer_types holds {unknown[0]!r}; use {', '.join(_KIND_OF_NAME)}")
        kinds = tuple(_KIND_OF_NAME[name] for name in names[:layers])
    else:
        ratios = need(raw, "compress_ratios", list)
        unknown = sorted(set(ratios) - set(_KIND_OF_RATIO))
        if unknown:
            raise ConfigError(f"compress_ratios holds {unknown[0]}; use 0 (window only), 4 or 128")
        kinds = tuple(_KIND_OF_RATIO[ratio] for ratio in ratios[:layers])
    if len(kinds) != layers:
        raise ConfigError(f"num_hidden_layers={layers}, but only {len(kinds)} layers have an attention kind")
    return kinds, rates


def _v4_mlp_kinds(raw: Raw, layers: int) -> tuple[MlpKind, ...]:
    names = raw.get("mlp_layer_types")
    if names is None:
        hashed = int(raw.get("num_hash_layers", 3))
        return tuple("hash_moe" if layer < hashed else "moe" for layer in range(layers))
    kinds: tuple[MlpKind, ...] = tuple("hash_moe" if name == "hash_moe" else "moe" for name in names[:layers])
    if len(kinds) != layers or set(names) - {"hash_moe", "moe"}:
        raise ConfigError(f"mlp_layer_types={names!r} needs 'hash_moe' or 'moe' for each of {layers} layers")
    return kinds


def _v4_rope(raw: Raw, head_dim: int, max_positions: int) -> tuple[RopeConfig, RopeConfig]:
    """Window-only layers rotate plainly; layers with a compressor have their own theta and YaRN, whose
    attention factor V4 leaves at 1."""
    given = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if "main" in given and "compress" in given:
        main, compress = given["main"], given["compress"]
    else:
        main = {"rope_theta": need(raw, "rope_theta", float)}
        compress = {**given, "rope_theta": need(raw, "compress_rope_theta", float)}
    if "qk_rope_head_dim" in raw:
        dim = need(raw, "qk_rope_head_dim")
    else:
        fraction = raw.get("partial_rotary_factor") or main.get("partial_rotary_factor")
        if fraction is None:
            raise ConfigError("the model configuration lacks 'qk_rope_head_dim'; add it (an int)")
        dim = int(head_dim * fraction)
    if dim % 2 or dim > head_dim:
        raise ConfigError(f"qk_rope_head_dim={dim} must be even and at most head_dim={head_dim}")
    ropes = []
    for part in (main, compress):
        stretch = yarn({"attention_factor": 1.0, **part}, max_positions)
        ropes.append(RopeConfig(float(part["rope_theta"]), dim, True, stretch))
    return ropes[0], ropes[1]

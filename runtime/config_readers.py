"""Hugging Face config.json of each supported family to a ModelConfig."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from runtime.config import (
    AttentionKind,
    CompressedAttention,
    ConfigError,
    GroupedAttention,
    LatentAttention,
    MlpKind,
    ModelConfig,
    MoEConfig,
    RopeConfig,
    StreamsConfig,
    YarnScaling,
)

Raw = Mapping[str, Any]

_KIND_OF_NAME: dict[str, AttentionKind] = {
    "sliding_attention": "window",
    "compressed_sparse_attention": "sparse",
    "heavily_compressed_attention": "heavy",
}
_KIND_OF_RATIO: dict[int, AttentionKind] = {0: "window", 4: "sparse", 128: "heavy"}


def read(raw: Raw) -> ModelConfig:
    model_type = _need(raw, "model_type", str)
    if model_type not in _READERS:
        raise ConfigError(f"model_type={model_type!r} is not supported; use one of {', '.join(sorted(_READERS))}")
    if raw.get("hidden_act", "silu") != "silu":
        raise ConfigError(f"hidden_act={raw['hidden_act']!r} is not supported; only 'silu' is")
    return _READERS[model_type](raw)


def _need(raw: Raw, key: str, kind: type = int) -> Any:
    value = raw.get(key)
    if value is None:
        raise ConfigError(f"the model configuration lacks {key!r}; add it (an {kind.__name__})")
    if kind is float and isinstance(value, int):
        value = float(value)
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        raise ConfigError(f"{key}={value!r} in the model configuration must be of type {kind.__name__}")
    if kind is int and value < 1:
        raise ConfigError(f"{key}={value} in the model configuration must be at least 1")
    return value


def _divides(name: str, part: int, of: str, whole: int) -> None:
    if whole % part:
        raise ConfigError(f"{name}={part} does not divide {of}={whole}; use a divisor")


def _eos(raw: Raw) -> tuple[int, ...]:
    value = raw.get("eos_token_id")
    return () if value is None else tuple(value) if isinstance(value, list | tuple) else (int(value),)


def _mtp_layers(raw: Raw) -> int:
    count = int(raw.get("num_mtp_layers", raw.get("num_nextn_predict_layers")) or 0)
    if count > 1:
        raise ConfigError(f"num_nextn_predict_layers={count} is not supported; use 0 or 1")
    return count


def _shared_fields(raw: Raw) -> dict[str, Any]:
    return {
        "vocab_size": _need(raw, "vocab_size"),
        "hidden_size": _need(raw, "hidden_size"),
        "num_layers": _need(raw, "num_hidden_layers"),
        "max_position_embeddings": _need(raw, "max_position_embeddings"),
        "rms_norm_eps": _need(raw, "rms_norm_eps", float),
        "tied_embeddings": bool(raw.get("tie_word_embeddings", False)),
        "eos_token_ids": _eos(raw),
    }


def _mscale(factor: float, multiplier: float) -> float:
    """YaRN's magnitude correction, 1 + 0.1 m ln(factor)."""
    return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1.0


def _yarn(scaling: Raw, max_positions: int) -> YarnScaling | None:
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return None
    if kind != "yarn":
        raise ConfigError(f"rope type {kind!r} is not supported; use 'default' or 'yarn'")
    if scaling.get("truncate", True) is not True:
        raise ConfigError("rope_scaling.truncate=false is not supported; leave it out")
    original = _need(scaling, "original_max_position_embeddings")
    factor = float(scaling.get("factor") or max_positions / original)
    attention_factor = scaling.get("attention_factor")
    if attention_factor is None:
        over, under = scaling.get("mscale"), scaling.get("mscale_all_dim")
        both = over and under
        attention_factor = (
            _mscale(factor, float(over)) / _mscale(factor, float(under)) if both else _mscale(factor, 1.0)
        )
    return YarnScaling(
        factor,
        original,
        float(scaling.get("beta_fast") or 32),
        float(scaling.get("beta_slow") or 1),
        float(attention_factor),
    )


def _rope_scaling(raw: Raw) -> Raw:
    """rope_parameters as newer files write it, or rope_scaling plus a rope_theta beside it."""
    merged = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    if "rope_theta" in raw and raw["rope_theta"] is not None:
        merged.setdefault("rope_theta", raw["rope_theta"])
    return merged


def _read_v4(raw: Raw) -> ModelConfig:
    shared = _shared_fields(raw)
    layers, heads, head_dim = shared["num_layers"], _need(raw, "num_attention_heads"), _need(raw, "head_dim")
    if raw.get("num_key_value_heads", 1) != 1:
        raise ConfigError(f"num_key_value_heads={raw['num_key_value_heads']}: DeepSeek V4 has 1; use 1")
    if _need(raw, "n_routed_experts") < _need(raw, "num_experts_per_tok"):
        raise ConfigError(f"num_experts_per_tok={raw['num_experts_per_tok']} exceeds n_routed_experts")
    if raw.get("norm_topk_prob", True) is not True:
        raise ConfigError("norm_topk_prob=false: DeepSeek V4 normalises its routing weights; use true")
    groups = _need(raw, "o_groups")
    _divides("o_groups", groups, "num_attention_heads", heads)
    kinds, rates = _v4_attention_kinds(raw, layers)
    rope, compress_rope = _v4_rope(raw, head_dim, shared["max_position_embeddings"])
    attention = CompressedAttention(
        num_heads=heads,
        head_dim=head_dim,
        q_lora_rank=_need(raw, "q_lora_rank"),
        o_groups=groups,
        o_lora_rank=_need(raw, "o_lora_rank"),
        window=_need(raw, "sliding_window"),
        sparse_ratio=rates["compressed_sparse_attention"],
        heavy_ratio=rates["heavily_compressed_attention"],
        index_heads=_need(raw, "index_n_heads"),
        index_dim=_need(raw, "index_head_dim"),
        index_topk=_need(raw, "index_topk"),
        rope=rope,
        compress_rope=compress_rope,
    )
    if attention.index_dim < rope.dim:
        raise ConfigError(f"index_head_dim={attention.index_dim} is smaller than the rotated dimensions {rope.dim}")
    scoring = raw.get("scoring_func", "sqrtsoftplus")
    return ModelConfig(
        family="deepseek_v4",
        **shared,
        attention=attention,
        attention_kinds=kinds,
        mlp_kinds=_v4_mlp_kinds(raw, layers),
        moe=MoEConfig(
            num_experts=_need(raw, "n_routed_experts"),
            top_k=_need(raw, "num_experts_per_tok"),
            intermediate_size=_need(raw, "moe_intermediate_size"),
            num_shared=int(raw.get("n_shared_experts", 1)),
            scoring=_scoring(scoring),
            normalize=True,
            scale=_need(raw, "routed_scaling_factor", float),
            has_bias=True,
            swiglu_limit=_need(raw, "swiglu_limit", float),
        ),
        dense_intermediate_size=None,
        streams=StreamsConfig(_need(raw, "hc_mult"), _need(raw, "hc_sinkhorn_iters"), _need(raw, "hc_eps", float)),
        num_mtp_layers=_mtp_layers(raw),
    )


def _scoring(name: str) -> Literal["softmax", "sigmoid", "sqrtsoftplus"]:
    if name == "softmax" or name == "sigmoid" or name == "sqrtsoftplus":
        return name
    raise ConfigError(f"scoring_func={name!r} is not supported; use softmax, sigmoid or sqrtsoftplus")


def _v4_attention_kinds(raw: Raw, layers: int) -> tuple[tuple[AttentionKind, ...], dict[str, int]]:
    """One kind a layer, from `layer_types` or `compress_ratios` (whose tail beyond the layers is for MTP)."""
    rates = {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128}
    rates |= raw.get("compress_rates") or {}
    if names := raw.get("layer_types"):
        unknown = sorted(set(names) - set(_KIND_OF_NAME))
        if unknown:
            raise ConfigError(f"layer_types holds {unknown[0]!r}; use {', '.join(_KIND_OF_NAME)}")
        kinds = tuple(_KIND_OF_NAME[name] for name in names[:layers])
    else:
        ratios = _need(raw, "compress_ratios", list)
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
        main = {"rope_theta": _need(raw, "rope_theta", float)}
        compress = {**given, "rope_theta": _need(raw, "compress_rope_theta", float)}
    if "qk_rope_head_dim" in raw:
        dim = _need(raw, "qk_rope_head_dim")
    else:
        fraction = raw.get("partial_rotary_factor") or main.get("partial_rotary_factor")
        if fraction is None:
            raise ConfigError("the model configuration lacks 'qk_rope_head_dim'; add it (an int)")
        dim = int(head_dim * fraction)
    if dim % 2 or dim > head_dim:
        raise ConfigError(f"qk_rope_head_dim={dim} must be even and at most head_dim={head_dim}")
    ropes = []
    for part in (main, compress):
        yarn = _yarn({"attention_factor": 1.0, **part}, max_positions)
        ropes.append(RopeConfig(float(part["rope_theta"]), dim, True, yarn))
    return ropes[0], ropes[1]


def _read_v3(raw: Raw) -> ModelConfig:
    shared = _shared_fields(raw)
    scaling = _rope_scaling(raw)
    nope, rotated = _need(raw, "qk_nope_head_dim"), _need(raw, "qk_rope_head_dim")
    yarn = _yarn(scaling, shared["max_position_embeddings"])
    scale = (nope + rotated) ** -0.5
    if yarn is not None and scaling.get("mscale_all_dim"):
        scale *= _mscale(yarn.factor, float(scaling["mscale_all_dim"])) ** 2
    experts, groups = _need(raw, "n_routed_experts"), int(raw.get("n_group") or 1)
    _divides("n_group", groups, "n_routed_experts", experts)
    dense = int(raw.get("first_k_dense_replace") or 0)
    layers = shared["num_layers"]
    return ModelConfig(
        family="deepseek_v3",
        **shared,
        attention=LatentAttention(
            num_heads=_need(raw, "num_attention_heads"),
            q_lora_rank=raw.get("q_lora_rank"),
            kv_lora_rank=_need(raw, "kv_lora_rank"),
            nope_dim=nope,
            rope_dim=rotated,
            v_dim=_need(raw, "v_head_dim"),
            scale=scale,
            has_bias=bool(raw.get("attention_bias", False)),
            rope=RopeConfig(_need(scaling, "rope_theta", float), rotated, bool(raw.get("rope_interleave", True)), yarn),
        ),
        attention_kinds=("latent",) * layers,
        mlp_kinds=tuple("dense" if layer < dense else "moe" for layer in range(layers)),
        moe=MoEConfig(
            num_experts=experts,
            top_k=_need(raw, "num_experts_per_tok"),
            intermediate_size=_need(raw, "moe_intermediate_size"),
            num_shared=int(raw.get("n_shared_experts") or 0),
            scoring=_scoring(raw.get("scoring_func", "sigmoid")),
            normalize=bool(raw.get("norm_topk_prob", True)),
            scale=_need(raw, "routed_scaling_factor", float),
            has_bias=True,
            num_groups=groups,
            top_groups=int(raw.get("topk_group") or 1),
        ),
        dense_intermediate_size=_need(raw, "intermediate_size") if dense else None,
        streams=None,
        num_mtp_layers=_mtp_layers(raw),
    )


def _read_qwen3(raw: Raw) -> ModelConfig:
    shared = _shared_fields(raw)
    if raw.get("use_sliding_window"):
        raise ConfigError("use_sliding_window=true is not supported for qwen3_moe; use false")
    heads, kv_heads = _need(raw, "num_attention_heads"), _need(raw, "num_key_value_heads")
    _divides("num_key_value_heads", kv_heads, "num_attention_heads", heads)
    head_dim = int(raw.get("head_dim") or shared["hidden_size"] // heads)
    scaling = _rope_scaling(raw)
    layers, step = shared["num_layers"], int(raw.get("decoder_sparse_step") or 1)
    plain = set(raw.get("mlp_only_layers") or ())
    kinds: tuple[MlpKind, ...] = tuple(
        "moe" if layer not in plain and (layer + 1) % step == 0 else "dense" for layer in range(layers)
    )
    return ModelConfig(
        family="qwen3_moe",
        **shared,
        attention=GroupedAttention(
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            has_bias=bool(raw.get("attention_bias", False)),
            rope=RopeConfig(
                _need(scaling, "rope_theta", float),
                head_dim,
                False,
                _yarn(scaling, shared["max_position_embeddings"]),
            ),
        ),
        attention_kinds=("grouped",) * layers,
        mlp_kinds=kinds,
        moe=MoEConfig(
            num_experts=int(raw.get("num_experts") or _need(raw, "num_local_experts")),
            top_k=_need(raw, "num_experts_per_tok"),
            intermediate_size=_need(raw, "moe_intermediate_size"),
            num_shared=0,
            scoring="softmax",
            normalize=bool(raw.get("norm_topk_prob", False)),
            scale=1.0,
            has_bias=False,
        ),
        dense_intermediate_size=_need(raw, "intermediate_size") if "dense" in kinds else None,
        streams=None,
        num_mtp_layers=0,
    )


_READERS: dict[str, Callable[[Raw], ModelConfig]] = {
    "deepseek_v4": _read_v4,
    "deepseek_v3": _read_v3,
    "qwen3_moe": _read_qwen3,
}

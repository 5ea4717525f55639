"""Hugging Face config.json of each supported family to a ModelConfig."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from runtime.config.deepseek_v4 import read_v4
from runtime.config.fields import Raw, divides, mscale, mtp_layers, need, rope_scaling, scoring, shared_fields, yarn
from runtime.config.spec import (
    ConfigError,
    GroupedAttention,
    LatentAttention,
    MlpKind,
    ModelConfig,
    MoEConfig,
    RopeConfig,
)


def read_config(source: Raw | str | Path) -> ModelConfig:
    """From a parsed config.json, its path, or the directory that holds it."""
    if isinstance(source, Mapping):
        return _read(source)
    path = Path(source)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise ConfigError(f"no model configuration at {path}; give a config.json or its directory")
    try:
        parsed = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not valid JSON ({error}); give a Hugging Face config.json") from None
    if not isinstance(parsed, dict):
        raise ConfigError(f"{path} holds no JSON object; give a Hugging Face config.json")
    return _read(parsed)


def _read(raw: Raw) -> ModelConfig:
    model_type = need(raw, "model_type", str)
    if model_type not in _READERS:
        raise ConfigError(f"model_type={model_type!r} is not supported; use one of {', '.join(sorted(_READERS))}")
    if raw.get("hidden_act", "silu") != "silu":
        raise ConfigError(f"hidden_act={raw['hidden_act']!r} is not supported; only 'silu' is")
    return _READERS[model_type](raw)


def _read_v3(raw: Raw) -> ModelConfig:
    shared = shared_fields(raw)
    scaling = rope_scaling(raw)
    nope, rotated = need(raw, "qk_nope_head_dim"), need(raw, "qk_rope_head_dim")
    stretch = yarn(scaling, shared["max_position_embeddings"])
    scale = (nope + rotated) ** -0.5
    if stretch is not None and scaling.get("mscale_all_dim"):
        scale *= mscale(stretch.factor, float(scaling["mscale_all_dim"])) ** 2
    experts, groups = need(raw, "n_routed_experts"), int(raw.get("n_group") or 1)
    divides("n_group", groups, "n_routed_experts", experts)
    dense = int(raw.get("first_k_dense_replace") or 0)
    layers = shared["num_layers"]
    return ModelConfig(
        family="deepseek_v3",
        **shared,
        attention=LatentAttention(
            num_heads=need(raw, "num_attention_heads"),
            q_lora_rank=raw.get("q_lora_rank"),
            kv_lora_rank=need(raw, "kv_lora_rank"),
            nope_dim=nope,
            rope_dim=rotated,
            v_dim=need(raw, "v_head_dim"),
            scale=scale,
            has_bias=bool(raw.get("attention_bias", False)),
            rope=RopeConfig(
                need(scaling, "rope_theta", float), rotated, bool(raw.get("rope_interleave", True)), stretch
            ),
        ),
        attention_kinds=("latent",) * layers,
        mlp_kinds=tuple("dense" if layer < dense else "moe" for layer in range(layers)),
        moe=MoEConfig(
            num_experts=experts,
            top_k=need(raw, "num_experts_per_tok"),
            intermediate_size=need(raw, "moe_intermediate_size"),
            num_shared=int(raw.get("n_shared_experts") or 0),
            scoring=scoring(raw.get("scoring_func", "sigmoid")),
            normalize=bool(raw.get("norm_topk_prob", True)),
            scale=need(raw, "routed_scaling_factor", float),
            has_bias=True,
            num_groups=groups,
            top_groups=int(raw.get("topk_group") or 1),
        ),
        dense_intermediate_size=need(raw, "intermediate_size") if dense else None,
        streams=None,
        num_mtp_layers=mtp_layers(raw),
    )


def _read_qwen3(raw: Raw) -> ModelConfig:
    shared = shared_fields(raw)
    if raw.get("use_sliding_window"):
        raise ConfigError("use_sliding_window=true is not supported for qwen3_moe; use false")
    heads, kv_heads = need(raw, "num_attention_heads"), need(raw, "num_key_value_heads")
    divides("num_key_value_heads", kv_heads, "num_attention_heads", heads)
    head_dim = int(raw.get("head_dim") or shared["hidden_size"] // heads)
    scaling = rope_scaling(raw)
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
                need(scaling, "rope_theta", float),
                head_dim,
                False,
                yarn(scaling, shared["max_position_embeddings"]),
            ),
        ),
        attention_kinds=("grouped",) * layers,
        mlp_kinds=kinds,
        moe=MoEConfig(
            num_experts=int(raw.get("num_experts") or need(raw, "num_local_experts")),
            top_k=need(raw, "num_experts_per_tok"),
            intermediate_size=need(raw, "moe_intermediate_size"),
            num_shared=0,
            scoring="softmax",
            normalize=bool(raw.get("norm_topk_prob", False)),
            scale=1.0,
            has_bias=False,
        ),
        dense_intermediate_size=need(raw, "intermediate_size") if "dense" in kinds else None,
        streams=None,
        num_mtp_layers=0,
    )


_READERS: dict[str, Callable[[Raw], ModelConfig]] = {
    "deepseek_v4": read_v4,
    "deepseek_v3": _read_v3,
    "qwen3_moe": _read_qwen3,
}

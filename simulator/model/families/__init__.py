"""From a Hugging Face `config.json` to a `ModelSpec`, one module per group of families."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from simulator.model.architecture import ModelSpec
from simulator.model.families import deepseek_v4, gqa, grouped, kimi_linear, mamba, mla, nas, qwen_next
from simulator.model.families.blocks import Context
from simulator.model.families.quantisation import SIDE_FILE, quantised, read_quantisation, text_part
from simulator.model.families.reader import ConfigReader, ModelError, close_matches
from simulator.model.families.traits import TRAITS

__all__ = ["ModelError", "spec_from_config", "supported_families"]

_BUILDERS: dict[str, Callable[[Context, str], ModelSpec]] = {
    "deepseek_v2": mla.build,
    "deepseek_v3": mla.build,
    "kimi_k2": mla.build,
    "kimi_linear": kimi_linear.build,
    "deepseek_v32": mla.build,
    "glm_moe_dsa": mla.build,
    "deepseek_v4": deepseek_v4.build,
    "llama": gqa.build_dense,
    "mistral": gqa.build_dense,
    "qwen2": gqa.build_dense,
    "qwen3": gqa.build_dense,
    "mixtral": gqa.build_mixtral,
    "qwen3_moe": gqa.build_qwen3_moe,
    "qwen3_next": qwen_next.build,
    "qwen3_5_moe_text": qwen_next.build,
    "glm4_moe": gqa.build_glm4_moe,
    "minimax_m2": gqa.build_minimax_m2,
    "minimax_m3": gqa.build_minimax_m3,
    "gpt_oss": gqa.build_gpt_oss,
    "glm4_moe_lite": mla.build,
    "mistral4": mla.build,
    "longcat_flash": mla.build_longcat,
    "qwen3_5_text": qwen_next.build,
    "nemotron_h": mamba.build_nemotron_h,
    "granitemoehybrid": mamba.build_granite_hybrid,
    "bamba": mamba.build_granite_hybrid,
    "nemotron-nas": nas.build,
    **dict.fromkeys(TRAITS, grouped.build),
    "llama4_text": grouped.build_llama4,
    "mimo_v2_flash": grouped.build_mimo_v2,
    "step3p7": grouped.build_step3p7,
    "step3_text": grouped.build_step3,
    "gemma4_text": grouped.build_gemma4,
}

# Other values of `model_type`, and architectures of whole models, that mean a family above.
ALIASES = {
    "deepseek_ref": "deepseek_v4",
    "kimi_k25": "kimi_k2",
    "kimi_k3": "kimi_linear",
    "llama4": "llama4_text",
    "minimax_m3_vl": "minimax_m3",
    "minimax_m3_vl_text": "minimax_m3",
    "qwen2_vl": "qwen2",
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen2_5_omni_text": "qwen2",
    "qwen3_vl": "qwen3",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe": "qwen3_moe",
    "qwen3_vl_moe_text": "qwen3_moe",
    "qwen3_omni_moe_text": "qwen3_moe",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "gemma3": "gemma3_text",
    "gemma4": "gemma4_text",
    "gemma4_unified_text": "gemma4_text",
    "glm4v": "glm4v_text",
    "glm4v_moe": "glm4v_moe_text",
    "step3_vl": "step3_text",
    "step3p5": "step3p7",
    "apertus1p5_text": "apertus",
    "glm46v": "glm4v_text",
    "step3p7_text": "step3p7",
    "exaone4_5_text": "exaone4",
    "hunyuan": "hunyuan_v1_moe",
    "hunyuan_vl_text": "hunyuan_v1_dense",
    "mistral3": "mistral",
    "deci": "nemotron-nas",
    "nemotron_h_omni": "nemotron_h",
    "mimo_v2": "mimo_v2_flash",
    "longcat_flash_chat": "longcat_flash",
}

_MOST_LAYERS = 10_000  # assumed: far above any model; keeps a slip of the pen from filling the memory

# Families whose public configuration does not determine their weights.
UNCOUNTABLE: dict[str, str] = {
    "deepseek_v41": "its per-layer compression ratios and KV sources are not public",
}


def supported_families() -> list[str]:
    """Values of `model_type` that can be read."""
    return sorted(_BUILDERS)


# Keys that only some families have, the most telling first, and a family of theirs.
_TELLING = (
    ("compress_ratios", "deepseek_v4"),
    ("index_topk", "deepseek_v32"),
    ("kv_lora_rank", "deepseek_v3"),
    ("linear_attn_config", "kimi_linear"),
    ("linear_num_value_heads", "qwen3_next"),
    ("ssm_state_size", "nemotron_h"),
    ("mamba_d_state", "granitemoehybrid"),
    ("num_experts", "qwen3_moe"),
    ("n_routed_experts", "glm4_moe"),
    ("num_local_experts", "mixtral"),
)


def _nearest(reader: ConfigReader) -> str:
    """Known family with keys like these."""
    return next((family for key, family in _TELLING if reader.has(key)), "llama")


def _completed(text: Mapping[str, Any], family: str) -> dict[str, Any]:
    """The configuration with what its family leaves out."""
    defaults = TRAITS[family].defaults if family in TRAITS else {}
    given = {key: value for key, value in text.items() if value is not None}
    if "num_hidden_layers" not in given:
        pattern = given.get("layers_block_type") or given.get("hybrid_override_pattern")
        if isinstance(given.get("num_layers"), int):
            given["num_hidden_layers"] = given["num_layers"] * (2 if family == "longcat_flash" else 1)
        elif isinstance(pattern, (list, str)):
            given["num_hidden_layers"] = len(pattern)
    return {**defaults, **given}


def spec_from_config(
    config: Mapping[str, Any],
    name: str,
    *,
    where: str | None = None,
    side: Mapping[str, Any] | None = None,
    kv_dtype: str | None = None,
    index_dtype: str | None = None,
) -> ModelSpec:
    """Model that `config` (the content of a Hugging Face config.json) describes.

    where: how error messages call the configuration (default: its name).
    side: content of the hf_quant_config.json beside it.
    kv_dtype: "bf16" or "fp8"; index_dtype: "fp4", "fp8" or "bf16"; default: the family's usual one.
    Keys that start with "_" (`_source`, `_published_total`, `_published_active`) are carried into the record.
    """
    where = where or name
    text, notes = text_part(config)
    reader = ConfigReader(text, where)
    family = reader.text("model_type", "")
    if not family:
        raise reader.fail("key 'model_type' is missing, so the family is unknown")
    family = ALIASES.get(family, family)
    if family in UNCOUNTABLE:
        raise reader.fail(f"model_type {family!r} cannot be counted: {UNCOUNTABLE[family]}")
    if family not in _BUILDERS:
        raise reader.fail(
            f"model_type {family!r} is not supported"
            + close_matches(family, [*_BUILDERS, *ALIASES])
            + f"; its keys are nearest to those of {_nearest(reader)} (as model_type it would be counted like that)"
        )
    reader = ConfigReader(_completed(text, family), where)
    layers = reader.integer("num_hidden_layers")
    if layers > _MOST_LAYERS:
        raise reader.fail(f"key 'num_hidden_layers' is {layers}, expected at most {_MOST_LAYERS}")
    beside = None if side is None else ConfigReader(side, f"{where}, {SIDE_FILE}")
    quantisation = read_quantisation(reader, beside)
    ctx = Context(reader, name, quantisation.plain, kv_dtype, index_dtype, list(notes), quantisation.kv_dtype)
    model = quantised(_BUILDERS[family](ctx, family), quantisation, family)
    model = replace(model, assumptions=quantisation.notes + model.assumptions)
    if index_dtype is not None and all(layer.attention.indexer is None for layer in model.layers):
        raise reader.fail(f"index_dtype={index_dtype!r} was asked for a model without an indexer; leave it out")
    return model

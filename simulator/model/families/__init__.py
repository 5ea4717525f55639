"""From a Hugging Face `config.json` to a `ModelSpec`, one module per group of families."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from simulator.model.architecture import ModelSpec
from simulator.model.families import deepseek_v4, gqa, kimi_linear, mla, qwen_next
from simulator.model.families.blocks import Context
from simulator.model.families.quantisation import SIDE_FILE, quantised, read_quantisation, text_part
from simulator.model.families.reader import ConfigReader, ModelError, close_matches

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
}

_MOST_LAYERS = 10_000  # assumed: far above any model; keeps a slip of the pen from filling the memory

# Families whose public configuration does not determine their weights.
UNCOUNTABLE: dict[str, str] = {
    "deepseek_v41": "its per-layer compression ratios and KV sources are not public",
}


def supported_families() -> list[str]:
    """Values of `model_type` that can be read."""
    return sorted(_BUILDERS)


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
    if family in UNCOUNTABLE:
        raise reader.fail(f"model_type {family!r} cannot be counted: {UNCOUNTABLE[family]}")
    if family not in _BUILDERS:
        raise reader.fail(
            f"model_type {family!r} is not supported"
            + (close_matches(family, _BUILDERS) or f"; use one of {', '.join(supported_families())}")
        )
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

"""Llama-Nemotron (DeciLM): Llama layers that a search thinned out one by one.

Source: `modeling_decilm.py` of nvidia/Llama-3_3-Nemotron-Super-49B-v1.
"""

from __future__ import annotations

from typing import Any

from simulator.model.architecture import AttentionSpec, LayerSpec, ModelSpec, MoeSpec
from simulator.model.families.blocks import Context, dense_ffn, gqa_attention, no_attention, no_ffn, whole_model
from simulator.model.families.grouped import head_dim_of, norm_layer
from simulator.model.families.reader import ConfigReader

_WIDTH_STEP = 256  # to which widths of feed-forwards are rounded up


def _width(hidden: int, factor: float) -> int:
    """Width of a feed-forward: two thirds of twice `factor` times the hidden width, rounded up.

    >>> _width(8192, 5.25)
    28672
    """
    return -(-int(2 * factor * hidden / 3) // _WIDTH_STEP) * _WIDTH_STEP


def _attention(ctx: Context, block: ConfigReader) -> AttentionSpec:
    if block.flag("no_op", False):
        return no_attention(ctx)
    heads = ctx.reader.integer("num_attention_heads")
    return gqa_attention(ctx, head_dim=head_dim_of(ctx.reader), kv_heads=heads // block.integer("n_heads_in_group"))


def _ffn(ctx: Context, block: ConfigReader) -> MoeSpec:
    if block.flag("no_op", False):
        return no_ffn(ctx)
    if block.has("intermediate_size"):
        return dense_ffn(ctx, block.integer("intermediate_size"))
    factor = block.config.get("ffn_mult")
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or factor <= 0:
        raise block.fail(f"key 'ffn_mult' is {factor!r}, expected a number above 0")
    return dense_ffn(ctx, _width(ctx.reader.integer("hidden_size"), factor))


def _layer(ctx: Context, block: ConfigReader) -> LayerSpec:
    parts = block.section("attention"), block.section("ffn")
    for part in parts:
        if part.flag("replace_with_linear", False):
            raise part.fail("replace_with_linear=true is not supported")
    attention, ffn = _attention(ctx, parts[0]), _ffn(ctx, parts[1])
    return norm_layer(ctx, attention, ffn, norms=(attention.heads > 0) + bool(ffn.linears))


def build(ctx: Context, family: str) -> ModelSpec:
    """Model from `block_configs`, one for each layer."""
    reader = ctx.reader
    count = reader.integer("num_hidden_layers")
    blocks: Any = reader.config.get("block_configs")
    if not isinstance(blocks, list) or len(blocks) != count or not all(isinstance(block, dict) for block in blocks):
        raise reader.fail(f"key 'block_configs' is not a list of {count} objects (one per layer)")
    made: dict[str, LayerSpec] = {}
    layers = []
    for i, block in enumerate(blocks):
        key = repr(block)
        if key not in made:
            made[key] = _layer(ctx, ConfigReader(block, f"{reader.where}, block_configs[{i}]"))
        layers.append(made[key])
    return whole_model(ctx, family, layers)

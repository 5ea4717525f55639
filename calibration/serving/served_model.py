"""The model that a row served: preset by name, or a checkpoint's files by path.

A preset is stored and multiplied in the precision that the row says; so is a checkpoint in plain bf16. A quantised
checkpoint says itself how it is stored.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

from hw_profiles.profile import HardwareProfile
from simulator.model.architecture import AttentionSpec, LayerSpec, Linear, ModelSpec, MoeSpec, WeightDtype
from simulator.model.presets import ModelError, load_model, names

# Published names that are the same network as a preset (post-trained versions, other spellings).
SAME_NETWORK = {
    "deepseek-r1": "deepseek-r1",
    "deepseek-v3.1": "deepseek-v3",
    "deepseek-v3.2": "deepseek-v3.2",
    "deepseek-v3": "deepseek-v3",
    "deepseek-v4-pro": "deepseek-v4-pro",
    "deepseek-v4-flash": "deepseek-v4-flash",
    "kimi-k2.7": "kimi-k2.5",
    "kimi-k2.6": "kimi-k2.5",
    "kimi-k2.5": "kimi-k2.5",
    "kimi-k2": "kimi-k2",
    "glm-5.3": "glm-5.2",
    "glm-5.2": "glm-5.2",
    "glm-5.1": "glm-5",
    "glm-5": "glm-5",
    "minimax-m2.5": "minimax-m2.5",
    "minimax-m2.7": "minimax-m2.5",
    "minimax-m2": "minimax-m2",
    "minimax-m3": "minimax-m3",
    "qwen3-235b-a22b": "qwen3-235b-a22b",
    "qwen3-coder-480b-a35b": "qwen3-coder-480b-a35b",
    "qwen3.5-397b-a17b": "qwen3.5-397b-a17b",
    "qwen3.5-122b-a10b": "qwen3.5-122b-a10b",
    "qwen3.5-35b-a3b": "qwen3.5-35b-a3b",
    "qwen3.6-35b-a3b": "qwen3.5-35b-a3b",
}
# Projections that quantised checkpoints leave in their plain type: small, and of consequence.
KEPT_PLAIN = ("router", "shared_gate", "beta_decay_proj", "indexer_weights")
NVFP4_BYTES = 0.5 + 1 / 16  # of a parameter, with one fp8 scale for 16 of them (NVIDIA ModelOpt, group_size 16) [B]
BF16_KV_GENERATIONS = ("hopper", "cdna3")  # assumed: where SGLang keeps MLA's cache in bf16 by default
FOUR_BIT = ("fp4", "int4")


# Published models without a preset, and what it would take.
NOT_MODELLED = {
    "nemotron-3": "give the path of its config.json",
    "qwen3.8": "no configuration of it is at hand",
    "hy3": "no configuration of it is at hand",
}


class UnknownModel(ValueError):
    """No preset stands for the model."""


def preset_of(name: str) -> str:
    """Preset for a published name.

    >>> preset_of("DeepSeek-R1-0528"), preset_of("DeepSeek-V4-Flash-0731"), preset_of("Qwen3-Coder-480B-A35B-FP8")
    ('deepseek-r1', 'deepseek-v4-flash', 'qwen3-coder-480b-a35b')
    """
    word = name.lower().rpartition("/")[2].replace("_", "-")
    if word in names():
        return word
    for known in sorted(SAME_NETWORK, key=len, reverse=True):
        if re.match(rf"{re.escape(known)}(?![\d.])", word):
            return SAME_NETWORK[known]
    why = next((f": {reason}" for known, reason in NOT_MODELLED.items() if word.startswith(known)), "")
    raise UnknownModel(f"no preset of the model {name!r}{why or '; give the path of its config.json'}")


def is_checkpoint(name: str) -> bool:
    """Whether `name` is the path of a config.json or of a folder with one, and no published name."""
    path = Path(name).expanduser()
    return path.suffix == ".json" or (path / "config.json").is_file()


@cache
def model_of(name: str) -> ModelSpec:
    """Model of a published name, or of a checkpoint's files. Raises UnknownModel."""
    if not is_checkpoint(name):
        return load_model(preset_of(name))
    try:
        return load_model(name)
    except ModelError as error:
        raise UnknownModel(str(error)) from None


def network_of(name: str) -> str:
    """What the network is called, whatever its weights: the preset's name where there is one, else the checkpoint's."""
    if not is_checkpoint(name):
        return preset_of(name)
    model = model_of(name)
    try:
        return preset_of(model.name)
    except UnknownModel:
        return model.name


def _quantised(model: ModelSpec) -> bool:
    """Whether a checkpoint stores some of its projections in other types than its LM head."""
    layers = {id(layer): layer for layer in model.layers}.values()
    types = {linear.dtype for layer in layers for linear in (*layer.attention.linears, *layer.ffn.linears)}
    return bool((types | {layer.ffn.expert_dtype for layer in layers if layer.ffn.experts}) - {"bf16", "fp32"})


@cache
def variant(name: str, precision: str, engine: str, hardware: HardwareProfile, ep: int) -> ModelSpec:
    """The model as served: expert and projection types by `precision`, cache type by stack, experts padded with
    redundant copies to a multiple of `ep`."""
    model = model_of(name)
    label = "" if is_checkpoint(name) and _quantised(model) else precision.upper()
    generation, vendor = hardware.accelerator.generation, hardware.accelerator.vendor
    native_four = any(layer.ffn.expert_dtype in FOUR_BIT for layer in model.layers)
    if native_four:
        experts = None
    elif "FP4" in label:
        experts = "fp4"
    elif "INT4" in label:
        experts = "int4"
    elif "BF16" in label:
        experts = "bf16"
    elif "FP8" in label:
        experts = "fp8"
    else:
        experts = None
    attention: WeightDtype | None = None
    if experts == "fp4":
        attention = "bf16" if vendor == "NVIDIA" else "fp8"
    elif experts in ("bf16", "fp8"):
        attention = "bf16" if experts == "bf16" else "fp8"
    half_cache = not ("sglang" in engine.lower() and generation in BF16_KV_GENERATIONS)
    lacks_four = hardware.matrix_peak("fp4") == hardware.matrix_peak("bf16") or generation in BF16_KV_GENERATIONS
    done: dict[LayerSpec, LayerSpec] = {}

    def convert(layer: LayerSpec) -> LayerSpec:
        if layer not in done:
            done[layer] = replace(
                layer,
                attention=_attention(layer.attention, attention, half_cache),
                ffn=_experts(layer.ffn, experts, attention, lacks_four, ep),
            )
        return done[layer]

    layers = tuple(convert(layer) for layer in model.layers)
    draft = model.draft and replace(model.draft, layers=tuple(convert(layer) for layer in model.draft.layers))
    return replace(model, layers=layers, draft=draft)


def _linear(linear: Linear, dtype: WeightDtype | None) -> Linear:
    if dtype is None or linear.dtype == "fp32" or linear.name in KEPT_PLAIN:
        return linear
    return replace(linear, dtype=dtype, bytes_per_param=None, multiplied=None)


def _attention(attention: AttentionSpec, dtype: WeightDtype | None, half_cache: bool) -> AttentionSpec:
    linears = tuple(_linear(x, dtype) for x in attention.linears)
    if attention.kind == "mla" and attention.kv_dtype == "bf16" and half_cache:
        return replace(attention, linears=linears, entry_bytes=attention.entry_bytes / 2, kv_dtype="fp8")
    return replace(attention, linears=linears)


def _experts(ffn: MoeSpec, storage: str | None, projections: WeightDtype | None, lacks_four: bool, ep: int) -> MoeSpec:
    linears = tuple(_linear(x, projections) for x in ffn.linears)
    if not ffn.experts:
        return replace(ffn, linears=linears)
    experts = -(-ffn.experts // ep) * ep
    if storage is None:
        compute = "bf16" if lacks_four and ffn.expert_dtype == "fp4" else ffn.expert_compute
        return replace(ffn, linears=linears, experts=experts, expert_compute=compute)
    kind: WeightDtype = storage  # type: ignore[assignment]
    compute = kind if not (kind == "fp4" and lacks_four) else "bf16"
    size = NVFP4_BYTES if kind == "fp4" else None
    return replace(
        ffn, linears=linears, experts=experts, expert_dtype=kind, expert_compute=compute, expert_bytes_per_param=size
    )

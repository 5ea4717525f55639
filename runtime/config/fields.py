"""Fields of a Hugging Face config.json that several families share, checked as they are read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from runtime.config.spec import ConfigError, YarnScaling

Raw = Mapping[str, Any]
Scoring = Literal["softmax", "sigmoid", "sqrtsoftplus"]
_SCORING: dict[str, Scoring] = {"softmax": "softmax", "sigmoid": "sigmoid", "sqrtsoftplus": "sqrtsoftplus"}


def need(raw: Raw, key: str, kind: type = int) -> Any:
    value: Any = raw.get(key)
    if value is None:
        raise ConfigError(f"the model configuration lacks {key!r}; add it (an {kind.__name__})")
    if kind is float and isinstance(value, int):
        value = float(value)
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        raise ConfigError(f"{key}={value!r} in the model configuration must be of type {kind.__name__}")
    if kind is int and raw[key] < 1:
        raise ConfigError(f"{key}={value} in the model configuration must be at least 1")
    return value


def divides(name: str, part: int, of: str, whole: int) -> None:
    if whole % part:
        raise ConfigError(f"{name}={part} does not divide {of}={whole}; use a divisor")


def eos(raw: Raw) -> tuple[int, ...]:
    value = raw.get("eos_token_id")
    return () if value is None else tuple(value) if isinstance(value, list | tuple) else (int(value),)


def mtp_layers(raw: Raw) -> int:
    count = int(raw.get("num_mtp_layers", raw.get("num_nextn_predict_layers")) or 0)
    if count > 1:
        raise ConfigError(f"num_nextn_predict_layers={count} is not supported; use 0 or 1")
    return count


def shared_fields(raw: Raw) -> dict[str, Any]:
    return {
        "vocab_size": need(raw, "vocab_size"),
        "hidden_size": need(raw, "hidden_size"),
        "num_layers": need(raw, "num_hidden_layers"),
        "max_position_embeddings": need(raw, "max_position_embeddings"),
        "rms_norm_eps": need(raw, "rms_norm_eps", float),
        "tied_embeddings": bool(raw.get("tie_word_embeddings", False)),
        "eos_token_ids": eos(raw),
    }


def mscale(factor: float, multiplier: float) -> float:
    """YaRN's magnitude correction, 1 + 0.1 m ln(factor)."""
    return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1.0


def yarn(scaling: Raw, max_positions: int) -> YarnScaling | None:
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return None
    if kind != "yarn":
        raise ConfigError(f"rope type {kind!r} is not supported; use 'default' or 'yarn'")
    if scaling.get("truncate", True) is not True:
        raise ConfigError("rope_scaling.truncate=false is not supported; leave it out")
    original = need(scaling, "original_max_position_embeddings")
    factor = float(scaling.get("factor") or max_positions / original)
    attention_factor = scaling.get("attention_factor")
    if attention_factor is None:
        over, under = scaling.get("mscale"), scaling.get("mscale_all_dim")
        attention_factor = mscale(factor, 1.0)
        if over and under:
            attention_factor = mscale(factor, float(over)) / mscale(factor, float(under))
    return YarnScaling(
        factor,
        original,
        float(scaling.get("beta_fast") or YarnScaling.beta_fast),
        float(scaling.get("beta_slow") or YarnScaling.beta_slow),
        float(attention_factor),
    )


def rope_scaling(raw: Raw) -> Raw:
    """rope_parameters as newer files write it, or rope_scaling plus a rope_theta beside it."""
    merged = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    if "rope_theta" in raw and raw["rope_theta"] is not None:
        merged.setdefault("rope_theta", raw["rope_theta"])
    return merged


def scoring(name: str) -> Scoring:
    if name not in _SCORING:
        raise ConfigError(f"scoring_func={name!r} is not supported; use {', '.join(_SCORING)}")
    return _SCORING[name]

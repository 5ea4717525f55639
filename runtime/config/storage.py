"""How the KV cache keeps its entries, and what a checkpoint's config.json says of that."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from runtime.config.fields import Raw
from runtime.config.spec import CompressedAttention, ConfigError, ModelConfig

KvDtype = Literal["model", "fp8"]
IndexDtype = Literal["model", "fp4"]
SIDE_FILE = "hf_quant_config.json"  # of modelopt, read where config.json has no quantisation


@dataclass(frozen=True)
class CacheDtypes:
    """kv: keys and values (latents, compressed entries, windows); index: keys of V4's indexer. `model`: its dtype."""

    kv: KvDtype = "model"
    index: IndexDtype = "model"


def cache_dtypes(kv: str, index: str, config: ModelConfig, directory: Path | None) -> CacheDtypes:
    """What `auto` stands for: fp8 where the checkpoint says so, and for quantised DeepSeek V4, which was trained for
    fp8 entries and fp4 index keys (the simulator prices these), else the model's dtype."""
    sparse = isinstance(config.attention, CompressedAttention)
    _choose("kv_cache_dtype", kv, ("auto", "model", "fp8"))
    _choose("index_dtype", index, ("auto", "model", "fp4"))
    if index == "fp4" and not sparse:
        raise ConfigError("index_dtype=fp4 needs a model with an indexer (DeepSeek V4); leave it out")
    quantisation = None if directory is None else read_quantisation(directory)
    native = sparse and bool(quantisation)
    if kv == "auto":
        kv = "fp8" if native or _says_fp8(quantisation or {}) else "model"
    if index == "auto":
        index = "fp4" if native else "model"
    return CacheDtypes(cast(KvDtype, kv), cast(IndexDtype, index))


def read_quantisation(directory: Path) -> dict[str, Any] | None:
    """The quantisation section that counts: of config.json, else of modelopt's side file."""
    raw = _read(directory / "config.json")
    for section in (raw, raw.get("text_config") or {}):
        found = section.get("quantization_config")
        if isinstance(found, dict) and found:
            return found
    found = raw.get("compression_config") or _read(directory / SIDE_FILE).get("quantization")
    return found if isinstance(found, dict) and found else None


def _says_fp8(quantisation: Raw) -> bool:
    """KV in fp8: as an object (compressed-tensors, modelopt), a string, or modelopt's key of its own."""
    scheme = quantisation.get("kv_cache_scheme")
    if isinstance(scheme, dict):
        return scheme.get("num_bits") == 8 and scheme.get("type", "float") == "float"
    return "fp8" in (str(scheme).lower(), str(quantisation.get("kv_cache_quant_algo")).lower())


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        parsed = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not valid JSON ({error}); fetch it again") from None
    return parsed if isinstance(parsed, dict) else {}


def _choose(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{name}={value!r} is not known; use {', '.join(known)}")

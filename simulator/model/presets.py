"""Models by name, or from a `config.json` of your own."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from simulator.model.architecture import ModelSpec
from simulator.model.families import UNCOUNTABLE, ModelError, spec_from_config
from simulator.model.families.quantisation import SIDE_FILE
from simulator.model.families.reader import close_matches

__all__ = ["ModelError", "load_model", "names"]

_CONFIG = "config.json"
_FOLDER = Path(__file__).parent / "data" / "models"
# Known models that have no preset, and the family whose reason applies.
_UNCOUNTABLE_NAMES = {"deepseek-v4.1-flash": "deepseek_v41"}


def names() -> list[str]:
    """Names of the presets."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


def _key(name: str) -> str:
    """Spelling that "DeepSeek-V4-Pro", "deepseek_v4_pro" and "deepseek-ai/DeepSeek-V4-Pro" share."""
    return name.rsplit("/", 1)[-1].lower().replace("_", "-")


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read as a model configuration: {error}") from error
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    if isinstance(config, dict) and "peft_type" in config:
        base = config.get("base_model_name_or_path") or "its base model"
        raise ModelError(f"{path} is a {config['peft_type']} adapter, and adapters are not modelled; give {base}")
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds a {type(config).__name__}, expected a JSON object (a config.json)")
    return config


def _is_name(text: str) -> bool:
    """Whether `text` reads as a model's name, maybe with its organisation, rather than as a path."""
    return text.count("/") <= 1 and not text.startswith((".", "/", "~")) and not text.endswith(".json")


def _find(name_or_path: str) -> tuple[str, Path, str]:
    """Model's name, its file, and how messages call it."""
    key = _key(name_or_path)
    path = Path(name_or_path).expanduser()
    if "/" not in name_or_path and key in names():
        return key, _FOLDER / f"{key}.json", key
    if os.path.isfile(path / _CONFIG):
        path = path / _CONFIG
    elif os.path.isfile(path / "adapter_config.json"):
        path = path / "adapter_config.json"
    if os.path.isfile(path):
        name = path.resolve().parent.name if path.name == _CONFIG else path.stem.removesuffix("_config")
        return name, path, str(path)
    if not _is_name(name_or_path) and os.path.isdir(path):
        raise ModelError(
            f"no model in the folder {path}: it holds no {_CONFIG}; give that of a checkpoint, or a preset"
        )
    if not _is_name(name_or_path):
        raise ModelError(f"no model configuration at {path}; give a config.json or a preset's name")
    if key in names():
        return key, _FOLDER / f"{key}.json", key
    if key in _UNCOUNTABLE_NAMES:
        raise ModelError(f"{key} cannot be counted: {UNCOUNTABLE[_UNCOUNTABLE_NAMES[key]]}")
    near = close_matches(key, names()) or f"; known: {', '.join(names())}"
    raise ModelError(f"unknown model {name_or_path!r}{near} (or give the path of a config.json)")


def side_file(path: Path) -> Path | None:
    """The quantisation file beside a configuration: hf_quant_config.json beside config.json, or with the same words
    before it; None without one."""
    if not path.name.endswith(_CONFIG):
        return None
    beside = path.with_name(path.name.removesuffix(_CONFIG) + SIDE_FILE)
    return beside if beside.is_file() else None


def _read_model(name: str, path: Path, where: str, kv_dtype: str | None, index_dtype: str | None) -> ModelSpec:
    beside = side_file(path)
    side = None if beside is None else _read(beside)
    model = spec_from_config(_read(path), name, where=where, side=side, kv_dtype=kv_dtype, index_dtype=index_dtype)
    if beside is None and (path.parent / SIDE_FILE).is_file():
        unread = f"{SIDE_FILE} beside {path.name} was not read; name the folder, or rename the file config.json"
        return replace(model, assumptions=(*model.assumptions, unread))
    return model


@cache
def _load(name: str, path: Path, where: str, kv_dtype: str | None, index_dtype: str | None) -> ModelSpec:
    return _read_model(name, path, where, kv_dtype, index_dtype)


def load_model(name_or_path: str, *, kv_dtype: str | None = None, index_dtype: str | None = None) -> ModelSpec:
    """Model of a preset (`names()`), of a config.json, or of a folder that holds one.

    kv_dtype: "bf16" or "fp8"; index_dtype: "fp4", "fp8" or "bf16"; default: the family's usual one.
    """
    name, path, where = _find(name_or_path)
    if path.parent == _FOLDER:
        return _load(name, path, where, kv_dtype, index_dtype)
    return _read_model(name, path, where, kv_dtype, index_dtype)

"""Scaled-down models that a laptop can run, by name; any other model by the path of its config.json."""

from __future__ import annotations

from pathlib import Path

from runtime.config.reading import read_config
from runtime.config.spec import ConfigError, ModelConfig

_DATA = Path(__file__).parent / "data"


def preset_names() -> list[str]:
    return sorted(path.stem for path in _DATA.glob("*.json"))


def load_model_config(name_or_path: str) -> ModelConfig:
    """A preset, a config.json, or a checkpoint directory with one."""
    preset = _DATA / f"{name_or_path}.json"
    if name_or_path in preset_names():
        return read_config(preset)
    path = Path(name_or_path)
    if not path.exists():
        raise ConfigError(
            f"model {name_or_path!r} is neither a preset ({', '.join(preset_names())}) nor a config.json or a "
            "directory with one"
        )
    return read_config(path)

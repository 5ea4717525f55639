"""Which model is measured, cut to a few layers at true layer shapes, for the runtime and for the simulator alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibration.microbench.device import Machine
from calibration.microbench.preset import Preset
from simulator.model import presets
from simulator.model.architecture import ModelSpec
from simulator.model.families import ModelError, spec_from_config

if TYPE_CHECKING:
    import torch

    from runtime.config.spec import ModelConfig

# Keys that the runtime needs and that change no time; the simulator's presets leave them out.
NEUTRAL = {
    "rms_norm_eps": 1e-6,
    "hc_eps": 1e-6,
    "rope_theta": 10000,
    "compress_rope_theta": 160000,
    "routed_scaling_factor": 1.0,
    "swiglu_limit": 10.0,
    "norm_topk_prob": True,
}
PER_LAYER_LISTS = ("compress_ratios", "layer_types", "mlp_layer_types")


def read_config(name_or_path: str) -> dict[str, Any]:
    """config.json of a preset of the runtime or the simulator, or of a path."""
    import runtime.presets

    path = Path(name_or_path).expanduser()
    if name_or_path in runtime.presets.preset_names():
        path = Path(runtime.presets.__file__).parent / "data" / f"{name_or_path}.json"
    elif name_or_path in presets.names():
        path = Path(presets.__file__).parent / "data" / "models" / f"{name_or_path}.json"
    elif path.is_dir():
        path = path / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = ", ".join((*runtime.presets.preset_names(), *presets.names()))
        raise ModelError(f"model {name_or_path!r} is neither a preset ({known}) nor a readable config.json") from None
    # What is measured is what the runtime builds: plain weights in one dtype, no draft head.
    for key in ("quantization_config", "expert_dtype", "torch_dtype"):
        config.pop(key, None)
    return NEUTRAL | {key: value for key, value in config.items() if not key.startswith("_")}


def config_of(preset: Preset) -> dict[str, Any]:
    """All layers of a preset's model, with as many routed experts as it measures."""
    config = read_config(preset.model)
    if preset.experts is None:
        return config
    total = config.get("n_routed_experts", 0)
    if not config.get("num_experts_per_tok", 0) <= preset.experts <= total:
        raise ModelError(f"experts={preset.experts} is out of range; {preset.model} has {total} a layer")
    return config | {"n_routed_experts": preset.experts}


def cut_to(config: dict[str, Any], layers: int) -> dict[str, Any]:
    """The first `layers` layers of a model, without draft heads."""
    total = config["num_hidden_layers"]
    if not 1 <= layers <= total:
        raise ModelError(f"layers={layers} is out of range; the model has 1 to {total}")
    kept = {key: value[:layers] if key in PER_LAYER_LISTS else value for key, value in config.items()}
    return kept | {"num_hidden_layers": layers, "num_nextn_predict_layers": 0}


def runtime_config(config: dict[str, Any]) -> ModelConfig:
    from runtime.config.reading import read_config

    return read_config(config)


def dtype_of(machine: Machine) -> str:
    """Weights and activations: float32 on a CPU, bfloat16 on a GPU."""
    return "float32" if machine.device == "cpu" else "bfloat16"


def torch_dtype(machine: Machine) -> torch.dtype:
    import torch

    dtype = getattr(torch, dtype_of(machine))
    assert isinstance(dtype, torch.dtype)
    return dtype


def model_spec(config: dict[str, Any], machine: Machine, name: str) -> ModelSpec:
    """The simulator's view of what the runtime runs."""
    plain = config | {"dtype": dtype_of(machine)}
    spec = spec_from_config(plain, name, kv_dtype="bf16")
    if any(layer.attention.indexer for layer in spec.layers):
        return spec_from_config(plain, name, kv_dtype="bf16", index_dtype="bf16")
    return spec

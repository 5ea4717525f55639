"""Parameter counts equal those of the `transformers` classes, built from one configuration without memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simulator.model import parameter_counts as counts
from simulator.model import presets
from simulator.model.families import spec_from_config

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

FOLDER = Path(presets.__file__).parent / "data" / "models"
LAYERS = 8  # reaches every kind of layer that these families mix
PER_LAYER = ("layer_types", "mlp_layer_types", "compress_ratios", "indexer_types")
KIMI_LINEAR: dict[str, Any] = {
    "model_type": "kimi_linear",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "moe_intermediate_size": 1024,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "num_experts": 256,
    "num_experts_per_token": 8,
    "num_shared_experts": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "model_max_length": 1048576,
    "vocab_size": 163840,
    "linear_attn_config": {
        "full_attn_layers": [4, 8],
        "kda_layers": [1, 2, 3, 5, 6, 7],
        "head_dim": 128,
        "num_heads": 32,
        "short_conv_kernel_size": 4,
    },
}
QWEN3_NEXT: dict[str, Any] = {
    "model_type": "qwen3_next",
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "num_hidden_layers": LAYERS,
    "full_attention_interval": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "num_experts": 64,
    "num_experts_per_tok": 10,
    "mlp_only_layers": [1],
    "vocab_size": 10000,
    "max_position_embeddings": 4096,
}
DENSE: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 10000,
    "max_position_embeddings": 4096,
}


def _short(name: str) -> dict[str, Any]:
    """A preset's configuration cut to a few layers, as a checkpoint of that size would have it."""
    config = json.loads((FOLDER / f"{name}.json").read_text())
    config = {k: v for k, v in config.items() if not k.startswith("_") and k != "quantization_config"}
    config["num_hidden_layers"] = LAYERS
    return {k: v[:LAYERS] if k in PER_LAYER else v for k, v in config.items()}


def _oracle(config: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Parameters of the transformers class (its correction bias is a buffer), and its own config.json."""
    options = {k: v for k, v in config.items() if k not in ("model_type", "architectures")}
    built = transformers.AutoConfig.for_model(config["model_type"], **options)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(built)
    params = sum(parameter.numel() for parameter in model.parameters())
    biases = sum(buffer.numel() for name, buffer in model.named_buffers() if name.endswith("e_score_correction_bias"))
    return params + biases, json.loads(json.dumps(built.to_dict(), default=str))


@pytest.mark.parametrize(
    "name",
    [
        "deepseek-v3",
        "deepseek-v3.2",
        "deepseek-v4-flash",
        "deepseek-v4-pro",
        "glm-4.5",
        "glm-4.5-air",
        "glm-5",
        "glm-5.2",
        "qwen3-30b-a3b",
        "qwen3.5-35b-a3b",
        "minimax-m2",
        "gpt-oss-20b",
        "mixtral-8x7b",
        "llama-3.1-8b",
    ],
)
def test_presets_count_as_transformers_does(name: str) -> None:
    config = _short(name)
    params, saved = _oracle(config)
    assert counts.params_total(spec_from_config(config, name)) == params
    # the configuration as transformers writes it back, with its own key names, is read alike
    assert counts.params_total(spec_from_config(saved, name)) == params


@pytest.mark.parametrize(
    "config",
    [
        KIMI_LINEAR,
        QWEN3_NEXT,
        {**DENSE, "model_type": "qwen2", "head_dim": 64},
        {**DENSE, "model_type": "qwen3", "tie_word_embeddings": True},
        {**DENSE, "model_type": "mistral", "sliding_window": 1024},
        {**DENSE, "model_type": "llama", "attention_bias": True, "mlp_bias": True},
    ],
    ids=lambda config: config["model_type"],
)
def test_other_configurations_count_as_transformers_does(config: dict[str, Any]) -> None:
    params, _ = _oracle(config)
    assert counts.params_total(spec_from_config(config, "oracle")) == params


def test_deepseek_v2_counts_as_transformers_does() -> None:
    """Plain query projection (V2-Lite) and no correction bias."""
    config = {
        **DENSE,
        "model_type": "deepseek_v2",
        "q_lora_rank": None,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_routed_experts": 64,
        "num_experts_per_tok": 6,
        "n_shared_experts": 2,
        "moe_intermediate_size": 1408,
        "first_k_dense_replace": 1,
        "topk_method": "greedy",
        "num_key_value_heads": 16,
    }
    params, saved = _oracle(config)
    assert counts.params_total(spec_from_config(config, "v2")) == params
    assert counts.params_total(spec_from_config(saved, "v2")) == params


def test_minimax_m3_counts_as_transformers_does() -> None:
    """The language model of `minimax_m3_vl`, whose class is for images too, with an LM head beside it."""
    config = _short("minimax-m3")
    config["moe_layer_freq"] = config["moe_layer_freq"][:LAYERS]
    sparse = config["sparse_attention_config"]
    sparse["sparse_attention_freq"] = sparse["sparse_attention_freq"][:LAYERS]
    options = {k: v for k, v in config.items() if k not in ("model_type", "architectures")}
    built = transformers.AutoConfig.for_model("minimax_m3_vl_text", **options)
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(built)
    params = sum(parameter.numel() for parameter in model.parameters())
    biases = sum(buffer.numel() for name, buffer in model.named_buffers() if name.endswith("e_score_correction_bias"))
    head = config["vocab_size"] * config["hidden_size"]
    assert counts.params_total(spec_from_config(config, "m3")) == params + biases + head

"""Families that people deploy: parameters against `transformers`, KV and state bytes by hand, unknown ones refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.checkpoints import meta_parameters
from simulator.model import kv
from simulator.model import parameter_counts as counts
from simulator.model.families import spec_from_config
from simulator.model.families.reader import ModelError
from simulator.model.presets import load_model

CASES = Path("/work/shared/data/field_cases")
COMMON: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 320, "moe_intermediate_size": 96, "num_hidden_layers": 8,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 48, "vocab_size": 1000, "pad_token_id": 0,
    "max_position_embeddings": 4096, "sliding_window": 64, "num_experts_per_tok": 4,
}  # fmt: skip
EXPERTS = {"num_experts": 16, "num_local_experts": 16, "n_routed_experts": 16}
LATENT = {
    "q_lora_rank": 64, "kv_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32,
}  # fmt: skip
MAMBA = {"mamba_n_heads": 16, "mamba_d_head": 32, "mamba_d_state": 32, "mamba_n_groups": 2}
NEMOTRON: dict[str, Any] = {
    "layers_block_type": ["mamba", "moe", "mamba", "attention", "mlp", "moe", "mamba", "moe"],
    "mamba_num_heads": 16, "mamba_head_dim": 32, "n_groups": 4, "ssm_state_size": 32,
    "moe_shared_expert_intermediate_size": 160, "moe_latent_size": 64, **EXPERTS,
}  # fmt: skip
DENSE = (
    "gemma", "gemma2", "gemma3_text", "exaone", "exaone4", "glm", "glm4", "phi3", "seed_oss", "smollm3", "granite",
    "ernie4_5", "hunyuan_v1_dense", "olmo2", "olmo3", "cohere", "cohere2", "arcee", "apertus", "starcoder2", "cwm",
    "iquestcoder", "ministral", "ministral3",
)  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    **{family: {} for family in DENSE},
    **dict.fromkeys(("exaone_moe", "phimoe", "granitemoe", "hy_v3", "solar_open"), EXPERTS),
    "olmoe": {**EXPERTS, "head_dim": None},
    "flex_olmo": {**EXPERTS, "head_dim": None},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 128},
    "granitemoeshared": {**EXPERTS, "shared_intermediate_size": 160},
    "hunyuan_v1_moe": {**EXPERTS, "moe_topk": 4},
    "dots1": {**EXPERTS, "n_shared_experts": 2, "first_k_dense_replace": 1},
    "afmoe": {**EXPERTS, "num_shared_experts": 1, "num_dense_layers": 1},
    "ernie4_5_moe": {"moe_num_experts": 16, "moe_k": 4, "moe_num_shared_experts": 2},
    "mimo_v2_flash": {**EXPERTS, "v_head_dim": 32},
    "llama4_text": {**EXPERTS, "intermediate_size_mlp": 512, "attention_chunk_size": 64},
    "gemma4_text": {
        "num_experts": 16, "top_k_experts": 4, "enable_moe_block": True, "attention_k_eq_v": True,
        "global_head_dim": 96, "num_global_key_value_heads": 2, "hidden_size_per_layer_input": 0,
    },
    "glm4_moe_lite": {**EXPERTS, **LATENT, "head_dim": None, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "mistral4": {**EXPERTS, **LATENT, "n_shared_experts": 1},
    "nemotron_h": NEMOTRON,
    "granitemoehybrid": {
        **MAMBA, "num_local_experts": 16, "shared_intermediate_size": 160,
        "layer_types": ["mamba", "mamba", "attention", "mamba", "mamba", "mamba", "attention", "mamba"],
    },
    "bamba": {**MAMBA, "attn_layer_indices": [2, 5]},
    "qwen3_5_text": {
        "linear_num_value_heads": 8, "linear_num_key_heads": 4, "linear_key_head_dim": 32, "linear_value_head_dim": 32,
    },
    "glm4v_moe_text": {**EXPERTS, "n_shared_experts": 1, "first_k_dense_replace": 1},
}  # fmt: skip


def oracle(family: str, config: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Parameters of the transformers class, correction biases (buffers) included, and its own config.json."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    built = transformers.AutoConfig.for_model(family, **config)
    head = 0
    with torch.device("meta"):
        try:
            model = transformers.AutoModelForCausalLM.from_config(built)
        except ValueError:  # a class for images and text has it
            model = transformers.AutoModel.from_config(built)
            head = 0 if built.tie_word_embeddings else built.vocab_size * built.hidden_size
    params = sum(parameter.numel() for parameter in model.parameters())
    biases = sum(buffer.numel() for name, buffer in model.named_buffers() if name.endswith("correction_bias"))
    return params + biases + head, json.loads(json.dumps(built.to_dict(), default=str))


@pytest.mark.parametrize("family", OWN)
def test_parameters_equal_those_of_transformers(family: str) -> None:
    config = {key: value for key, value in {**COMMON, **OWN[family]}.items() if value is not None}
    params, saved = oracle(family, config)
    given = counts.params_total(spec_from_config({**config, "model_type": family}, family))
    # as transformers writes it back, with its own key names
    written = counts.params_total(spec_from_config({**saved, "model_type": family}, family))
    assert (given, written) == (params, params)


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_vl_moe"])
def test_the_language_model_of_one_for_images_counts_as_transformers_counts_it(family: str) -> None:
    pytest.importorskip("transformers")
    text = {**COMMON, **EXPERTS, "model_type": f"{family}_text"}
    config = {"model_type": family, "text_config": text, "tie_word_embeddings": False}
    model = spec_from_config(config, family)
    assert counts.params_total(model) == meta_parameters(config)
    assert any("vision" in sentence for sentence in model.assumptions)


def test_longcat_counts_experts_that_do_nothing_as_nothing() -> None:
    """transformers 5.24 makes room for up projections of the idle experts, which no checkpoint has."""
    config = {
        **COMMON, **LATENT, "num_layers": 4, "ffn_hidden_size": 320, "expert_ffn_hidden_size": 96,
        "n_routed_experts": 16, "zero_expert_num": 8, "moe_topk": 6,
    }  # fmt: skip
    del config["num_hidden_layers"]
    params, _ = oracle("longcat_flash", config)
    model = spec_from_config({**config, "model_type": "longcat_flash"}, "longcat")
    idle = params - counts.params_total(model)
    assert idle in (0, 4 * 8 * 2 * 96 * 256)
    assert model.layers[0].ffn.experts_per_token == 4  # 6 x 16 / 24


def step3() -> dict[str, Any]:
    """Shapes of Step-3 as its report gives them (arXiv 2507.19427)."""
    return {
        "model_type": "step3_vl",
        "vision_config": {"hidden_size": 1792},
        "text_config": {
            "model_type": "step3_text", "hidden_size": 7168, "intermediate_size": 18432, "num_attention_heads": 64,
            "num_attention_groups": 1, "head_dim": 256, "share_q_dim": 2048, "num_hidden_layers": 61,
            "max_position_embeddings": 65536, "vocab_size": 128815, "moe_num_experts": 48, "moe_top_k": 3,
            "moe_intermediate_size": 5120, "share_expert_dim": 5120,
            "moe_layers_enum": ",".join(str(i) for i in range(4, 60)),
        },
    }  # fmt: skip


def test_step_3_has_its_published_size() -> None:
    """316B of language model, 38B of them active, and one wide KV head: 2 x 256 values of 2 B in each of 61 layers."""
    model = spec_from_config(step3(), "step-3")
    assert counts.params_total(model) == pytest.approx(316e9, rel=0.005)
    assert counts.params_active(model) == pytest.approx(38e9, rel=0.03)
    assert kv.kv_bytes_per_token(model) == 61 * 2 * 256 * 2
    assert any("vision" in sentence for sentence in model.assumptions)


@pytest.mark.skipif(not CASES.is_dir(), reason="the collection of cases is not here")
@pytest.mark.parametrize(
    ("file", "billions"),
    [("10-nemotron-h.json", 120.7), ("10-llama4-maverick.json", 400.7), ("10-qwen3-vl-moe.json", 235.09)],
)
def test_cases_that_were_refused(file: str, billions: float) -> None:
    assert counts.params_total(load_model(str(CASES / file))) / 1e9 == pytest.approx(billions, abs=0.05)


# Nemotron 3 Super: 40 Mamba-2 mixers, 8 attention layers, 40 layers of experts, in a simpler order than its own.
NEMOTRON_3_SUPER: dict[str, Any] = {
    "model_type": "nemotron_h",
    "hybrid_override_pattern": "ME" * 32 + "M*E" * 8,
    "hidden_size": 4096, "num_hidden_layers": 88, "vocab_size": 131072, "max_position_embeddings": 262144,
    "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128,
    "mamba_num_heads": 128, "mamba_head_dim": 64, "n_groups": 8, "ssm_state_size": 128, "conv_kernel": 4,
    "n_routed_experts": 512, "num_experts_per_tok": 22, "moe_intermediate_size": 2688, "moe_latent_size": 1024,
    "moe_shared_expert_intermediate_size": 5376,
}  # fmt: skip


def test_state_and_kv_of_nemotron_3_by_hand() -> None:
    """A mixer keeps 128 heads x 64 x 128 in f32 and 3 tokens of its convolution, 8192 + 2 x 8 x 128 wide, in bf16;
    an attention layer keeps keys and values of 2 heads of 128 in bf16 for each token."""
    model = spec_from_config(NEMOTRON_3_SUPER, "super")
    kinds = [layer.attention.kind for layer in model.layers]
    assert (kinds.count("mamba2"), kinds.count("gqa"), kinds.count("none")) == (40, 8, 40)
    mixer = next(layer.attention for layer in model.layers if layer.attention.kind == "mamba2")
    assert mixer.state_bytes == 128 * 64 * 128 * 4 + 3 * (8192 + 2048) * 2
    assert kv.kv_bytes_per_token(model) == 8 * 2 * 2 * 128 * 2
    assert counts.params_total(model) == 120_668_707_840  # transformers 5.24 on the meta device
    states = kinds.count("mamba2") * mixer.state_bytes
    assert kv.transfer_bytes(model, 1000) == pytest.approx(states + 1000 * kv.kv_bytes_per_token(model))


LLAMA_4: dict[str, Any] = {
    "model_type": "llama4",
    "text_config": {
        "model_type": "llama4_text", "hidden_size": 5120, "num_hidden_layers": 48, "num_attention_heads": 40,
        "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 8192, "intermediate_size_mlp": 16384,
        "interleave_moe_layer_step": 2, "num_local_experts": 128, "num_experts_per_tok": 1, "vocab_size": 202048,
        "attention_chunk_size": 8192, "max_position_embeddings": 1048576,
    },
}  # fmt: skip


def test_kv_of_llama_4_by_hand() -> None:
    """Every fourth layer keeps the whole context, the others a chunk of 8,192 tokens: keys and values of 8 heads."""
    model = spec_from_config(LLAMA_4, "maverick")
    entry = 2 * 8 * 128 * 2
    assert kv.kv_bytes_per_token(model) == 12 * entry
    assert sum(kv.window_bytes(layer.attention) for layer in model.layers) == 36 * 8192 * entry
    assert counts.params_total(model) == 400_711_848_960  # transformers 5.24 on the meta device
    assert counts.params_active(model) == pytest.approx(17e9, rel=0.03)  # its name


def test_kv_of_mimo_v2_by_hand() -> None:
    """Keys of 192, values of 128: 4 heads in full layers, 8 in windowed ones of 128 tokens."""
    config = {
        "model_type": "mimo_v2_flash", "hidden_size": 4096, "num_hidden_layers": 48, "num_attention_heads": 64,
        "num_key_value_heads": 4, "head_dim": 192, "v_head_dim": 128, "swa_num_key_value_heads": 8,
        "sliding_window": 128, "intermediate_size": 16384, "moe_intermediate_size": 2048, "n_routed_experts": 256,
        "num_experts_per_tok": 8, "vocab_size": 152576, "max_position_embeddings": 262144,
        "hybrid_layer_pattern": ([0, 1, 1, 1, 1, 0] + [1, 1, 1, 1, 1, 0] * 7),
        "moe_layer_freq": [0] + [1] * 47,
    }  # fmt: skip
    model = spec_from_config(config, "mimo")
    assert kv.kv_bytes_per_token(model) == 9 * 4 * (192 + 128) * 2
    assert sum(kv.window_bytes(layer.attention) for layer in model.layers) == 39 * 128 * 8 * (192 + 128) * 2
    assert counts.params_total(model) == 308_778_780_864  # transformers 5.24 on the meta device


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "qwen9_moe", "num_experts": 64}, ["'qwen9_moe'", "qwen3_moe"]),
        ({"model_type": "somebodys", "kv_lora_rank": 512}, ["'somebodys'", "nearest to those of deepseek_v3"]),
        ({"model_type": "mamba3", "ssm_state_size": 128}, ["'mamba3'", "nearest to those of nemotron_h"]),
        ({"model_type": "gemma4_text", "num_hidden_layers": 4, "num_kv_shared_layers": 2}, ["num_kv_shared_layers=2"]),
    ],
)
def test_unknown_families_are_refused_by_name_with_the_nearest_known(config: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        spec_from_config(config, "mine")
    for words in said:
        assert words in str(caught.value)

"""What each family's layers are made of, and how quantised checkpoints are read."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from simulator.model import parameter_counts as counts
from simulator.model import presets
from simulator.model.architecture import ModelSpec
from simulator.model.families import spec_from_config

FOLDER = Path(presets.__file__).parent / "data" / "models"


def _config(name: str, **changes: Any) -> dict[str, Any]:
    return {**json.loads((FOLDER / f"{name}.json").read_text()), **changes}


def _kinds(model: ModelSpec) -> Counter[str]:
    return Counter(layer.attention.kind for layer in model.layers)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("deepseek-v4-flash", {"csa": 21, "hca": 20, "swa": 2}),
        ("deepseek-v4-pro", {"csa": 30, "hca": 31}),
        ("deepseek-v3.2", {"dsa": 61}),
        ("deepseek-v3", {"mla": 61}),
        ("gpt-oss-120b", {"swa": 18, "gqa": 18}),
        ("kimi-k3", {"kda": 69, "mla": 24}),
        ("qwen3.5-397b-a17b", {"gdn": 45, "gqa": 15}),
        ("qwen3-235b-a22b", {"gqa": 94}),
    ],
)
def test_attention_kinds(name: str, kinds: dict[str, int]) -> None:
    assert _kinds(presets.load_model(name)) == kinds


@pytest.mark.parametrize(
    ("name", "dense"), [("deepseek-v3", 3), ("kimi-k2", 1), ("glm-4.5", 3), ("glm-5.2", 3), ("mixtral-8x7b", 0)]
)
def test_dense_layers_come_first(name: str, dense: int) -> None:
    layers = presets.load_model(name).layers
    assert [layer.ffn.experts == 0 for layer in layers] == [True] * dense + [False] * (len(layers) - dense)


def test_v4_routes_its_first_three_layers_by_token() -> None:
    routing = [layer.ffn.routing for layer in presets.load_model("deepseek-v4-pro").layers]
    assert routing == ["hash"] * 3 + ["scored"] * 58


def test_v4_draft_is_a_window_layer_that_projects_all_streams() -> None:
    draft = presets.load_model("deepseek-v4-pro").draft
    assert draft is not None
    assert [layer.attention.kind for layer in draft.layers] == ["swa"]
    assert {linear.name: linear.rows_per_token for linear in draft.linears} == {"e_proj": 1, "h_proj": 4}


def test_glm_5_2_takes_the_selection_of_the_last_full_layer() -> None:
    layers = presets.load_model("glm-5.2").layers
    shares = [layer.attention.indexer.shares_layer for layer in layers if layer.attention.indexer]
    assert shares[:11] == [None, None, None, 2, 2, 2, None, 6, 6, 6, None]
    own = [any(linear.name.startswith("indexer") for linear in layer.attention.linears) for layer in layers]
    assert own == [source is None for source in shares]


def test_stored_types_of_v4() -> None:
    """fp4 experts, fp8 projections, bf16 compressors and router."""
    model = presets.load_model("deepseek-v4-flash")
    layer = model.layers[2]
    dtypes = {linear.name: linear.dtype for linear in layer.attention.linears + layer.ffn.linears}
    assert layer.ffn.expert_dtype == "fp4"
    assert layer.ffn.expert_compute == "fp8"
    for name in ("wq_a", "wkv", "wq_b", "wo_a", "wo_b", "indexer_wq_b", "shared_gate_up", "shared_down"):
        assert dtypes[name] == "fp8"
    for name in ("compressor_kv", "compressor_gate", "indexer_compressor_kv", "indexer_weights", "router"):
        assert dtypes[name] == "bf16"
    assert model.embedding.dtype == model.lm_head.dtype == "bf16"


def test_v4_base_checkpoint_has_fp8_experts() -> None:
    config = _config("deepseek-v4-flash", expert_dtype=None)
    assert {layer.ffn.expert_dtype for layer in spec_from_config(config, "base").layers} == {"fp8"}


def test_newer_files_keep_expert_dtype_in_the_quantisation_section() -> None:
    config = _config("deepseek-v4-flash")
    inner = {**config["quantization_config"], "expert_dtype": config.pop("expert_dtype")}
    moved = spec_from_config({**config, "quantization_config": inner}, "moved")
    assert counts.weight_bytes(moved) == counts.weight_bytes(presets.load_model("deepseek-v4-flash"))


def test_int4_experts_with_group_scales() -> None:
    """Kimi-K2.5: half a byte and a bf16 scale per 32; everything but the experts stays bf16."""
    model = presets.load_model("kimi-k2.5")
    ffn = model.layers[-1].ffn
    assert ffn.expert_bytes == 3 * 7168 * 2048 * (0.5 + 2 / 32)
    assert ffn.expert_compute == "bf16"
    assert {linear.dtype for linear in model.layers[-1].attention.linears + ffn.linears} == {"bf16"}


@pytest.mark.parametrize(
    ("ignore", "attention", "shared", "experts"),
    [
        (["lm_head"], "int4", "int4", "int4"),
        (["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*"], "bf16", "bf16", "int4"),
        (["self_attn", "gate"], "bf16", "int4", "int4"),  # "gate" is the router, not gate_proj
        (["model.layers.*.self_attn"], "bf16", "int4", "int4"),
        (["model.layers.0.self_attn"], "int4", "int4", "int4"),  # one layer is not the part
    ],
)
def test_the_ignore_list_keeps_parts_in_bf16(ignore: list[str], attention: str, shared: str, experts: str) -> None:
    config = _config("kimi-k2.5")
    config["quantization_config"] = {**config["quantization_config"], "ignore": ignore}
    layer = spec_from_config(config, "kimi").layers[-1]
    assert {linear.dtype for linear in layer.attention.linears} == {attention}
    assert {linear.dtype for linear in layer.ffn.linears if "shared" in linear.name} == {shared}
    assert layer.ffn.expert_dtype == experts


def test_fp8_blocks_carry_their_scales() -> None:
    model = presets.load_model("deepseek-v3")
    assert model.layers[-1].ffn.expert_bytes == 3 * 7168 * 2048 * (1 + 4 / 128**2)


def test_without_quantisation_everything_is_bf16() -> None:
    model = spec_from_config(_config("deepseek-v3", quantization_config=None), "plain")
    by_dtype = counts.weight_bytes_by_dtype(model)
    assert set(by_dtype) == {"bf16", "other"}
    assert by_dtype["bf16"] > 0.999 * counts.weight_bytes(model)


def test_a_dense_checkpoint_can_be_quantised_whole() -> None:
    quantisation = {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int", "group_size": 128}}},
    }
    config = _config("llama-3.1-8b", quantization_config=quantisation)
    linears = spec_from_config(config, "w4").layers[0]
    for linear in linears.attention.linears + linears.ffn.linears:
        assert linear.weight_bytes == linear.params * (0.5 + 2 / 128)


def test_the_language_model_of_a_multimodal_configuration() -> None:
    inner = _config("kimi-k2.5")
    wrapped = {
        "model_type": "kimi_k25",
        "quantization_config": inner.pop("quantization_config"),
        "text_config": inner,
        "vision_config": {"hidden_size": 1152},
    }
    model = spec_from_config(wrapped, "wrapped")
    assert counts.weight_bytes(model) == counts.weight_bytes(presets.load_model("kimi-k2.5"))
    assert any("vision" in sentence for sentence in model.assumptions)


def test_tied_embedding_counts_once_but_is_multiplied() -> None:
    config = _config("llama-3.1-8b", tie_word_embeddings=True)
    tied, free = spec_from_config(config, "tied"), presets.load_model("llama-3.1-8b")
    table = free.embedding.params
    assert counts.params_total(free) - counts.params_total(tied) == table
    assert counts.params_active_no_embedding(tied) == counts.params_active_no_embedding(free)
    assert counts.weight_bytes(free) - counts.weight_bytes(tied) == 2 * table


def test_mistral_window_is_read() -> None:
    config = _config("llama-3.1-8b", model_type="mistral", sliding_window=4096)
    attention = spec_from_config(config, "mistral").layers[0].attention
    assert (attention.kind, attention.window, attention.ratio) == ("swa", 4096, 0)
    assert attention.window_entry_bytes == 2 * 8 * 128 * 2


def test_assumed_choices_are_named() -> None:
    flash = presets.load_model("deepseek-v4-flash")
    assert any("fp4" in sentence and "index" in sentence for sentence in flash.assumptions)
    asked = presets.load_model("deepseek-v4-flash", kv_dtype="fp8", index_dtype="fp8")
    assert asked.assumptions == ()

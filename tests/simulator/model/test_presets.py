"""Finding models by name and by path, and what is said when that fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simulator.model import presets
from simulator.model.families import ModelError, spec_from_config

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 1000,
    "max_position_embeddings": 2048,
}


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_loads_with_its_source_and_published_figures(name: str) -> None:
    model = presets.load_model(name)
    assert model.name == name
    assert len(model.source) > 20
    assert model.published_total
    assert model.published_active


@pytest.mark.parametrize("spelling", ["DeepSeek-V4-Pro", "deepseek_v4_pro", "deepseek-ai/DeepSeek-V4-Pro"])
def test_spellings_of_a_name(spelling: str) -> None:
    assert presets.load_model(spelling) is presets.load_model("deepseek-v4-pro")


def test_a_config_json_loads_from_its_path_and_from_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "my-llama"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    from_file = presets.load_model(str(folder / "config.json"))
    assert from_file.name == "my-llama"
    assert from_file == presets.load_model(str(folder))
    assert len(from_file.layers) == 2


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "small.json"
    path.write_text(json.dumps(LLAMA))
    assert len(presets.load_model(str(path)).layers) == 2
    path.write_text(json.dumps({**LLAMA, "num_hidden_layers": 3}))
    assert len(presets.load_model(str(path)).layers) == 3


def _one_sentence(message: str) -> None:
    assert "\n" not in message
    assert "Traceback" not in message
    assert len(message) < 500


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("deepseek-v4-por", "deepseek-v4-pro"),
        ("qwen3-235b", "qwen3-235b-a22b"),
        ("something else", "known: "),
        ("deepseek-v4.1-flash", "compression ratios"),
        ("no/such/folder/config.json", "no model configuration at"),
        ("./deepseek-v4-pro", "no model configuration at"),
        ("", "unknown model"),
    ],
)
def test_a_name_that_is_no_model(name: str, said: str) -> None:
    with pytest.raises(ModelError, match=r"model|counted") as caught:
        presets.load_model(name)
    assert said in str(caught.value)
    _one_sentence(str(caught.value))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{not json", "is not valid JSON"),
        (b"", "is not valid JSON"),
        (b"[1, 2]", "expected a JSON object"),
        (b"\xff\xfe\x00bad", "cannot be read"),
        (b"{}", "'model_type' is missing"),
    ],
)
def test_a_file_that_is_no_config(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"broken\.json") as caught:
        presets.load_model(str(path))
    assert said in str(caught.value)
    _one_sentence(str(caught.value))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": None, "hiden_size": 64}, ["'hidden_size'", "missing", "hiden_size"]),
        ({"vocab_size": "many"}, ["'vocab_size'", "'many'", "whole number"]),
        ({"vocab_size": True}, ["'vocab_size'", "True"]),
        ({"num_hidden_layers": 0}, ["'num_hidden_layers'", "at least 1"]),
        ({"num_hidden_layers": -4}, ["'num_hidden_layers'", "-4"]),
        ({"num_hidden_layers": 10**9}, ["'num_hidden_layers'", "at most"]),
        ({"num_hidden_layers": 2.5}, ["'num_hidden_layers'", "2.5"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads=3", "num_attention_heads=4"]),
        ({"hidden_size": 66}, ["num_attention_heads=4", "hidden_size=66", "head_dim"]),
        ({"mlp_bias": "yes"}, ["'mlp_bias'", "true or false"]),
        ({"torch_dtype": "float99"}, ["'torch_dtype'", "float99", "bfloat16"]),
        ({"model_type": "lama"}, ["'lama'", "llama"]),
        ({"model_type": "bert"}, ["'bert'", "not supported", "nearest to those of llama"]),
        ({"model_type": "deepseek_v41"}, ["cannot be counted"]),
        ({"quantization_config": 4}, ["'quantization_config'", "object"]),
        ({"quantization_config": {"quant_method": "magic"}}, ["'magic'", "compressed-tensors"]),
        ({"quantization_config": {"quant_method": "fp8", "ignore": "all"}}, ["'ignore'", "list of strings"]),
        ({"quantization_config": {"quant_method": "fp8", "ignore": ["re:("]}}, ["'ignore'", "expression"]),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, ["'config_groups'", "missing"]),
    ],
)
def test_a_config_that_is_wrong_names_file_and_key(changes: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(ModelError, match="my-model") as caught:
        spec_from_config({**LLAMA, **changes}, "my-model")
    for part in said:
        assert part in str(caught.value)
    _one_sentence(str(caught.value))


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("deepseek-v4-flash", {"compress_ratios": [0, 0, 4]}, ["'compress_ratios'", "3 items", "43"]),
        ("deepseek-v4-flash", {"compress_ratios": [7] * 44}, ["compress_ratios[0]", "0, 4, 128"]),
        ("deepseek-v4-flash", {"compress_ratios": 4}, ["'compress_ratios'", "a list"]),
        ("deepseek-v4-flash", {"num_hash_layers": None}, ["'num_hash_layers'", "missing"]),
        ("deepseek-v4-flash", {"expert_dtype": "int3"}, ["'expert_dtype'", "int3", "fp4 or fp8"]),
        ("deepseek-v4-flash", {"o_groups": 7}, ["o_groups=7", "64"]),
        ("deepseek-v4-flash", {"num_nextn_predict_layers": 3}, ["'num_nextn_predict_layers'", "3"]),
        ("glm-5.2", {"indexer_types": ["shared"] * 78}, ["'indexer_types'", "first layer"]),
        ("kimi-k3", {"linear_attn_config": {"full_attn_layers": [1]}}, ["layers 1 to 93"]),
        ("qwen3.5-35b-a3b", {"linear_num_key_heads": 5}, ["linear_num_key_heads=5", "32"]),
        ("qwen3.5-35b-a3b", {"mtp_num_hidden_layers": 2}, ["'mtp_num_hidden_layers'", "2"]),
        ("qwen3.5-35b-a3b", {"layer_types": ["recurrent"] * 40}, ["layer_types[0]", "linear_attention"]),
        ("qwen3-30b-a3b", {"num_experts_per_tok": 129}, ["129", "128 experts"]),
        ("gpt-oss-20b", {"layer_types": ["windowed"] * 24}, ["layer_types[0]", "sliding_attention"]),
    ],
)
def test_a_preset_with_one_wrong_key(name: str, changes: dict[str, Any], said: list[str]) -> None:
    config = json.loads((Path(presets.__file__).parent / "data/models" / f"{name}.json").read_text())
    with pytest.raises(ModelError) as caught:
        spec_from_config({**config, **changes}, "mine", where="mine/config.json")
    assert str(caught.value).startswith("mine/config.json")
    for part in said:
        assert part in str(caught.value)
    _one_sentence(str(caught.value))


def test_kv_types_that_cannot_be_are_refused() -> None:
    with pytest.raises(ModelError, match=r"kv_dtype='fp5'.*bf16 or fp8"):
        presets.load_model("llama-3.1-8b", kv_dtype="fp5")
    with pytest.raises(ModelError, match=r"index_dtype='int2'.*fp4, fp8 or bf16"):
        presets.load_model("deepseek-v3.2", index_dtype="int2")
    with pytest.raises(ModelError, match="without an indexer"):
        presets.load_model("llama-3.1-8b", index_dtype="fp8")


@pytest.mark.parametrize(
    "name", ["deepseek-v4-pro", "glm-5.2", "gpt-oss-20b", "kimi-k3", "kimi-k2.5", "qwen3.5-35b-a3b"]
)
def test_no_wrong_value_of_any_key_gets_past_the_reader(name: str) -> None:
    """Whatever stands in a key, the model loads or one sentence says why not; nothing else is raised."""
    config = json.loads((Path(presets.__file__).parent / "data/models" / f"{name}.json").read_text())
    refusals: list[str] = []
    for key in config:
        for value in (None, 0, -1, True, 1.5, "x", [], [{}], {}, {"a": 1}):
            try:
                spec_from_config({**config, key: value}, "mine")
            except ModelError as error:
                refusals.append(str(error))
    for refusal in refusals:
        assert refusal.startswith("mine")
        _one_sentence(refusal)
    assert len(refusals) > 5 * len(config) / 2

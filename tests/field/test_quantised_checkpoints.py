"""Checkpoints as people have them: every way to say how weights are stored, inline or beside config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.checkpoints import variants
from hw_profiles.catalog import load
from simulator.model import parameter_counts as counts
from simulator.model import presets
from simulator.model.families import spec_from_config
from simulator.model.families.quantisation import SIDE_FILE, checkpoint_quantisation
from simulator.model.families.reader import ModelError
from simulator.model.parallelism import Parallelism
from simulator.model.precision import multiplies_fp4
from simulator.model.presets import load_model
from simulator.model.step import StepOps

FORMATS = Path("/work/shared/data/formats/checkpoints")
PRESETS = Path(presets.__file__).parent / "data" / "models"
FP4_WEIGHTS = {"num_bits": 4, "type": "float", "group_size": 16}
FP8_WEIGHTS = {"num_bits": 8, "type": "float", "strategy": "channel"}


def preset(name: str, **changes: Any) -> dict[str, Any]:
    return {**json.loads((PRESETS / f"{name}.json").read_text()), **changes}


def groups(weights: dict[str, Any], inputs: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}, "ignore": ["lm_head"], **more}


def quark(dtype: str, inputs: str | None, **more: Any) -> dict[str, Any]:
    weight = {"dtype": dtype, **more}
    given = None if inputs is None else {"dtype": inputs}
    return {"quant_method": "quark", "global_quant_config": {"weight": weight, "input_tensors": given}}


@pytest.mark.parametrize(
    ("section", "size", "operands", "kv"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 1 + 4 / 128**2, "fp8", None),
        ({"quant_method": "fp8", "weight_block_size": [64, 32]}, 1 + 4 / 2048, "fp8", None),
        ({"quant_method": "fp8", "weight_block_size": [128, 128], "scale_fmt": "ue8m0"}, 1 + 1 / 128**2, "fp8", None),
        ({"quant_method": "fp8", "activation_scheme": "static"}, 1.0, "fp8", None),
        ({"quant_method": "fbgemm_fp8"}, 1.0, "fp8", None),
        ({"quant_method": "mxfp4"}, 0.5 + 1 / 32, "bf16", None),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 0.5 + 1 / 16, "fp4", None),
        ({"quant_method": "modelopt", "quant_algo": "W4A16_NVFP4"}, 0.5 + 1 / 16, "bf16", None),
        ({"quant_method": "modelopt", "quant_algo": "MXFP8"}, 1 + 1 / 32, "fp8", None),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ", "group_size": 64}, 0.5 + 2 / 64, "fp8", None),
        ({"quant_algo": "FP8_PB_WO"}, 1 + 4 / 128**2, "fp8", None),
        ({"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}, 1.0, "fp8", "fp8"),
        ({"quant_algo": "FP8", "kv_cache_scheme": "FP8"}, 1.0, "fp8", "fp8"),
        ({"quant_algo": "FP8", "kv_cache_scheme": {"num_bits": 8, "type": "float"}}, 1.0, "fp8", "fp8"),
        (groups(FP4_WEIGHTS, {"num_bits": 4, "type": "float"}, format="nvfp4-pack-quantized"), 0.5625, "fp4", None),
        (groups(FP4_WEIGHTS, None, format="nvfp4-pack-quantized"), 0.5625, "bf16", None),
        (groups(FP4_WEIGHTS, {"num_bits": 8, "type": "float"}), 0.5625, "fp8", None),
        (groups({**FP4_WEIGHTS, "group_size": 32}, None, format="mxfp4-pack-quantized"), 0.53125, "bf16", None),
        (groups({"num_bits": 4, "type": "int", "group_size": 128}, None), 0.5 + 2 / 128, "bf16", None),
        (groups({"num_bits": 4, "type": "int", "group_size": 128, "symmetric": False}, None), 0.5195, "bf16", None),
        (groups({"num_bits": 8, "type": "int"}, {"num_bits": 8, "type": "int"}), 1.0, "int8", None),
        (groups(FP8_WEIGHTS, {"num_bits": 8, "type": "float"}), 1.0, "fp8", None),
        (groups(FP8_WEIGHTS, None), 1.0, "bf16", None),
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}, 0.51953125, "bf16", None),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "zero_point": False}, 0.5 + 2 / 64, "bf16", None),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True}, 0.51953125, "bf16", None),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, 1.0, "bf16", None),
        ({"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True}, 0.5 + 2 / 128, "bf16", None),
        (quark("fp4", "fp4", group_size=32), 0.53125, "fp4", None),
        (quark("fp8_e4m3", "fp8_e4m3"), 1.0, "fp8", None),
        (quark("fp8_e4m3", None), 1.0, "bf16", None),
        (quark("int4", None, group_size=32, symmetric=True), 0.5625, "bf16", None),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 0.5625, "bf16", None),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 1.0, "int8", None),
    ],
)  # fmt: skip
def test_bytes_and_operands_of_an_experts_weight(
    section: dict[str, Any], size: float, operands: str, kv: str | None
) -> None:
    quantisation = checkpoint_quantisation({"model_type": "anything", "quantization_config": section}, "x")
    scheme = quantisation.scheme("qwen3_moe", "expert", "gate_up", layer=1)
    assert scheme is not None
    assert scheme.bytes_per_param == pytest.approx(size, abs=1e-4)
    assert scheme.compute == operands
    assert quantisation.kv_dtype == kv


@pytest.mark.skipif(not FORMATS.is_dir(), reason="the collection of formats is not here")
def test_every_variant_of_the_collection() -> None:
    wrong = {one.name: one.why for one in variants(FORMATS) if one.verdict != "right"}
    assert wrong == {}


SPARES_ATTENTION = {"quantization": {"quant_algo": "NVFP4", "exclude_modules": ["lm_head", "*self_attn*"]}}


def checkpoint(folder: Path, config: dict[str, Any], side: dict[str, Any] | None, name: str = "config.json") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(config))
    if side is not None:
        (folder / SIDE_FILE).write_text(json.dumps(side))
    return folder


def plain_v3() -> dict[str, Any]:
    return preset("deepseek-v3", quantization_config=None)


@pytest.mark.parametrize("name", ["", "config.json"])
def test_the_file_beside_config_json_is_read(tmp_path: Path, name: str) -> None:
    """DeepSeek-V3 in NVFP4 but for its attention. By hand: 58 layers of 256 experts of 3 x 7168 x 2048 weights are
    653.9 B at 0.5625 B; 61 attentions of 187.1 M weights are 11.4 B at 2 B."""
    folder = checkpoint(tmp_path / "v3", plain_v3(), SPARES_ATTENTION)
    model = load_model(str(folder / name))
    parts = counts.weight_bytes_by_tensor(model)
    assert parts["expert"] == 58 * 256 * 3 * 7168 * 2048 * 0.5625
    assert parts["attention"] == pytest.approx(11.4e9 * 2, rel=0.01)
    assert counts.weight_bytes(model) == pytest.approx(0.40e12, rel=0.01)
    assert any(SIDE_FILE in sentence for sentence in model.assumptions)


def test_a_file_of_another_name_says_what_it_left_unread(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "v3", plain_v3(), SPARES_ATTENTION, "mine.json")
    assert any("was not read" in sentence for sentence in load_model(str(folder / "mine.json")).assumptions)


def test_config_json_comes_before_the_file_beside_it(tmp_path: Path) -> None:
    """As vLLM reads them."""
    folder = checkpoint(tmp_path / "v3", preset("deepseek-v3"), SPARES_ATTENTION)
    assert counts.weight_bytes(load_model(str(folder))) == counts.weight_bytes(load_model("deepseek-v3"))


def test_the_outer_section_comes_before_that_of_the_language_model() -> None:
    inner = preset("deepseek-v3")
    config = {"model_type": "x", "text_config": inner, "quantization_config": {"quant_algo": "NVFP4"}}
    assert spec_from_config(config, "x").layers[-1].ffn.expert_dtype == "fp4"


def test_compression_config_is_read() -> None:
    config = preset("qwen3-30b-a3b", compression_config=groups(FP8_WEIGHTS, {"num_bits": 8, "type": "float"}))
    assert spec_from_config(config, "x").layers[0].ffn.expert_bytes == 3 * 2048 * 768 * 1.0


def test_mixed_precision_over_an_fp8_checkpoint() -> None:
    """DeepSeek-V4 whose experts were quantised once more: NVFP4 although expert_dtype says fp4; the rest stays fp8."""
    config = preset("deepseek-v4-flash")
    listed = {f"layers.{i}.ffn.experts": {"quant_algo": "NVFP4", "group_size": 16} for i in range(43)}
    further = {"quant_algo": "MIXED_PRECISION", "moe_quant_algo": "NVFP4", "quantized_layers": listed}
    config["quantization_config"] = {**config["quantization_config"], **further, "ignore": ["*.attn.*", "head"]}
    layer = spec_from_config(config, "x").layers[5]
    assert layer.ffn.expert_bytes == 3 * 4096 * 2048 * 0.5625
    assert layer.ffn.expert_compute == "fp4"
    kept = {linear.name: linear.dtype for linear in (*layer.attention.linears, *layer.ffn.linears)}
    assert {kept["wq_a"], kept["shared_down"]} == {"fp8"}


def test_layers_may_be_stored_unlike_one_another() -> None:
    """Layers not listed stay plain; each listed projection has an algorithm of its own."""
    listed = {
        "model.layers.0.self_attn.q_proj": {"quant_algo": "FP8"},
        **{f"model.layers.1.mlp.experts.{e}.gate_proj": {"quant_algo": "NVFP4"} for e in range(128)},
        **{f"model.layers.1.mlp.experts.{e}.up_proj": {"quant_algo": "NVFP4"} for e in range(128)},
        **{f"model.layers.1.mlp.experts.{e}.down_proj": {"quant_algo": "FP8"} for e in range(128)},
    }  # fmt: skip
    section = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": listed}
    layers = spec_from_config(preset("qwen3-30b-a3b", quantization_config=section), "x").layers
    types = [{linear.name: linear.dtype for linear in layer.attention.linears} for layer in layers[:2]]
    assert (types[0]["q_proj"], types[0]["k_proj"], types[1]["q_proj"]) == ("fp8", "bf16", "bf16")
    assert layers[0].ffn.expert_dtype == "bf16"
    assert layers[1].ffn.expert_bytes == 2048 * 768 * (2 * 0.5625 + 1.0)
    assert layers[2] is layers[3]  # what is stored alike is priced once


@pytest.mark.parametrize(
    ("ignore", "spared"),
    [
        (["model.layers.0*"], {0}),
        (["model.layers.0", "model.layers.7"], {0, 7}),
        (["language_model.model.layers.1.mlp.experts*"], {1}),
        (["re:.*layers\\.(2|3)\\..*"], {2, 3}),
        (["model.layers.4.mlp.experts.*"], {4}),
        (["model.layers.4.mlp.gate", "lm_head", "model.layers.5.input_layernorm"], set()),
    ],
)
def test_lists_spare_the_layers_that_they_name(ignore: list[str], spared: set[int]) -> None:
    section = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ignore}
    layers = spec_from_config(preset("qwen3-30b-a3b", quantization_config=section), "x").layers
    assert {i for i, layer in enumerate(layers) if layer.ffn.expert_dtype == "bf16"} == spared


def test_several_groups_of_modules_and_a_quantised_head() -> None:
    section = {
        "quant_method": "compressed-tensors",
        "config_groups": {
            "a": {"targets": ["re:.*self_attn.*"], "weights": FP8_WEIGHTS, "input_activations": FP8_WEIGHTS},
            "b": {"targets": ["re:.*experts.*", "lm_head"], "weights": FP4_WEIGHTS, "input_activations": FP4_WEIGHTS},
        },
    }
    model = spec_from_config(preset("qwen3-30b-a3b", quantization_config=section), "x")
    assert {linear.dtype for linear in model.layers[0].attention.linears} == {"fp8"}
    assert model.layers[0].ffn.expert_dtype == model.lm_head.dtype == "fp4"
    assert model.embedding.dtype == "bf16"


@pytest.mark.parametrize(("gpu", "inputs", "operands"), [
    ("b200_sxm", FP4_WEIGHTS, "fp4"),
    ("b200_sxm", None, "bf16"),
    ("h200_sxm", FP4_WEIGHTS, "bf16"),
    ("h200_sxm", None, "bf16"),
])  # fmt: skip
def test_fp4_products_run_where_the_accelerator_has_them(
    gpu: str, inputs: dict[str, Any] | None, operands: str
) -> None:
    assert multiplies_fp4(load(gpu)) == (gpu == "b200_sxm")
    section = groups(FP4_WEIGHTS, inputs, format="nvfp4-pack-quantized")
    model = spec_from_config(preset("qwen3-30b-a3b", quantization_config=section), "x")
    ops = StepOps(model, load(gpu), Parallelism(), 0)
    layer = ops.model.layers[0]
    assert layer.ffn.expert_compute == operands
    assert {linear.multiplied or "bf16" for linear in layer.attention.linears} == {operands}


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"quant_method": "modlopt", "quant_algo": "NVFP4"}, "modelopt"),
        ({"quant_method": "torchao"}, "leave quantization_config out"),
        ({"quant_method": "modelopt", "quant_algo": "NVPF4"}, "NVFP4"),
        ({"bits": 4}, "'quant_method' is missing"),
        ({"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp3"}}}, "fp4, fp8_e4m3, int4 or int8"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "'weight_block_size'"),
        ({"quant_method": "gptq", "bits": "four"}, "'bits'"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_way_out(section: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError) as caught:
        spec_from_config(preset("qwen3-30b-a3b", quantization_config=section), "mine")
    assert said in str(caught.value)
    assert str(caught.value).startswith("mine")

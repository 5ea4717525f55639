"""Checkpoints in the vendors' formats, against number formats decoded here from their bits."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from runtime import weights
from runtime.cache import KVCache, SequenceInput
from runtime.checkpoint import INDEX, CheckpointError
from runtime.config.reading import read_config
from runtime.config.spec import ModelConfig
from runtime.model_runner import ModelRunner

# Sizes that are no multiples of 128 where the formats allow it.
SIZES = {
    "hidden_size": 160,
    "moe_intermediate_size": 128,
    "q_lora_rank": 144,
    "num_hidden_layers": 2,
    "compress_ratios": [4, 128],
    "num_hash_layers": 1,
    "n_routed_experts": 4,
}
FP8 = ("wq_a", "wq_b", "wkv", "wo_a", "wo_b", "shared_experts.w1", "shared_experts.w2", "shared_experts.w3")


def e4m3(byte: np.ndarray) -> np.ndarray:
    """1 sign, 4 exponent (bias 7), 3 mantissa bits; subnormals at exponent 0."""
    exponent, mantissa = (byte >> 3) & 15, byte & 7
    value = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent.astype(float) - 7))
    return np.where(byte >> 7, -value, value)


def e2m1(code: np.ndarray) -> np.ndarray:
    """1 sign, 2 exponent (bias 1), 1 mantissa bit."""
    exponent, mantissa = (code >> 1) & 3, code & 1
    value = np.where(exponent == 0, mantissa * 0.5, (1 + mantissa / 2) * 2.0 ** (exponent.astype(float) - 1))
    return np.where(code >> 3, -value, value)


def random_fp8(shape: tuple[int, int], rng: np.random.Generator) -> tuple[Tensor, Tensor, np.ndarray]:
    """Codes, ue8m0 scales a 128 x 128 block, and the numbers they stand for."""
    rows, columns = shape
    codes = rng.integers(0, 256, shape, dtype=np.uint8)
    codes[(codes & 127) == 127] = 0  # NaN
    exponents = rng.integers(112, 117, (-(-rows // 128), -(-columns // 128)), dtype=np.uint8)
    spread = np.repeat(np.repeat(exponents, 128, 0), 128, 1)[:rows, :columns]
    value = e4m3(codes) * 2.0 ** (spread.astype(float) - 127)
    return (
        torch.from_numpy(codes).view(torch.float8_e4m3fn),
        torch.from_numpy(exponents).view(torch.float8_e8m0fnu),
        value,
    )


def random_fp4(shape: tuple[int, int], rng: np.random.Generator) -> tuple[Tensor, Tensor, np.ndarray]:
    """Packed codes (even column low), ue8m0 scales per 32 columns, and the numbers they stand for."""
    codes = rng.integers(0, 16, shape, dtype=np.uint8)
    exponents = rng.integers(120, 125, (shape[0], shape[1] // 32), dtype=np.uint8)
    value = e2m1(codes) * 2.0 ** (np.repeat(exponents, 32, 1).astype(float) - 127)
    packed = (codes[:, 0::2] | (codes[:, 1::2] << 4)).view(np.int8)
    return torch.from_numpy(packed), torch.from_numpy(exponents).view(torch.float8_e8m0fnu), value


@dataclasses.dataclass
class Vendor:
    config: ModelConfig
    directory: Path  # quantised, in shards with an index
    plain: Path  # the same numbers in float32


def write_shards(tensors: dict[str, Tensor], directory: Path, count: int) -> None:
    directory.mkdir()
    weight_map = {}
    for shard in range(count):
        file = f"model-{shard + 1:05}-of-{count:05}.safetensors"
        part = {name: tensors[name].contiguous() for name in sorted(tensors)[shard::count]}
        save_file(part, directory / file)
        weight_map |= dict.fromkeys(part, file)
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.fixture(scope="module", params=["fp4 experts", "fp8 experts"])
def vendor(request: pytest.FixtureRequest, pair_of: Callable, tmp_path_factory: pytest.TempPathFactory) -> Vendor:
    """A V4 checkpoint in shards: fp8 linears, fp4 (or fp8) experts."""
    root = tmp_path_factory.mktemp("vendor")
    raw = {**json.loads((pair_of("deepseek_v4").directory / "config.json").read_text())}
    drop = ("layer_types", "mlp_layer_types", "architectures", "dtype", "transformers_version")
    config = transformers.DeepseekV4Config(**{k: v for k, v in raw.items() if k not in drop} | SIZES)
    torch.manual_seed(0)
    transformers.DeepseekV4ForCausalLM(config).save_pretrained(root / "hf")
    tensors = load_file(root / "hf" / "model.safetensors")
    rng = np.random.default_rng(5)
    plain, stored = dict(tensors), dict(tensors)
    for name, values in tensors.items():
        expert = ".experts." in name
        if expert or any(f".{part}.weight" in name for part in FP8):
            quantise = random_fp4 if expert and request.param == "fp4 experts" else random_fp8
            codes, scale, numbers = quantise(tuple(values.shape), rng)
            stored[name], stored[name.removesuffix("weight") + "scale"] = codes, scale
            plain[name] = torch.from_numpy(numbers).float()
        elif name.endswith("tid2eid"):
            plain[name] = stored[name] = torch.from_numpy(rng.permuted(np.tile(np.arange(4), (256, 1)), axis=1)[:, :3])
    write_shards(stored, root / "stored", 5)
    write_shards(plain, root / "plain", 1)
    mine = dataclasses.replace(read_config(config.to_dict()), num_mtp_layers=0)
    return Vendor(mine, root / "stored", root / "plain")


def last_logits(model: Any, tokens: list[int]) -> Tensor:
    cache = KVCache(model.config, 3, 1, 128, "cpu", torch.float32)
    return ModelRunner(model, cache).step([SequenceInput(tuple(tokens), 0, (2, 0, 1), 0)])


def test_dequantised_weights_are_exact(vendor: Vendor) -> None:
    ours = weights.load(vendor.config, vendor.directory, dtype=torch.float32, dequantize=True)
    ours = dict(ours.named_parameters())
    expected = dict(weights.load(vendor.config, vendor.plain, dtype=torch.float32).named_parameters())
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in ours)
    assert ours["layers.0.attn.wq_b.weight"].abs().max() > 0


def test_gate_and_up_rows_land_in_their_halves(vendor: Vendor) -> None:
    """The joined parameters against the plain files, without the loader."""
    files = {k: v for f in vendor.plain.glob("*.safetensors") for k, v in load_file(f).items()}
    model = weights.load(vendor.config, vendor.directory, dtype=torch.float32, dequantize=True)
    named = dict(model.named_parameters())
    at = "model.layers.1.ffn"
    joined = torch.cat([files[f"{at}.experts.2.w1.weight"], files[f"{at}.experts.2.w3.weight"]])
    assert torch.equal(named["layers.1.ffn.experts.w13"][2], joined)
    shared = torch.cat([files[f"{at}.shared_experts.w1.weight"], files[f"{at}.shared_experts.w3.weight"]])
    assert torch.equal(named["layers.1.ffn.shared.gate_up.weight"], shared)


def test_weights_kept_as_stored_give_the_same_logits(vendor: Vendor, tokens_of: Callable) -> None:
    kept = weights.load(vendor.config, vendor.directory, dtype=torch.float32)
    named = dict(kept.named_parameters())
    assert named["layers.0.attn.wq_b.weight"].dtype == torch.float8_e4m3fn
    assert named["layers.0.ffn.experts.w13"].dtype in (torch.uint8, torch.float8_e4m3fn)
    plain = weights.load(vendor.config, vendor.plain, dtype=torch.float32)
    total = [sum(p.nbytes for p in model.parameters()) for model in (kept, plain)]
    assert total[0] < total[1] / 1.5
    tokens = tokens_of(140, 6)
    ours, expected = last_logits(kept, tokens), last_logits(plain, tokens)
    assert (ours - expected).abs().max() < 1e-4 * expected.abs().max()


def vendor_spelling(name: str) -> str:
    """As DeepSeek publishes V4, from what transformers saves."""
    changes = {"embed_tokens.": "embed.", ".attn.norm.": ".attn.kv_norm.", "hc_head.hc_": "hc_head_"}
    name = name.removeprefix("model.")
    for old, new in changes.items():
        name = name.replace(old, new)
    return name


def module_spelling(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As transformers names its modules, experts apart."""
    out = {}
    for name, values in tensors.items():
        stem, _, leaf = name.rpartition(".experts.")
        if leaf == "gate_up_proj":
            for expert, both in enumerate(values):
                out[f"{stem}.experts.{expert}.gate_proj.weight"], out[f"{stem}.experts.{expert}.up_proj.weight"] = (
                    both.chunk(2)
                )
        elif leaf == "down_proj":
            out |= {f"{stem}.experts.{expert}.down_proj.weight": one for expert, one in enumerate(values)}
        else:
            out[name] = values
    return out


def test_every_spelling_of_v4_names_is_understood(pair_of: Callable, tmp_path: Path) -> None:
    pair = pair_of("deepseek_v4")
    saved = {k: v for file in pair.directory.glob("*.safetensors") for k, v in load_file(file).items()}
    spellings = {
        "vendor": {vendor_spelling(name): values for name, values in saved.items()},
        "modules": module_spelling(pair.theirs.state_dict()),
    }
    assert "layers.1.attn.kv_norm.weight" in spellings["vendor"]
    assert "model.layers.1.self_attn.compressor.indexer.scorer.weights_proj.weight" in spellings["modules"]
    expected = dict(pair.ours.named_parameters())
    for spelling, tensors in spellings.items():
        write_shards(tensors, tmp_path / spelling, 2)
        loaded = dict(weights.load(pair.config, tmp_path / spelling, dtype=torch.float32).named_parameters())
        assert all(torch.equal(loaded[name], expected[name]) for name in expected)


@pytest.fixture
def broken(pair_of: Callable, tmp_path: Path) -> tuple[ModelConfig, Path, dict[str, str]]:
    """A copy of a sharded checkpoint to damage, and its index."""
    pair = pair_of("deepseek_v4")
    shutil.copytree(pair.directory, tmp_path / "copy")
    index = json.loads((tmp_path / "copy" / INDEX).read_text())["weight_map"]
    return pair.config, tmp_path / "copy", index


def rewrite(directory: Path, index: dict[str, str], name: str, values: Tensor | None) -> None:
    path = directory / index[name]
    tensors = load_file(path)
    del tensors[name]
    if values is None:
        weight_map = {key: file for key, file in index.items() if key != name}
        (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    else:
        tensors[name] = values
    save_file(tensors, path)


def test_missing_shard_is_named(broken: Any) -> None:
    config, directory, index = broken
    file = sorted(set(index.values()))[3]
    (directory / file).unlink()
    with pytest.raises(CheckpointError, match=f"lacks 1 of the shards in its index, first {file}"):
        weights.load(config, directory)


def test_missing_tensor_is_named(broken: Any) -> None:
    config, directory, index = broken
    rewrite(directory, index, "model.layers.1.attn.wq_a.weight", None)
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors of this model, first 'layers.1.attn.wq_a.weight'"):
        weights.load(config, directory)


def test_missing_expert_is_named(broken: Any) -> None:
    config, directory, index = broken
    rewrite(directory, index, "model.layers.2.ffn.experts.5.w3.weight", None)
    with pytest.raises(CheckpointError, match=r"'layers.2.ffn.experts.w13' of expert 5"):
        weights.load(config, directory)


@pytest.mark.parametrize(
    "name", ["model.layers.1.attn.wkv.weight", "model.layers.3.ffn.experts.0.w2.weight", "model.norm.weight"]
)
def test_wrong_shape_names_both_shapes(broken: Any, name: str) -> None:
    config, directory, index = broken
    rewrite(directory, index, name, torch.zeros(7, 9))
    with pytest.raises(CheckpointError, match=rf"'{name}' has shape \[7, 9\], but the configuration gives"):
        weights.load(config, directory)


def test_fp8_without_scale_is_refused(broken: Any) -> None:
    config, directory, index = broken
    name = "model.layers.1.attn.wkv.weight"
    rewrite(directory, index, name, torch.zeros(32, 64).to(torch.float8_e4m3fn))
    with pytest.raises(CheckpointError, match="no scale for it"):
        weights.load(config, directory)


def test_truncated_file_is_named(broken: Any) -> None:
    config, directory, index = broken
    path = directory / sorted(set(index.values()))[0]
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CheckpointError, match=f"{path.name}.*fetch the file again"):
        weights.load(config, directory)


def test_empty_directory_is_refused(pair_of: Callable, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no \.safetensors files"):
        weights.load(pair_of("qwen3_moe").config, tmp_path)


def test_broken_index_is_refused(broken: Any) -> None:
    config, directory, _ = broken
    (directory / INDEX).write_text("{")
    with pytest.raises(CheckpointError, match="no index of shards"):
        weights.load(config, directory)

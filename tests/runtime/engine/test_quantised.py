"""Engines that serve quantised checkpoints as stored say the same tokens as their dequantised twins.

Each format is written here from random codes, and decoded here by its definition.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from runtime import models, weights
from runtime.cache import KVCache, SequenceInput
from runtime.checkpoint import CheckpointError
from runtime.config.reading import read_config
from runtime.config.spec import ConfigError, ModelConfig
from runtime.config.storage import CacheDtypes, cache_dtypes
from runtime.engine import Engine, EngineConfig
from runtime.model_runner import ModelRunner
from runtime.sequence import SamplingParams

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
Coded = tuple[dict[str, Tensor], Tensor]  # tensors by ending, and the numbers they stand for
Draw = torch.Generator


def codes(shape: torch.Size, draw: Draw, count: int) -> Tensor:
    return torch.randint(0, count, shape, generator=draw)


def pack(code: Tensor) -> Tensor:
    return (code[:, 0::2] | (code[:, 1::2] << 4)).to(torch.uint8)


def e4m3(shape: torch.Size, draw: Draw) -> Tensor:
    return (torch.randn(shape, generator=draw) * 40).clamp(-448, 448).to(torch.float8_e4m3fn)


def mxfp4(shape: torch.Size, draw: Draw) -> Coded:
    code, power = codes(shape, draw, 16), codes(torch.Size((shape[0], shape[1] // 32)), draw, 3) + 119
    values = E2M1[code] * 2.0 ** (power - 127).repeat_interleave(32, 1)
    return {"weight_packed": pack(code), "weight_scale": power.to(torch.uint8)}, values


def nvfp4(shape: torch.Size, draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
    code = codes(shape, draw, 16)
    scale = (torch.rand(shape[0], shape[1] // 16, generator=draw) * 400 + 40).to(torch.float8_e4m3fn)
    return pack(code), scale, E2M1[code] * scale.float().repeat_interleave(16, 1)


def nvfp4_compressed_tensors(shape: torch.Size, draw: Draw) -> Coded:
    packed, scale, values = nvfp4(shape, draw)
    divisor = torch.rand(1, generator=draw) * 9e4 + 3e4
    tensors = {"weight_packed": packed, "weight_scale": scale, "weight_global_scale": divisor}
    return tensors | {"input_global_scale": torch.ones(1)}, values / divisor


def nvfp4_modelopt(shape: torch.Size, draw: Draw) -> Coded:
    packed, scale, values = nvfp4(shape, draw)
    whole = torch.rand((), generator=draw) * 1e-5 + 1e-5
    tensors = {"weight": packed, "weight_scale": scale, "weight_scale_2": whole, "input_scale": torch.ones(())}
    return tensors, values * whole


def fp8_channels(shape: torch.Size, draw: Draw) -> Coded:
    values, scale = e4m3(shape, draw), (torch.rand(shape[0], 1, generator=draw) * 1e-3).bfloat16()
    return {"weight": values, "weight_scale": scale}, values.float() * scale.float()


def fp8_whole(shape: torch.Size, draw: Draw) -> Coded:
    values, scale = e4m3(shape, draw), torch.rand((), generator=draw) * 1e-3 + 1e-4
    return {"weight": values, "weight_scale": scale, "input_scale": torch.ones(())}, values.float() * scale


def fp8_blocks(shape: torch.Size, draw: Draw) -> Coded:
    values, scale = e4m3(shape, draw), torch.rand(*(-(-n // 128) for n in shape), generator=draw) * 1e-3
    spread = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[: shape[0], : shape[1]]
    return {"weight": values, "weight_scale_inv": scale}, values.float() * spread


def mxfp8(shape: torch.Size, draw: Draw) -> Coded:
    values, power = e4m3(shape, draw), codes(torch.Size((shape[0], shape[1] // 32)), draw, 3) + 115
    spread = 2.0 ** (power - 127).repeat_interleave(32, 1)
    return {"weight": values, "weight_scale": power.to(torch.uint8)}, values.float() * spread


def int4(shape: torch.Size, draw: Draw) -> Coded:
    code, scale = codes(shape, draw, 16), (torch.rand(shape[0], shape[1] // 32, generator=draw) * 0.02).bfloat16()
    packed = sum(code[:, i::8] << (4 * i) for i in range(8))
    packed = torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)  # type: ignore[arg-type,operator]
    tensors = {"weight_packed": packed, "weight_scale": scale, "weight_shape": torch.tensor(shape)}
    return tensors, (code - 8) * scale.float().repeat_interleave(32, 1)


FORMATS: dict[str, Callable[[torch.Size, Draw], Coded]] = {
    f.__name__: f
    for f in (mxfp4, nvfp4_compressed_tensors, nvfp4_modelopt, fp8_channels, fp8_whole, fp8_blocks, mxfp8, int4)
}
AS_STORED = {"mxfp4", "nvfp4_compressed_tensors", "nvfp4_modelopt", "fp8_channels", "fp8_whole", "fp8_blocks"}
EXPERTS = ("w1", "w3", "w2")
V4_NAMES = {"attn.wo_a": "attn.output.wo_a", "attn.wo_b": "attn.output.wo_b"}


def write(raw: dict[str, Any], root: Path, experts: str, linears: str) -> tuple[Path, Path]:
    """A V4 checkpoint whose experts and linears are coded, and its twin of the same numbers in float32."""
    draw = torch.Generator().manual_seed(8)
    stored: dict[str, Tensor] = {}
    plain: dict[str, Tensor] = {}
    model = models.build(read_config(raw), seed=4)

    def put(name: str, values: Tensor, form: str | None) -> None:
        if form is None:
            stored[name] = plain[name] = values.contiguous()
            return
        tensors, numbers = FORMATS[form](values.shape, draw)
        stored.update({f"{name.removesuffix('weight')}{leaf}": tensor for leaf, tensor in tensors.items()})
        plain[name] = numbers.float().contiguous()

    for name, parameter in model.named_parameters():
        values = parameter.detach() * (1.0 if "norm" in name or name.endswith(".table") else 4.0)
        stem, _, leaf = name.rpartition(".experts.")
        if leaf == "w13":
            for expert, both in enumerate(values):
                for part, rows in zip(EXPERTS, both.chunk(2), strict=False):
                    put(f"{stem}.experts.{expert}.{part}.weight", rows, experts)
        elif leaf == "w2":
            for expert, rows in enumerate(values):
                put(f"{stem}.experts.{expert}.w2.weight", rows, experts)
        elif name.endswith("shared.gate_up.weight"):
            for part, rows in zip(EXPERTS, values.chunk(2), strict=False):
                put(f"{name.removesuffix('shared.gate_up.weight')}shared_experts.{part}.weight", rows, linears)
        elif "compressor.proj" in name:
            for part, rows in zip(("wkv", "wgate"), values.chunk(2), strict=True):
                put(name.replace("proj", part), rows, None)
        elif name.endswith("output.wo_a"):
            put(name.replace("output.wo_a", "wo_a.weight"), values.flatten(0, 1), linears)
        else:
            coded = any(part in name for part in ("attn.wq_a", "attn.wq_b", "attn.wkv.", "wo_b.", "shared.down"))
            own = name.replace("output.wo_b", "wo_b").replace("shared.down", "shared_experts.w2")
            own = {"embed": "embed.weight"}.get(own, own)
            own = own.replace("compressor.bias", "compressor.ape").replace("ffn.gate.table", "ffn.gate.tid2eid")
            own = own.replace("attn.sinks", "attn.attn_sink")
            put(own, values, linears if coded else None)
    directories = []
    for kind, tensors in (("stored", stored), ("plain", plain)):
        directory = root / kind
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(raw))
        save_file(tensors, directory / "model.safetensors")
        directories.append(directory)
    return directories[0], directories[1]


def tokens(raw: dict[str, Any], directory: Path, **changes: Any) -> list[tuple[int, ...]]:
    settings = {"num_blocks": 24, "block_size": 16, "max_num_seqs": 4, "max_num_batched_tokens": 40} | changes
    engine = Engine.build(read_config(raw), EngineConfig(**settings), weights_directory=directory)
    draw = torch.Generator().manual_seed(3)
    prompts = [torch.randint(0, 290, (length,), generator=draw).tolist() for length in (3, 21, 47, 70)]
    outputs = engine.generate(prompts, SamplingParams(12, ignore_eos=True))
    engine.close()
    return [output.token_ids for output in outputs]


def last_logits(config: ModelConfig, stored: CacheDtypes, prompt: int, steps: int) -> Tensor:
    """Logits of a prompt in two chunks, and of decode steps after it, with keys kept as `stored`."""
    model = models.build(config, seed=4)
    with torch.no_grad():
        for values in model.parameters():
            if values.ndim >= 2 and values.is_floating_point():
                values.copy_(
                    torch.randn(values.shape, generator=Draw().manual_seed(values.numel())) / values.shape[-1] ** 0.5
                )
    cache = KVCache(config, 8, 1, 16, "cpu", torch.float32, stored)
    runner = ModelRunner(model, cache)
    ids = torch.randint(0, 290, (prompt + steps,), generator=Draw().manual_seed(3)).tolist()
    blocks = (3, 1, 6, 0, 2, 5, 7, 4)
    cuts = [0, prompt // 2 + 1, *range(prompt, prompt + steps + 1)]
    rows = [runner.step([SequenceInput(tuple(ids[a:b]), a, blocks, 0)]) for a, b in pairwise(cuts)]
    return torch.cat(rows)


@pytest.mark.parametrize("family", ["v4", "v3", "qwen3"])
def test_quantised_keys_move_logits_little(family: str, nano: Callable[[str], dict[str, Any]]) -> None:
    """Keys of e4m3 err by at most 1 in 16. With all experts chosen, so that no choice flips, the median row of logits
    moves by under 6% of its norm; with fp4 index keys, which choose other entries now and then, by under 12%."""
    config = read_config(nano(family))
    config = replace(config, moe=replace(config.moe, top_k=config.moe.num_experts, top_groups=config.moe.num_groups))
    plain = last_logits(config, CacheDtypes(), 61, 12)

    def moved(stored: CacheDtypes) -> float:
        rows = last_logits(config, stored, 61, 12)
        return ((rows - plain).norm(dim=1) / plain.norm(dim=1)).median().item()

    assert 0 < moved(CacheDtypes("fp8")) < 0.06
    if family == "v4":
        assert 0 < moved(CacheDtypes("fp8", "fp4")) < 0.12


def test_quantised_keys_do_not_depend_on_how_a_prompt_is_cut(nano_v4: dict[str, Any]) -> None:
    """A chunk reads its own keys as later steps will: rounded."""
    config, draw = read_config(nano_v4), Draw().manual_seed(3)
    prompts = [torch.randint(0, 290, (length,), generator=draw).tolist() for length in (21, 70)]
    said = []
    for step_tokens in (7, 40, 128):
        limits = {"max_num_batched_tokens": step_tokens, "kv_cache_dtype": "fp8", "index_dtype": "fp4"}
        settings = {"num_blocks": 24, "block_size": 16, "max_num_seqs": 4} | limits
        engine = Engine.build(config, EngineConfig(**settings), seed=4)
        said.append([output.token_ids for output in engine.generate(prompts, SamplingParams(12, ignore_eos=True))])
        engine.close()
    assert said[0] == said[1] == said[2]


def test_auto_keeps_keys_as_the_checkpoint_says(nano: Callable[[str], dict[str, Any]], tmp_path: Path) -> None:
    v4, v3 = read_config(nano("v4")), read_config(nano("v3"))
    assert cache_dtypes("auto", "auto", v4, None) == CacheDtypes("model", "model")

    def with_config(section: dict[str, Any]) -> Path:
        (tmp_path / "config.json").write_text(json.dumps(section))
        return tmp_path

    native = with_config({"quantization_config": {"quant_method": "fp8"}})
    assert cache_dtypes("auto", "auto", v4, native) == CacheDtypes("fp8", "fp4")
    assert cache_dtypes("model", "auto", v4, native) == CacheDtypes("model", "fp4")
    assert cache_dtypes("auto", "auto", v3, native) == CacheDtypes("model", "model")
    for section in (
        {"kv_cache_scheme": {"num_bits": 8, "type": "float"}},
        {"kv_cache_scheme": "FP8"},
        {"kv_cache_quant_algo": "FP8"},
    ):
        assert cache_dtypes("auto", "auto", v3, with_config({"quantization_config": section})) == CacheDtypes("fp8")
    with_config({})
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": {"kv_cache_quant_algo": "FP8"}}))
    assert cache_dtypes("auto", "auto", v3, tmp_path) == CacheDtypes("fp8")
    with pytest.raises(ConfigError, match="index_dtype=fp4 needs a model with an indexer"):
        cache_dtypes("auto", "fp4", v3, None)


@pytest.mark.parametrize(
    ("experts", "linears"),
    [("mxfp4", "fp8_blocks"), ("nvfp4_compressed_tensors", "fp8_whole"), ("nvfp4_modelopt", "nvfp4_modelopt"),
     ("fp8_channels", "fp8_channels"), ("int4", "mxfp8")],
)  # fmt: skip
def test_tokens_equal_those_of_the_dequantised_twin(
    experts: str, linears: str, nano_v4: dict[str, Any], tmp_path: Path
) -> None:
    stored, plain = write(nano_v4, tmp_path, experts, linears)
    kept = dict(weights.load(read_config(nano_v4), stored, dtype=torch.float32).named_parameters())
    expanded = dict(weights.load(read_config(nano_v4), stored, dtype=torch.float32, dequantize=True).named_parameters())
    twin = dict(weights.load(read_config(nano_v4), plain, dtype=torch.float32).named_parameters())
    for name, values in twin.items():
        torch.testing.assert_close(expanded[name], values, rtol=1e-6, atol=0)
    for name, form in (("layers.1.ffn.experts.w13", experts), ("layers.1.attn.wq_b.weight", linears)):
        assert (kept[name].element_size() == 1) == (form in AS_STORED), name
    exact = {"kv_cache_dtype": "model", "index_dtype": "model"}
    assert tokens(nano_v4, stored, **exact) == tokens(nano_v4, plain, **exact)


def test_formats_that_are_not_read_are_named(nano_v4: dict[str, Any], tmp_path: Path) -> None:
    save_file({"layers.0.ffn.experts.0.w1.qweight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"quantised by AWQ or GPTQ .* take it in bf16, fp8, MXFP4 or NVFP4"):
        weights.load(read_config(nano_v4), tmp_path)


def test_a_scale_of_the_wrong_shape_is_named(nano_v4: dict[str, Any], tmp_path: Path) -> None:
    stored, _ = write(nano_v4, tmp_path, "mxfp4", "fp8_blocks")
    held = load_file(stored / "model.safetensors")
    held["layers.1.attn.wq_b.weight_scale_inv"] = torch.ones(3, 5)
    save_file(held, stored / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"scale of 'layers.1.attn.wq_b.weight' has shape \[3, 5\]"):
        weights.load(read_config(nano_v4), stored)

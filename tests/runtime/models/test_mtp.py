"""Draft logits of the MTP layer against `transformers` (V3) and its layers composed by hand (V4)."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.modeling_layers import MtpModel
from transformers.models.deepseek_v4 import modeling_deepseek_v4 as v4

from runtime import weights
from runtime.cache import KVCache
from runtime.config.reading import read_config
from runtime.model_runner import ModelRunner

LENGTH = 200
NEXT = 17  # the token that follows the last one


def perturb(module: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, values in [*module.named_parameters(), *module.named_buffers()]:
            noise = torch.randn(values.shape, generator=generator)
            if "inv_freq" not in name:
                values.copy_(noise / values.shape[-1] ** 0.5 if values.ndim > 1 else 1 + 0.2 * noise)


def checkpoint_with(pair: Any, extra: dict[str, Tensor], directory: Path) -> Path:
    """The pair's checkpoint and one more file; without an index, all files of a directory count."""
    for file in pair.directory.glob("*.safetensors"):
        shutil.copy(file, directory)
    save_file({name: tensor.contiguous().clone() for name, tensor in extra.items()}, directory / "mtp.safetensors")
    return directory


def experts_apart(layer: torch.nn.Module, prefix: str, names: tuple[str, str, str]) -> dict[str, Tensor]:
    out = {}
    for index, (gate_up, down) in enumerate(
        zip(layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj, strict=True)
    ):
        for name, tensor in zip(names, (*gate_up.chunk(2), down), strict=True):
            out[f"{prefix}.experts.{index}.{name}.weight"] = tensor
    return out


def drafts(ours: Any, tokens: list[int], chunks: list[int], feed: Any) -> list[Tensor]:
    """Our draft logits at the end of each chunk; the next token is the true one."""
    cache = KVCache(ours.config, 16, 2, max(16, ours.config.block_multiple), "cpu", torch.float32)
    runner = ModelRunner(ours, cache)
    sequence = feed(tokens, tuple(range(15, -1, -1)), 1)
    out = []
    for count in chunks:
        runner.step([sequence.take(count)])
        out.append(runner.draft([[*tokens, NEXT][sequence.past]])[0])
    return out


def compare(ours: Any, tokens: list[int], theirs: Tensor, feed: Any) -> None:
    for chunks in ([LENGTH], [130, 1, 1, 1, 60, 7], [1] * LENGTH):
        ends = torch.tensor(chunks).cumsum(0) - 1
        error = (torch.stack(drafts(ours, tokens, chunks, feed)) - theirs[ends]).abs().amax(-1)
        assert (error / theirs[ends].abs().amax(-1)).max() < 1e-4


def test_v3_drafts_equal_transformers(pair_of: Callable, tokens_of: Callable, feed: Any, tmp_path: Path) -> None:
    pair = pair_of("deepseek_v3")
    mtp = MtpModel(pair.theirs, 1).eval()
    perturb(mtp.layers)
    tokens = tokens_of(LENGTH, 8)
    following = torch.tensor([[*tokens[1:], NEXT]])
    with torch.inference_mode():
        hidden = pair.theirs(torch.tensor([tokens]), output_hidden_states=True, use_cache=False).hidden_states[-1]
        positions = torch.arange(1, LENGTH + 1)[None]
        out = mtp.forward_layer(0, hidden, positions, None, input_ids=following)
        theirs = pair.theirs.lm_head(out)[0]
    extra: dict[str, Tensor] = {}
    at = f"model.layers.{pair.config.num_layers}"
    for name, values in mtp.layers[0].state_dict().items():
        if ".mlp.experts." not in name:
            extra[f"{at}.{name.replace('mtp_block.', '').replace('post_norm', 'shared_head.norm')}"] = values
    extra |= experts_apart(mtp.layers[0].mtp_block, f"{at}.mlp", ("gate_proj", "up_proj", "down_proj"))
    config = read_config(pair.directory)
    assert config.num_mtp_layers == 1
    ours = weights.load(config, checkpoint_with(pair, extra, tmp_path), dtype=torch.float32)
    compare(ours, tokens, theirs, feed)


def test_v4_drafts_equal_a_hand_composition(pair_of: Callable, tokens_of: Callable, feed: Any, tmp_path: Path) -> None:
    """h = W_h norm(streams) + W_e norm(next embedding), one window layer, collapse, norm, shared head."""
    pair = pair_of("deepseek_v4")
    config = copy.deepcopy(pair.theirs.config)
    config.layer_types, config.mlp_layer_types = ["sliding_attention"], ["moe"]
    config._attn_implementation = "eager"
    hidden = config.hidden_size
    parts = torch.nn.ModuleDict(
        {
            "layer": v4.DeepseekV4DecoderLayer(config, 0),
            "head": v4.DeepseekV4HyperHead(config),
            "enorm": v4.DeepseekV4RMSNorm(hidden, 1e-6),
            "hnorm": v4.DeepseekV4RMSNorm(hidden, 1e-6),
            "norm": v4.DeepseekV4RMSNorm(hidden, 1e-6),
            "e_proj": torch.nn.Linear(hidden, hidden, bias=False),
            "h_proj": torch.nn.Linear(hidden, hidden, bias=False),
        }
    ).eval()
    perturb(parts)
    tokens = tokens_of(LENGTH, 9)
    following = torch.tensor([[*tokens[1:], NEXT]])
    seen: list[Tensor] = []
    model = pair.theirs.model
    hook = model.hc_head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.inference_mode():
        pair.logits(tokens)
        hook.remove()
        embedded = parts["e_proj"](parts["enorm"](model.embed_tokens(following)))
        streams = parts["h_proj"](parts["hnorm"](seen[0])) + embedded[:, :, None]
        positions = torch.arange(LENGTH)[None]
        age = positions[0, :, None] - positions[0]
        mask = torch.zeros(LENGTH, LENGTH).masked_fill((age < 0) | (age >= config.sliding_window), float("-inf"))
        angles = {"main": model.rotary_emb(streams, position_ids=positions, layer_type="main")}
        streams = parts["layer"](
            streams,
            input_ids=following,
            position_embeddings=angles,
            position_ids=positions,
            attention_mask=mask[None, None],
        )
        theirs = pair.theirs.lm_head(parts["norm"](parts["head"](streams)))[0]
    layer: dict[str, Tensor] = {
        name: values for name, values in parts["layer"].state_dict().items() if ".experts." not in name
    }
    extra = {}
    for name, values in layer.items():
        native = name.replace("attn_hc.", "hc_attn_").replace("ffn_hc.", "hc_ffn_")
        extra[f"mtp.0.{native}"] = values
    for name in ("enorm", "hnorm", "norm", "e_proj", "h_proj"):
        extra[f"mtp.0.{name}.weight"] = parts[name].weight.detach()
    extra |= {f"mtp.0.{name.replace('hc_', 'hc_head_')}": values for name, values in parts["head"].state_dict().items()}
    extra |= experts_apart(parts["layer"], "mtp.0.ffn", ("w1", "w3", "w2"))
    raw = {**pair.theirs.config.to_dict(), "num_nextn_predict_layers": 1}
    ours = weights.load(read_config(raw), checkpoint_with(pair, extra, tmp_path), dtype=torch.float32)
    compare(ours, tokens, theirs, feed)


def test_a_model_without_mtp_says_so(pair_of: Callable, tokens_of: Callable, feed: Any) -> None:
    pair = pair_of("qwen3_moe")
    runner = pair.runner()
    runner.step([feed(tokens_of(3, 1), (0,), 0).take(3)])
    with pytest.raises(ValueError, match="no MTP layer"):
        runner.draft([1])

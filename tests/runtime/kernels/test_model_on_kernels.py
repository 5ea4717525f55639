"""Whole models with every op on its kernel equal the same models on the references.

The kernels are interpreted here, so dispatch, argument types and strides are those of a GPU run.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from runtime import models, ops
from runtime.cache import KVCache, SequenceInput
from runtime.config.spec import CompressedAttention, ModelConfig
from runtime.config.storage import CacheDtypes
from runtime.model_runner import ModelRunner
from runtime.presets import load_model_config

SHRUNK: dict[str, Any] = {"hidden_size": 64, "vocab_size": 96, "num_layers": 3}


def tiny(preset: str) -> ModelConfig:
    """Three layers; V4's window and heavy ratio shrunk so that twenty tokens cross every boundary."""
    config = load_model_config(preset)
    config = dataclasses.replace(
        config,
        **SHRUNK,
        mlp_kinds=config.mlp_kinds[:1] + config.mlp_kinds[-2:],
        attention_kinds=config.attention_kinds[:3],
        moe=dataclasses.replace(config.moe, intermediate_size=32),
    )
    if isinstance(config.attention, CompressedAttention):
        assert config.attention_kinds == ("window", "sparse", "heavy")
        attention = dataclasses.replace(config.attention, window=7, heavy_ratio=8, index_topk=3)
        assert config.streams is not None
        streams = dataclasses.replace(config.streams, iterations=2)
        config = dataclasses.replace(config, attention=attention, streams=streams)
    return config


def serve(model: models.Model, config: ModelConfig, stored: CacheDtypes) -> list[torch.Tensor]:
    """Two sequences: a prompt in two chunks beside another's decode, then a step of both."""
    block = 16
    runner = ModelRunner(model, KVCache(config, 8, 2, block, "cpu", torch.float32, stored), cuda_graphs=False)
    first, second = tuple(range(1, 22)), tuple(range(60, 66))
    steps = [
        [SequenceInput(first[:13], 0, (5, 2), 1)],
        [SequenceInput(first[13:20], 13, (5, 2), 1), SequenceInput(second[:5], 0, (0,), 0)],
        [SequenceInput(first[20:21], 20, (5, 2), 1), SequenceInput(second[5:6], 5, (0,), 0)],
    ]
    return [runner.step(step) for step in steps]


@pytest.mark.parametrize(
    ("preset", "stored"),
    [
        ("tiny-v4", CacheDtypes()),
        ("tiny-v4", CacheDtypes("fp8", "fp4")),
        ("tiny-v3", CacheDtypes()),
        ("tiny-v3", CacheDtypes("fp8")),
        ("tiny-qwen3-moe", CacheDtypes()),
        ("tiny-qwen3-moe", CacheDtypes("fp8")),
    ],
)
def test_logits_on_kernels_equal_those_on_references(
    preset: str, stored: CacheDtypes, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device.type == "cuda":
        pytest.skip("the references run on the CPU; test_gpu.py compares devices")
    config = tiny(preset)
    model = models.build(config, seed=3)
    with torch.no_grad():
        for values in model.parameters():
            if values.ndim >= 2 and values.is_floating_point():  # weights that let every branch show
                values.copy_(torch.randn_like(values) / values.shape[-1] ** 0.5)
    expected = serve(model, config, stored)
    monkeypatch.setattr(ops, "uses_kernels", lambda tensor: True)
    got = serve(model, config, stored)
    for ours, theirs in zip(got, expected, strict=True):
        assert theirs.abs().max() > 0.1
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)

"""Seeded random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from runtime import models
from runtime.cache import KVCache, SequenceInput
from runtime.layers.expert_parallel import ExpertGroup
from runtime.layers.ranks import Ranks
from runtime.model_runner import ModelRunner


def test_weights_depend_on_the_seed_alone(pair: Any) -> None:
    first, again, other = (dict(models.build(pair.config, seed).named_parameters()) for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embed"], other["embed"])
    assert first["embed"].std() == pytest.approx(0.02, rel=0.05)


def test_a_rank_gets_its_share_of_the_same_experts(pair: Any) -> None:
    whole = dict(models.build(pair.config, 3).named_parameters())
    share = dict(models.build(pair.config, 3, ranks=Ranks(experts=ExpertGroup(1, 4))).named_parameters())
    name = "layers.2.ffn.experts.w13"
    quarter = len(whole[name]) // 4
    assert torch.equal(share[name], whole[name][quarter : 2 * quarter])
    assert torch.equal(share["layers.2.ffn.gate.weight"], whole["layers.2.ffn.gate.weight"])


def test_bfloat16_model_stays_near_float32(pair: Any) -> None:
    """Same weights rounded to 8 bits of mantissa; the cache in bfloat16 too."""
    narrow = models.build(pair.config, 5, dtype=torch.bfloat16)
    wide = models.build(pair.config, 5)
    with torch.no_grad():
        for mine, given in zip(wide.parameters(), narrow.parameters(), strict=True):
            mine.copy_(given)
    tokens = tuple(range(1, 150))
    logits = []
    for model, dtype in ((narrow, torch.bfloat16), (wide, torch.float32)):
        runner = ModelRunner(model, KVCache(pair.config, 12, 1, pair.block_size, "cpu", dtype))
        logits.append(runner.step([SequenceInput(tokens, 0, tuple(range(12)), 0)])[0])
    assert torch.nn.functional.cosine_similarity(*logits, dim=0) > 0.995

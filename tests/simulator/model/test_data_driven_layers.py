"""Layer properties that no preset has yet are data: a model with cross-layer KV reuse and fp4 entries."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hw_profiles.catalog import load
from simulator.model import kv, presets
from simulator.model import parameter_counts as counts
from simulator.model.architecture import AttentionSpec, LayerSpec, ModelSpec
from simulator.model.memory import plan_memory
from simulator.model.parallelism import Parallelism

LAYERS, STORED_EVERY = 40, 4


@pytest.fixture
def reuse_model() -> ModelSpec:
    """40 layers of ratio 4; every fourth stores 288 B fp4 entries and 68 B keys, the rest read those.

    Entry sizes of DeepSeek V4.1 (window 528 B, compressed 288 B, index 68 B); which layers store is invented,
    only their number (10) follows from the published 890 B per token.
    """
    base = presets.load_model("deepseek-v4-flash")
    csa = base.layers[2]
    assert csa.attention.indexer is not None

    def attention(i: int) -> AttentionSpec:
        assert csa.attention.indexer is not None
        source = i - i % STORED_EVERY
        own = source == i
        return replace(
            csa.attention,
            entry_bytes=288.0,
            window_entry_bytes=528.0,
            kv_dtype="fp4",
            kv_source_layer=None if own else source,
            indexer=replace(csa.attention.indexer, shares_layer=None if own else source),
        )

    layers: list[LayerSpec] = [replace(csa, attention=attention(i)) for i in range(LAYERS)]
    return replace(base, name="reuse", layers=tuple(layers), draft=None)


def test_global_kv_is_890_bytes_a_token(reuse_model: ModelSpec) -> None:
    assert kv.kv_bytes_per_token(reuse_model) == 890
    assert kv.kv_bytes(reuse_model, 1024) == 890 * 1024


def test_every_layer_keeps_its_own_window(reuse_model: ModelSpec) -> None:
    assert sum(kv.window_bytes(layer.attention) for layer in reuse_model.layers) == LAYERS * 128 * 528


def test_a_model_without_draft_head_counts_none(reuse_model: ModelSpec) -> None:
    assert counts.draft_params(reuse_model) == 0
    cut = Parallelism()
    plain, drafting = (plan_memory(reuse_model, load("b300"), cut, draft_tokens=drafts) for drafts in (0, 1))
    rings = sum(kv.state_bytes(layer.attention) for layer in reuse_model.layers)
    assert drafting.kv_bytes_per_sequence - plain.kv_bytes_per_sequence == rings


def test_ratios_may_differ_from_layer_to_layer(reuse_model: ModelSpec) -> None:
    first = reuse_model.layers[0]
    sparse = replace(first, attention=replace(first.attention, ratio=16))
    changed = replace(reuse_model, layers=(sparse, *reuse_model.layers[1:]))
    assert kv.kv_bytes_per_token(changed) == 890 - (288 + 68) * (1 / 4 - 1 / 16)

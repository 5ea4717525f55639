"""KV of a sequence as an engine's allocator lays it out: in pages, of one size for unlike layers where it pads them.

An engine with one allocator for all layers (vLLM's hybrid KV cache manager) gives every layer pages of the same bytes.
Layers of one kind of cache form groups of equal size, the last filled up with layers that are not there; a recurrent
state takes a whole page, for which pages of attention are made long enough; a page of compressed entries is as large
as the largest for the same tokens, however few entries it has. Index keys have pages of their own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from simulator.model.architecture import BYTE, F32_BYTES, Indexer, LayerSpec
from simulator.model.engine_memory import EngineMemory
from simulator.model.kv import PAGE_TOKENS, state_bytes, window_bytes
from simulator.model.sharding import Cut

# Kinds of cache whose layers are fewer than this many times those of the rarest share its groups; assumed, after
# vLLM's rule for one size of groups.
NEARLY_AS_MANY = 1.25

Kinds = Sequence[tuple[LayerSpec, int]]  # layers that are alike, with how many there are of each


@dataclass(frozen=True)
class KvLayout:
    """KV of one sequence on one accelerator."""

    bytes_per_token: float  # growth
    bytes_per_sequence: float  # windows and states, whatever its length
    page_tokens: int  # by which it grows
    window_bytes_per_token: float  # of the window layers, while its tokens are computed


def kv_layout(layers: Kinds, cut: Cut, engine: EngineMemory, drafts: bool = False, dcp: int = 1) -> KvLayout:
    """Layout of the KV of `layers`, each with how many there are of it. dcp: tensor-parallel ranks over which the
    tokens of copied KV heads are spread. drafts: see `state_bytes`."""
    if engine.pads_pages and _kinds(layers) > 1:
        return _padded(layers, cut, engine, drafts, dcp)
    growth = sum(cut.stored_bytes(layer.attention) * count for layer, count in layers) / dcp
    fixed = sum(_fixed_bytes(layer, cut, drafts) * count for layer, count in layers)
    window_token = sum(_window_token_bytes(layer, cut) * count for layer, count in layers)
    return KvLayout(growth, fixed, engine.page_tokens, window_token)


def _state_bytes(layer: LayerSpec, cut: Cut, drafts: bool) -> float:
    """A recurrent state is cut by head, as the projections that feed it are; compressor rows are copied. [B]"""
    attention = layer.attention
    return state_bytes(attention, drafts) / (1 if attention.compressor else cut.tp)


def _fixed_bytes(layer: LayerSpec, cut: Cut, drafts: bool) -> float:
    attention = layer.attention
    return window_bytes(attention) * cut.kv_share(attention) + _state_bytes(layer, cut, drafts)


def _window_token_bytes(layer: LayerSpec, cut: Cut) -> float:
    attention = layer.attention
    return attention.window_entry_bytes * cut.kv_share(attention) if attention.window else 0.0


def _entries(layer: LayerSpec) -> bool:
    return bool(layer.attention.ratio) and layer.attention.kv_source_layer is None


def _window(layer: LayerSpec) -> bool:
    return bool(layer.attention.window and layer.attention.window_entry_bytes)


def _recurrent(layer: LayerSpec) -> bool:
    return layer.attention.compressor is None and layer.attention.state_bytes > 0


def _counts(layers: Kinds) -> Counter[str]:
    """Layers of each kind of cache."""
    found: Counter[str] = Counter()
    for layer, count in layers:
        if _entries(layer):
            found[f"entries of {layer.attention.ratio}"] += count
        found["window"] += count * _window(layer)
        found["state"] += count * _recurrent(layer)
    return +found


def _kinds(layers: Kinds) -> int:
    return len(_counts(layers))


def _padded(layers: Kinds, cut: Cut, engine: EngineMemory, drafts: bool, dcp: int) -> KvLayout:
    counts = _counts(layers)
    rarest = min(counts.values())
    group = max(count for count in counts.values() if count < NEARLY_AS_MANY * rarest or count == rarest)
    filled = {kind: math.ceil(count / group) * group / count for kind, count in counts.items()}
    compressed = any(layer.attention.ratio > 1 for layer, _ in layers)
    page_tokens = _page_tokens(layers, cut, engine, drafts) if not compressed else PAGE_TOKENS
    pages = [_page_bytes(layer, cut, page_tokens) for layer, _ in layers if _entries(layer)]
    page = max(pages, default=0.0)  # of a layer [B]
    growth = fixed = window_token = 0.0
    for layer, count in layers:
        attention = layer.attention
        if _entries(layer):
            own = _page_bytes(layer, cut, page_tokens)
            keys = _key_bytes(attention.indexer, engine) / attention.ratio if attention.indexer else 0.0
            held = page if compressed else own
            growth += (held / page_tokens * filled[f"entries of {attention.ratio}"] + keys) * count / dcp
        if _window(layer) and attention.window:
            entries = _window_entries(attention.window, cut, layer, page)
            token = _window_token_bytes(layer, cut) * filled["window"] * count
            fixed += entries * token
            window_token += token
        if _recurrent(layer):
            fixed += max(page, _state_bytes(layer, cut, drafts)) * filled["state"] * count
        elif attention.compressor:
            fixed += _state_bytes(layer, cut, drafts) * count
    return KvLayout(growth, fixed, page_tokens, window_token)


def _key_bytes(indexer: Indexer, engine: EngineMemory) -> float:
    """Of one entry, as the engine keeps it. [B]"""
    if not engine.fp8_index_keys or not indexer.key_bytes:
        return indexer.key_bytes
    return max(indexer.key_bytes, indexer.head_dim * BYTE + F32_BYTES)


def _page_bytes(layer: LayerSpec, cut: Cut, page_tokens: int) -> float:
    """Entries of a page on one accelerator, index keys left out. [B]"""
    attention = layer.attention
    return page_tokens / attention.ratio * attention.entry_bytes * cut.kv_share(attention)


def _page_tokens(layers: Kinds, cut: Cut, engine: EngineMemory, drafts: bool) -> int:
    """Tokens of a page long enough for the largest recurrent state, in steps of the engine's own."""
    state = max((_state_bytes(layer, cut, drafts) for layer, _ in layers if _recurrent(layer)), default=0.0)
    entry = max((_page_bytes(layer, cut, engine.page_tokens) for layer, _ in layers if _entries(layer)), default=0.0)
    return engine.page_tokens * max(1, math.ceil(state / entry)) if entry else engine.page_tokens


def _window_entries(window: int, cut: Cut, layer: LayerSpec, page: float) -> int:
    """Tokens of a window in whole pages: one more than it fills, for it starts inside one."""
    entry = layer.attention.window_entry_bytes * cut.kv_share(layer.attention)
    per_page = max(1, int(page / entry)) if page else window
    return (math.ceil((window - 1) / per_page) + 1) * per_page

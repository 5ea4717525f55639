"""Parameters and stored weight bytes of a model. Counts exclude the draft head unless named `draft_`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from simulator.model.architecture import LayerSpec, Linear, ModelSpec


def _linears(layer: LayerSpec) -> tuple[Linear, ...]:
    return layer.attention.linears + layer.ffn.linears


def _fixed_params(layer: LayerSpec) -> int:
    """Parameters of a layer that every token passes: all but the routed experts."""
    mixing = 2 * layer.mixing.params_per_site if layer.mixing else 0
    others = layer.attention.other_params + layer.ffn.other_params + layer.norm_params + mixing
    return sum(linear.params for linear in _linears(layer)) + others


def _other_bytes(layer: LayerSpec) -> float:
    """Bytes of a layer's norms, sinks, tables, router bias and stream mixing. [B]"""
    mixing = 2 * layer.mixing.param_bytes_per_site if layer.mixing else 0.0
    others = layer.attention.other_param_bytes + layer.ffn.other_param_bytes
    return others + layer.norm_param_bytes + mixing


def _layer_params(layers: Iterable[LayerSpec]) -> int:
    return sum(_fixed_params(layer) + layer.ffn.experts * layer.ffn.expert_params for layer in layers)


def _bytes_by_dtype(layers: Sequence[LayerSpec], linears: Sequence[Linear], other_bytes: float) -> dict[str, float]:
    found: defaultdict[str, float] = defaultdict(float)
    for linear in [*linears, *(linear for layer in layers for linear in _linears(layer))]:
        found[linear.dtype] += linear.weight_bytes
    for layer in layers:
        if layer.ffn.experts:
            found[layer.ffn.expert_dtype] += layer.ffn.experts * layer.ffn.expert_bytes
    found["other"] = other_bytes + sum(_other_bytes(layer) for layer in layers)
    return dict(found)


def params_total(model: ModelSpec) -> int:
    """All parameters; a tied embedding counts once."""
    embedding = 0 if model.tied_embedding else model.embedding.params
    return embedding + model.lm_head.params + model.other_params + _layer_params(model.layers)


def params_active(model: ModelSpec) -> int:
    """Parameters that one token uses, the input embedding included."""
    embedding = 0 if model.tied_embedding else model.embedding.params
    return embedding + params_active_no_embedding(model)


def params_active_no_embedding(model: ModelSpec) -> int:
    """Parameters that one token is multiplied with: the LM head counts, the row look-up does not."""
    layers = sum(_fixed_params(layer) + layer.ffn.experts_per_token * layer.ffn.expert_params for layer in model.layers)
    return model.lm_head.params + model.other_params + layers


def draft_params(model: ModelSpec) -> int:
    """Parameters of the draft head, without the embedding and LM head that it shares; 0 without one."""
    if model.draft is None:
        return 0
    linears = sum(linear.params for linear in model.draft.linears)
    return linears + model.draft.other_params + _layer_params(model.draft.layers)


def weight_bytes_by_dtype(model: ModelSpec) -> dict[str, float]:
    """Stored bytes by storage type, scales included; norms, tables and stream mixing under "other". [B]"""
    ends = [model.lm_head] if model.tied_embedding else [model.embedding, model.lm_head]
    return _bytes_by_dtype(model.layers, ends, model.other_param_bytes)


def weight_bytes_by_tensor(model: ModelSpec) -> dict[str, float]:
    """Stored bytes by what tensors do, scales included; "other": norms, tables, stream mixing. [B]"""
    found: defaultdict[str, float] = defaultdict(float)
    for layer in model.layers:
        found["attention"] += sum(linear.weight_bytes for linear in layer.attention.linears)
        for linear in layer.ffn.linears:
            found[linear.tensor or "router"] += linear.weight_bytes
        found["expert"] += layer.ffn.experts * layer.ffn.expert_bytes
        found["other"] += _other_bytes(layer)
    found["other"] += model.other_param_bytes
    found["lm_head"] = model.lm_head.weight_bytes
    found["embedding"] = 0.0 if model.tied_embedding else model.embedding.weight_bytes
    return {kind: size for kind, size in found.items() if size}


def weight_bytes(model: ModelSpec) -> float:
    """Bytes of the weights as stored, scales included. [B]"""
    return sum(weight_bytes_by_dtype(model).values())


def draft_weight_bytes(model: ModelSpec) -> float:
    """Bytes of the draft head as stored; 0 without one. [B]"""
    if model.draft is None:
        return 0.0
    draft = model.draft
    return sum(_bytes_by_dtype(draft.layers, draft.linears, draft.other_param_bytes).values())

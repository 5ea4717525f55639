"""What checkpoints call the modules of a layer, so that their lists of quantised or spared modules can be read.

One projection has several names: families differ in containers, exporters in prefixes, engines fuse projections.
"""

from __future__ import annotations

import re
from functools import cache

from simulator.model.architecture import TensorKind

# Whatever stands before `layers.N.`; patterns are tried with each.
PREFIXES = ("model.layers", "language_model.model.layers", "model.language_model.layers", "layers", "backbone.layers")
DRAFT_PREFIXES = ("mtp.layers", "mtp", "model.mtp.layers")  # of the draft head's layers, counted from 0
HEAD_NAMES = ("lm_head", "language_model.lm_head", "model.lm_head", "head")

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)(?:\.(.+))?$")

Containers = dict[TensorKind, tuple[str, ...]]
_USUAL: Containers = {
    "attention": ("self_attn", "attn", "attention", "linear_attn"),
    "dense_ffn": ("mlp", "ffn"),
    "expert": ("mlp.experts.0", "ffn.experts.0"),
    "shared_expert": ("mlp.shared_experts", "mlp.shared_expert", "ffn.shared_experts"),
}
_BLOCK_SPARSE: Containers = {
    "expert": ("block_sparse_moe.experts.0", "mlp.experts.0"),
    "shared_expert": ("block_sparse_moe.shared_experts", "mlp.shared_experts"),
}
_STEP: Containers = {"expert": ("moe", "mlp.experts.0"), "shared_expert": ("share_expert", "mlp.shared_experts")}
_BY_FAMILY: dict[str, Containers] = {
    "mixtral": _BLOCK_SPARSE,
    "phimoe": _BLOCK_SPARSE,
    "minimax_m2": _BLOCK_SPARSE,
    "minimax_m3": _BLOCK_SPARSE,
    "minimax": _BLOCK_SPARSE,
    "granitemoe": _BLOCK_SPARSE,
    "kimi_linear": {
        **_BLOCK_SPARSE,
        "expert": ("block_sparse_moe.experts.0", "mlp.experts.0"),
    },
    "llama4_text": {
        "dense_ffn": ("feed_forward",),
        "expert": ("feed_forward.experts.0",),
        "shared_expert": ("feed_forward.shared_expert",),
    },
    "nemotron_h": {
        "attention": ("mixer",),
        "dense_ffn": ("mixer",),
        "expert": ("mixer.experts.0",),
        "shared_expert": ("mixer.shared_experts", "mixer"),
    },
    "gemma4_text": {"dense_ffn": ("mlp",), "expert": ("experts.0", "moe.experts.0", "moe")},
    "step3p7": _STEP,
    "step3_text": _STEP,
    "hunyuan_v1_moe": {"shared_expert": ("mlp.shared_mlp",)},
    "longcat_flash": {"dense_ffn": ("mlps.0", "mlps.1"), "attention": ("self_attn.0", "self_attn.1")},
}

_GATE_UP = ("gate_proj", "up_proj", "gate_up_proj", "w1", "w3")
_DOWN = ("down_proj", "w2")
_LEAVES: dict[str, tuple[str, ...]] = {
    "q_proj": ("q_proj", "qkv_proj"),
    "k_proj": ("k_proj", "qkv_proj"),
    "v_proj": ("v_proj", "qkv_proj"),
    "o_proj": ("o_proj", "out_proj"),
    "kv_a_proj": ("kv_a_proj_with_mqa",),
    "qkv_proj": ("in_proj_qkv", "in_proj_qkvz", "qkv_proj"),
    "gate_proj": ("in_proj_z", "in_proj_qkvz", "gate_proj", "g_proj"),
    "indexer_wq_b": ("indexer.wq_b",),
    "indexer_wk": ("indexer.wk",),
    "indexer_wq": ("indexer.q_proj", "index_q_proj"),
    "in_proj": ("in_proj",),
    "latent_down": ("fc1_latent_proj",),
    "latent_up": ("fc2_latent_proj",),
}


def containers(family: str, kind: TensorKind) -> tuple[str, ...]:
    """What the family calls the module that holds a tensor kind, below the layer."""
    return _BY_FAMILY.get(family, {}).get(kind) or _USUAL[kind]


@cache
def names_below_layer(family: str, kind: TensorKind, linear: str) -> tuple[str, ...]:
    """Names of a projection below its layer.

    >>> names_below_layer("llama", "dense_ffn", "dense_down")
    ('mlp.down_proj', 'mlp.w2', 'ffn.down_proj', 'ffn.w2')
    """
    leaves: tuple[str, ...]
    if linear.endswith("gate_up"):
        leaves = _GATE_UP
    elif linear == "up" or linear.endswith("_up_alone"):
        leaves = ("up_proj", "w1")
    elif linear.endswith("down") and linear not in _LEAVES:
        leaves = _DOWN
    else:
        leaves = _LEAVES.get(linear, (linear,))
    return tuple(f"{container}.{leaf}" for container in containers(family, kind) for leaf in leaves)


def layer_of(name: str) -> tuple[int, str] | None:
    """Layer and the name below it; None for a module outside the layers.

    >>> layer_of("model.language_model.layers.12.mlp.experts"), layer_of("lm_head")
    ((12, 'mlp.experts'), None)
    """
    found = _LAYER.search(name)
    return (int(found[1]), found[2] or "") if found else None

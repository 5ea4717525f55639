"""What tells families of grouped-query attention apart: one row a family.

Sources: transformers, the model of each name; MiMo-7B is a Qwen2 with its own name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Flag = bool | str  # fixed, or the key of the configuration that says so (absent: false)
HeadNorms = Literal["none", "per_head", "all_heads"]


@dataclass(frozen=True)
class Routed:
    """Keys of routed experts; of each tuple the first that the configuration has counts.

    shared: keys of the number of shared experts, each as wide as a routed one; shared_width: keys of their width.
    """

    experts: tuple[str, ...] = ("num_experts", "n_routed_experts", "num_local_experts")
    chosen: tuple[str, ...] = ("num_experts_per_tok",)
    width: tuple[str, ...] = ("moe_intermediate_size",)
    shared: tuple[str, ...] = ()
    shared_width: tuple[str, ...] = ()
    shared_gate: bool = False  # a gate of one output before the shared expert
    correction: bool = False  # a bias of the router's choice for each expert
    gated: bool = True
    dense_width: tuple[str, ...] = ("intermediate_size",)  # of the layers without routed experts
    first_dense: int = 0  # dense layers before the routed ones, where the configuration does not say


@dataclass(frozen=True)
class Traits:
    """A family.

    norms: of the hidden width in a layer; norm_bias: they are LayerNorms with a bias.
    window_every: of so many layers the last is full where the configuration has a window but no list; 0: all windowed;
    None: the window counts only where a list of layer types says so.
    tied: embedding where the configuration does not say. defaults: of keys that configurations leave out.
    """

    head_norms: HeadNorms = "none"
    qkv_bias: Flag = False
    out_bias: Flag = False
    mlp_bias: Flag = False
    sinks: bool = False
    output_gate: bool = False  # as wide as the heads
    norms: int = 2
    norm_bias: bool = False
    head_bias: bool = False
    gated: bool = True
    ffn_extra: int = 0  # parameters of a learned activation
    window_every: int | None = None
    tied: bool = False
    routed: Routed | None = None
    defaults: dict[str, Any] = field(default_factory=dict)


_BIASES: dict[str, Any] = {"qkv_bias": "attention_bias", "out_bias": "attention_bias", "mlp_bias": "mlp_bias"}
_GEMMA_SIZES = {"head_dim": 256}
TRAITS: dict[str, Traits] = {
    "mimo": Traits(qkv_bias=True),
    "ministral": Traits(window_every=0),
    "ministral3": Traits(window_every=0),
    "internlm3": Traits(qkv_bias="qkv_bias", out_bias="bias", mlp_bias="bias"),
    "smollm3": Traits(**_BIASES, tied=True),
    "seed_oss": Traits(
        qkv_bias="attention_bias", out_bias="attention_out_bias", mlp_bias="mlp_bias", defaults={"attention_bias": True}
    ),
    "granite": Traits(**_BIASES),
    "exaone": Traits(),
    "cwm": Traits(),
    "iquestcoder": Traits(**_BIASES),
    "ernie4_5": Traits(qkv_bias="use_bias", out_bias="use_bias", mlp_bias="use_bias", tied=True),
    "hunyuan_v1_dense": Traits(head_norms="per_head", qkv_bias="attention_bias", out_bias="attention_bias"),
    "exaone4": Traits(head_norms="per_head", window_every=4),
    "glm": Traits(qkv_bias="attention_bias", defaults={"attention_bias": True}),
    "glm4v_text": Traits(qkv_bias=True, norms=4),
    "glm4": Traits(qkv_bias="attention_bias", norms=4, defaults={"attention_bias": True}),
    "phi3": Traits(window_every=0),
    "olmo2": Traits(head_norms="all_heads", qkv_bias="attention_bias", out_bias="attention_bias"),
    "olmo3": Traits(head_norms="all_heads", qkv_bias="attention_bias", out_bias="attention_bias", window_every=4),
    "cohere": Traits(qkv_bias="attention_bias", out_bias="attention_bias", norms=1, tied=True),
    "cohere2": Traits(qkv_bias="attention_bias", out_bias="attention_bias", norms=1, window_every=4, tied=True),
    "arcee": Traits(**_BIASES, gated=False),
    "apertus": Traits(
        head_norms="per_head", qkv_bias="attention_bias", out_bias="attention_bias", gated=False, ffn_extra=2
    ),
    "starcoder2": Traits(
        qkv_bias="use_bias", out_bias="use_bias", mlp_bias="use_bias", norm_bias=True, gated=False, window_every=0,
        tied=True, defaults={"use_bias": True},
    ),
    "gemma": Traits(qkv_bias="attention_bias", out_bias="attention_bias", tied=True, defaults=_GEMMA_SIZES),
    "gemma2": Traits(
        qkv_bias="attention_bias", out_bias="attention_bias", norms=4, window_every=2, tied=True, defaults=_GEMMA_SIZES
    ),
    # Published gemma 3 configurations leave out what equals these, the defaults of transformers.
    "gemma3_text": Traits(
        head_norms="per_head", qkv_bias="attention_bias", out_bias="attention_bias", norms=4, window_every=6, tied=True,
        defaults={
            "head_dim": 256, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 262208,
            "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "sliding_window": 4096,
            "max_position_embeddings": 131072,
        },
    ),
    "qwen2_moe": Traits(
        qkv_bias=True,
        routed=Routed(shared_width=("shared_expert_intermediate_size",), shared_gate=True),
    ),
    "olmoe": Traits(
        head_norms="all_heads", qkv_bias="attention_bias", out_bias="attention_bias",
        routed=Routed(width=("intermediate_size",)),
    ),
    "flex_olmo": Traits(
        head_norms="all_heads", qkv_bias="attention_bias", out_bias="attention_bias",
        routed=Routed(width=("intermediate_size",)),
    ),
    "phimoe": Traits(
        qkv_bias="attention_bias", out_bias="attention_bias", norm_bias=True, head_bias=True, window_every=0,
        routed=Routed(experts=("num_local_experts",), width=("intermediate_size",)),
    ),
    "granitemoe": Traits(
        qkv_bias="attention_bias", out_bias="attention_bias",
        routed=Routed(experts=("num_local_experts",), width=("intermediate_size",)),
    ),
    "granitemoeshared": Traits(
        qkv_bias="attention_bias", out_bias="attention_bias",
        routed=Routed(
            experts=("num_local_experts",), width=("intermediate_size",), shared_width=("shared_intermediate_size",)
        ),
    ),
    "dots1": Traits(
        head_norms="per_head", qkv_bias="attention_bias", out_bias="attention_bias",
        routed=Routed(experts=("n_routed_experts",), shared=("n_shared_experts",), correction=True),
    ),
    "ernie4_5_moe": Traits(
        qkv_bias="use_bias", out_bias="use_bias", tied=True,
        routed=Routed(
            experts=("moe_num_experts",), chosen=("moe_k",), shared=("moe_num_shared_experts",), correction=True,
            first_dense=1,
        ),
    ),
    "hunyuan_v1_moe": Traits(
        head_norms="per_head", qkv_bias="attention_bias", out_bias="attention_bias",
        routed=Routed(
            experts=("num_experts",), chosen=("moe_topk", "num_experts_per_tok"),
            width=("intermediate_size",), shared_width=("intermediate_size",),
        ),
    ),
    "hy_v3": Traits(
        head_norms="per_head", qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias",
        routed=Routed(shared=("num_shared_experts",), correction=True, first_dense=1),
        defaults={"num_shared_experts": 1},
    ),
    "exaone_moe": Traits(
        head_norms="per_head", window_every=4,
        routed=Routed(shared=("num_shared_experts",), correction=True, first_dense=1),
        defaults={"num_shared_experts": 1},
    ),
    "solar_open": Traits(
        routed=Routed(experts=("n_routed_experts",), shared=("n_shared_experts",), correction=True),
        defaults={"n_shared_experts": 1},
    ),
    "glm4v_moe_text": Traits(
        qkv_bias="attention_bias", defaults={"attention_bias": True},
        routed=Routed(experts=("n_routed_experts",), shared=("n_shared_experts",), correction=True, first_dense=1),
    ),
    "afmoe": Traits(
        head_norms="per_head", output_gate=True, norms=4, window_every=4,
        routed=Routed(shared=("num_shared_experts",), correction=True),
    ),
    "llama4_text": Traits(
        qkv_bias="attention_bias", out_bias="attention_bias",
        routed=Routed(
            experts=("num_local_experts",), width=("intermediate_size",), shared_width=("intermediate_size",),
            dense_width=("intermediate_size_mlp",),
        ),
    ),
}  # fmt: skip

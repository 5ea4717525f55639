"""What a model is made of, frozen. `runtime.config.reading` reads it from a Hugging Face config.json."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

AttentionKind = Literal["window", "sparse", "heavy", "latent", "grouped"]
MlpKind = Literal["hash_moe", "moe", "dense"]


class ConfigError(ValueError):
    """A model configuration that cannot be run; the message names the field, its value and the way out."""


@dataclass(frozen=True)
class YarnScaling:
    """Context extension of RoPE (Peng et al., "YaRN", 2023). `attention_factor` multiplies cos and sin."""

    factor: float
    original_max_positions: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0


@dataclass(frozen=True)
class RopeConfig:
    theta: float
    dim: int  # rotated dimensions of a head, the trailing ones
    interleaved: bool  # pairs are (2 i, 2 i + 1); else (i, dim / 2 + i)
    yarn: YarnScaling | None = None


@dataclass(frozen=True)
class CompressedAttention:
    """DeepSeek V4: one KV head read as key and value, a window, and entries of a compressor."""

    num_heads: int
    head_dim: int
    q_lora_rank: int
    o_groups: int
    o_lora_rank: int
    window: int
    sparse_ratio: int  # tokens an entry in a `sparse` layer (CSA)
    heavy_ratio: int  # tokens an entry in a `heavy` layer (HCA)
    index_heads: int
    index_dim: int
    index_topk: int
    rope: RopeConfig  # window-only layers
    compress_rope: RopeConfig  # layers with a compressor


@dataclass(frozen=True)
class LatentAttention:
    """DeepSeek V3 (MLA): all heads share one latent vector and one rotated key a token."""

    num_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    nope_dim: int
    rope_dim: int
    v_dim: int
    scale: float  # of q k, YaRN's square included
    has_bias: bool
    rope: RopeConfig

    @property
    def latent_dim(self) -> int:
        """Values a token keeps in the cache."""
        return self.kv_lora_rank + self.rope_dim


@dataclass(frozen=True)
class GroupedAttention:
    """GQA with per-head norms of q and k (Qwen3)."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    has_bias: bool
    rope: RopeConfig


@dataclass(frozen=True)
class MoEConfig:
    num_experts: int
    top_k: int
    intermediate_size: int
    num_shared: int
    scoring: Literal["softmax", "sigmoid", "sqrtsoftplus"]
    normalize: bool
    scale: float
    has_bias: bool  # a correction added to scores for the choice alone
    num_groups: int = 1
    top_groups: int = 1
    swiglu_limit: float | None = None


@dataclass(frozen=True)
class StreamsConfig:
    """mHC: `mult` residual streams, mixed by a matrix made doubly stochastic in `iterations` Sinkhorn steps."""

    mult: int
    iterations: int
    eps: float


@dataclass(frozen=True)
class ModelConfig:
    """One model. `attention_kinds` and `mlp_kinds` have one item a layer; MTP layers are not among them."""

    family: Literal["deepseek_v4", "deepseek_v3", "qwen3_moe"]
    vocab_size: int
    hidden_size: int
    num_layers: int
    max_position_embeddings: int
    rms_norm_eps: float
    tied_embeddings: bool
    eos_token_ids: tuple[int, ...]
    attention: CompressedAttention | LatentAttention | GroupedAttention
    attention_kinds: tuple[AttentionKind, ...]
    mlp_kinds: tuple[MlpKind, ...]
    moe: MoEConfig
    dense_intermediate_size: int | None
    streams: StreamsConfig | None
    num_mtp_layers: int

    @property
    def block_multiple(self) -> int:
        """A cache block must be a whole number of this many tokens, so that it holds whole entries."""
        if not isinstance(self.attention, CompressedAttention):
            return 1
        ratios = {"sparse": self.attention.sparse_ratio, "heavy": self.attention.heavy_ratio}
        return math.lcm(*(ratios[kind] for kind in self.attention_kinds if kind in ratios))

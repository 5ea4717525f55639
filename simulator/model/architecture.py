"""What a model is made of, layer by layer: the data that op counts, memory and KV sizes are computed from.

Nothing here knows a model family: families are read into these records by `simulator.model.families`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

WeightDtype = Literal["fp32", "bf16", "fp8", "int8", "fp4", "int4"]


@dataclass(frozen=True)
class Linear:
    """A projection of shape [inputs, outputs], stored in `dtype` and multiplied in `compute` precision."""

    name: str
    inputs: int
    outputs: int
    dtype: WeightDtype
    groups: int = 1  # block-diagonal: each group maps inputs/groups to outputs/groups
    shard: Literal["column", "row", "replicated"] = "replicated"  # how tensor parallelism cuts it
    bias: bool = False

    @property
    def params(self) -> int:
        return self.inputs * self.outputs // self.groups + (self.outputs if self.bias else 0)


@dataclass(frozen=True)
class Indexer:
    """Lightning indexer picking `topk` entries for the core; its linears are in AttentionSpec.linears."""

    heads: int
    head_dim: int
    topk: int
    key_bytes: float  # per entry, with scales
    dtype: WeightDtype  # precision of its score product
    shares_layer: int | None = None  # takes the selection of that layer instead of scoring itself


@dataclass(frozen=True)
class AttentionSpec:
    """Attention of one layer.

    A query at position p reads min(p, window) recent tokens (all p if window is None and ratio is 1),
    and, if `ratio` r is set, compressed entries: min(floor(p / r), topk) of them.
      full GQA / MLA:  window None, ratio 1, indexer None  -> p entries
      sliding window:  window W,    ratio 0                -> min(p, W)
      DSA (V3.2):      window None, ratio 1, indexer       -> min(p, topk)
      CSA (V4):        window 128,  ratio 4, indexer       -> min(p, 128) + min(floor(p/4), topk)
      HCA (V4):        window 128,  ratio 128              -> min(p, 128) + floor(p/128)
    """

    kind: str  # label for reports: "gqa", "mla", "dsa", "swa", "csa", "hca"
    heads: int
    kv_heads: int
    qk_dim: int  # per-head width of the score product, as the kernel runs it (MLA decode: 576)
    v_dim: int  # per-head width of the value product, as the kernel runs it (MLA decode: 512)
    prefill_qk_dim: int  # the same in prefill (MLA decompressed: 192 and 128)
    prefill_v_dim: int
    window: int | None
    ratio: int  # 0: no entries beyond the window; 1: every token; r: one entry per r tokens
    entry_bytes: float  # stored KV of one entry of this layer, all KV heads, scales included
    window_entry_bytes: float  # stored KV of one window token (0 where the window reads plain entries)
    state_bytes: float  # constant per sequence: compressor rings, recurrent state
    linears: tuple[Linear, ...]  # every projection of the layer's attention, indexer and compressor included
    other_params: int  # norms, sinks, position tables
    other_param_bytes: float
    indexer: Indexer | None = None
    kv_source_layer: int | None = None  # reads the KV of that layer and stores none itself
    core_dtype: WeightDtype = "bf16"  # precision of the attention core's matrix products

    @property
    def linear_params(self) -> int:
        return sum(linear.params for linear in self.linears)


@dataclass(frozen=True)
class MoeSpec:
    """Feed-forward of one layer. A dense layer has experts = 0 and only the shared part."""

    experts: int
    experts_per_token: int
    expert_intermediate: int
    expert_hidden: int  # width the experts work at (hidden size, or a latent width)
    expert_dtype: WeightDtype  # storage
    expert_compute: WeightDtype  # precision of the grouped GEMM's inputs as the rate look-up sees it
    routing: Literal["scored", "hash", "none"]
    matrices: int = 3  # gate, up, down
    expert_bias: bool = False
    linears: tuple[Linear, ...] = ()  # router, shared expert or dense FFN
    other_params: int = 0
    other_param_bytes: float = 0.0

    @property
    def expert_params(self) -> int:
        """Parameters of one routed expert."""
        bias = (2 * self.expert_intermediate + self.expert_hidden) if self.expert_bias else 0
        return self.matrices * self.expert_hidden * self.expert_intermediate + bias


@dataclass(frozen=True)
class MixingSpec:
    """Hyper-connection streams (mHC): `streams` residual copies mixed before and after each sub-layer."""

    streams: int
    sinkhorn_iterations: int
    params_per_site: int  # two sites a layer
    param_bytes_per_site: float


@dataclass(frozen=True)
class LayerSpec:
    """One transformer layer."""

    attention: AttentionSpec
    ffn: MoeSpec
    mixing: MixingSpec | None
    norm_params: int
    norm_param_bytes: float


@dataclass(frozen=True)
class DraftHead:
    """Speculative head: `layers` run once per draft token; shares embedding and LM head with the model."""

    layers: tuple[LayerSpec, ...]
    linears: tuple[Linear, ...]
    other_params: int
    other_param_bytes: float


@dataclass(frozen=True)
class ModelSpec:
    """A model as the simulator sees it."""

    name: str
    family: str
    hidden: int
    vocab: int
    max_positions: int
    layers: tuple[LayerSpec, ...]
    draft: DraftHead | None
    embedding: Linear  # [vocab, hidden]; read as rows, not multiplied
    lm_head: Linear
    tied_embedding: bool
    other_params: int  # final norm, hc_head
    other_param_bytes: float
    source: str
    published_total: str
    published_active: str
    assumptions: tuple[str, ...] = ()

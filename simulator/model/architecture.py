"""What a model is made of, layer by layer: the data that op counts, memory and KV sizes are computed from.

Nothing here knows a model family: families are read into these records by `simulator.model.families`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

WeightDtype = Literal["fp32", "bf16", "fp8", "int8", "fp4", "int4"]
ABSENT = "none"  # kind of the attention of a layer that has none
Shard = Literal["column", "row", "replicated"]
# What a checkpoint may store differently; routers, norms and embeddings are never quantised here.
TensorKind = Literal["attention", "dense_ffn", "shared_expert", "expert"]

F32_BYTES, BF16_BYTES, BYTE, NIBBLE = 4.0, 2.0, 1.0, 0.5  # of one element [B]
FP8_BLOCK = 128  # rows, and columns, of fp8 weights under one scale (DeepSeek V3)
FP4_GROUP = 32  # 4-bit weights under one scale (OCP microscaling formats; int4 of compressed-tensors)
# Stored bytes of one parameter, block scales included: fp8 with one f32 scale per block, fp4 with one ue8m0 byte per
# group (mxfp4), int4 with one bf16 scale per group. [B]
BYTES_PER_PARAM: dict[WeightDtype, float] = {
    "fp32": F32_BYTES,
    "bf16": BF16_BYTES,
    "fp8": BYTE + F32_BYTES / FP8_BLOCK**2,
    "int8": BYTE,
    "fp4": NIBBLE + BYTE / FP4_GROUP,
    "int4": NIBBLE + BF16_BYTES / FP4_GROUP,
}
_BIAS_BYTES = BF16_BYTES  # biases stay bf16 whatever the weight is stored in [B]


@dataclass(frozen=True)
class Linear:
    """A projection of shape [inputs, outputs], stored in `dtype`."""

    name: str
    inputs: int
    outputs: int
    dtype: WeightDtype
    groups: int = 1  # block-diagonal: each group maps inputs/groups to outputs/groups
    shard: Shard = "replicated"  # how tensor parallelism cuts it
    bias: bool = False
    rows_per_token: int = 1  # applied to that many rows of one token (the streams of mHC)
    bytes_per_param: float | None = None  # where the scales differ from BYTES_PER_PARAM[dtype]
    tensor: TensorKind | None = None  # None: stays in the plain type whatever the checkpoint quantises
    multiplied: WeightDtype | None = None  # operands of its product, where others than its storage type stands for

    @property
    def params(self) -> int:
        return self.inputs * self.outputs // self.groups + (self.outputs if self.bias else 0)

    @property
    def weight_bytes(self) -> float:
        """Bytes as stored, scales and bias included. [B]"""
        per_param = self.bytes_per_param or BYTES_PER_PARAM[self.dtype]
        bias = self.outputs * _BIAS_BYTES if self.bias else 0.0
        return self.inputs * self.outputs // self.groups * per_param + bias


@dataclass(frozen=True)
class Indexer:
    """Lightning indexer picking `topk` entries for the core; its linears are in AttentionSpec.linears."""

    heads: int
    head_dim: int
    topk: int
    key_bytes: float  # per entry, with scales; 0 where another layer's selection is taken
    dtype: WeightDtype  # precision of its score product
    shares_layer: int | None = None  # takes the selection of that layer instead of scoring itself


@dataclass(frozen=True)
class CompressorState:
    """Projected rows (kv and score) that a compressor has not closed into an entry yet, one sequence."""

    row_bytes: float  # of one token, the indexer's compressor included
    ring_rows: int
    draft_ring_rows: int  # rows kept when drafts may be rolled back
    overlap_rows: int  # rows of the last closed block that the next entry still reads
    sent_whole: bool  # handed over as the full ring rather than row by row


@dataclass(frozen=True)
class AttentionSpec:
    """Attention of one layer.

    A query at position p reads min(p, window) recent tokens (all p if window is None and ratio is 1),
    and, if `ratio` r is set, compressed entries: min(floor(p / r), topk) of them.
      full GQA / MLA:  window None, ratio 1, indexer None  -> p entries
      sliding window:  window W,    ratio 0                -> min(p, W)
      DSA (V3.2):      window None, ratio 1, indexer       -> min(p, topk)
      MSA (M3):        the same, each KV head for itself
      CSA (V4):        window 128,  ratio 4, indexer       -> min(p, 128) + min(floor(p/4), topk)
      HCA (V4):        window 128,  ratio 128              -> min(p, 128) + floor(p/128)
      recurrent:       window 0,    ratio 0, state_bytes   -> none; reads and writes its state
    """

    kind: str  # label for reports: "gqa", "mla", "dsa", "msa", "swa", "csa", "hca", "kda", "gdn", "mamba2", "none"
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
    # Reads the entries and index keys of that layer and stores none itself; its window stays its own.
    kv_source_layer: int | None = None
    core_dtype: WeightDtype = "bf16"  # precision of the attention core's matrix products
    kv_dtype: WeightDtype = "bf16"  # storage of the entries, for reports
    compressor: CompressorState | None = None  # what state_bytes is made of, where it is a compressor's
    # Recurrent layers only, whose states are qk_dim x v_dim per head: FLOP of one token's update and read of the state
    # (which is read and written whole), of which chunks of a prompt do without one by one; and the width of the
    # convolution before it.
    state_flops_per_token: float = 0.0
    chunk_flops_per_token: float = 0.0
    convolution_width: int = 0

    @property
    def absent(self) -> bool:
        """Whether the layer is a feed-forward alone."""
        return self.kind == ABSENT

    @property
    def stored_entry_bytes(self) -> float:
        """Bytes that one entry of this layer adds to the cache: KV and index key. [B]"""
        if self.kv_source_layer is not None:
            return 0.0
        return self.entry_bytes + (self.indexer.key_bytes if self.indexer else 0.0)


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
    expert_bytes_per_param: float | None = None  # where the scales differ from BYTES_PER_PARAM

    @property
    def absent(self) -> bool:
        """Whether the layer mixes tokens alone."""
        return not (self.experts or self.linears)

    @property
    def _expert_biases(self) -> int:
        return (2 * self.expert_intermediate + self.expert_hidden) if self.expert_bias else 0

    @property
    def expert_params(self) -> int:
        """Parameters of one routed expert."""
        return self.matrices * self.expert_hidden * self.expert_intermediate + self._expert_biases

    @property
    def expert_bytes(self) -> float:
        """Stored bytes of one routed expert, scales and biases included. [B]"""
        per_param = self.expert_bytes_per_param or BYTES_PER_PARAM[self.expert_dtype]
        matrices = self.matrices * self.expert_hidden * self.expert_intermediate
        return matrices * per_param + self._expert_biases * _BIAS_BYTES


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

    @cached_property
    def kinds(self) -> tuple[tuple[LayerSpec, int], ...]:
        """Layers that are alike, with how many there are of each."""
        return tuple(Counter(self.layers).items())

    @cached_property
    def attentions(self) -> tuple[tuple[AttentionSpec, int], ...]:
        """Attention of the layers, with how many there are of each."""
        return tuple(Counter(layer.attention for layer in self.layers).items())

"""DeepSeek V4: shared-KV attention with a window and compressed entries (CSA, HCA), mHC, hash and scored routing.

Source: arXiv 2606.19348; shapes as in transformers `deepseek_v4`; KV layout of FlashMLA, rings of SGLang.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from simulator.model.architecture import (
    F32_BYTES,
    AttentionSpec,
    CompressorState,
    DraftHead,
    Indexer,
    LayerSpec,
    Linear,
    MixingSpec,
    ModelSpec,
    MoeSpec,
)
from simulator.model.families.blocks import Context, has_draft, moe_ffn, whole_model
from simulator.model.families.kv_layout import index_key_bytes, shared_kv_entry_bytes
from simulator.model.families.reader import ConfigReader

F32 = F32_BYTES  # norms, sinks, position tables and mHC are stored in f32 [B]
_CSA_RATIO, _HCA_RATIO = 4, 128  # tokens of one compressed entry
_KINDS = {0: "swa", _CSA_RATIO: "csa", _HCA_RATIO: "hca"}
_LAYER_TYPES = {
    "sliding_attention": 0,
    "compressed_sparse_attention": _CSA_RATIO,
    "heavily_compressed_attention": _HCA_RATIO,
}
_HEAD_TO_ROPE = 8  # width of a head over that of its rotated part, as transformers fills it in [-]
_CSA_OVERLAP = 2  # each CSA entry spans two blocks of `ratio` tokens


@dataclass(frozen=True)
class _Compressor:
    """Weights of one compressor: kv and gate projections of width coefficient * dim, position table, norm."""

    ratio: int
    dim: int
    coefficient: int  # 2 where entries overlap

    @property
    def width(self) -> int:
        return self.coefficient * self.dim

    @property
    def other_params(self) -> int:
        return self.ratio * self.width + self.dim

    @property
    def row_bytes(self) -> float:
        """f32 kv and score of one token. [B]"""
        return 2 * self.width * F32

    def linears(self, ctx: Context, prefix: str, hidden: int) -> tuple[Linear, Linear]:
        return (
            ctx.linear(None, f"{prefix}_kv", hidden, self.width),
            ctx.linear(None, f"{prefix}_gate", hidden, self.width),
        )


def compress_ratios(reader: ConfigReader, layers: int) -> list[int]:
    """Ratio of each layer: from DeepSeek's `compress_ratios` or transformers' `layer_types`."""
    if reader.has("layer_types") and not reader.has("compress_ratios"):
        types = reader.choices("layer_types", _LAYER_TYPES, least=layers)[:layers]
        return [_LAYER_TYPES[kind] for kind in types]
    return [int(ratio) for ratio in reader.choices("compress_ratios", _KINDS, least=layers)[:layers]]


def _attention(ctx: Context, ratio: int) -> AttentionSpec:
    reader = ctx.reader
    hidden = reader.integer("hidden_size")
    heads, head_dim = reader.integer("num_attention_heads"), reader.integer("head_dim")
    q_rank = reader.integer("q_lora_rank")
    groups, o_rank = reader.integer("o_groups"), reader.integer("o_lora_rank")
    rope = reader.integer("qk_rope_head_dim", default=head_dim // _HEAD_TO_ROPE)
    if heads % groups:
        raise reader.fail(f"o_groups={groups} does not divide num_attention_heads={heads}")
    dtype = ctx.kv("fp8")
    entry = shared_kv_entry_bytes(head_dim, rope, dtype)

    linears: tuple[Linear, ...] = (
        ctx.linear("attention", "wq_a", hidden, q_rank),
        ctx.linear("attention", "wkv", hidden, head_dim),
        ctx.linear("attention", "wq_b", q_rank, heads * head_dim, "column"),
        ctx.linear("attention", "wo_a", heads * head_dim, groups * o_rank, "column", groups=groups),
        ctx.linear("attention", "wo_b", groups * o_rank, hidden, "row"),
    )
    other = q_rank + head_dim + heads  # q and kv norms, sinks
    indexer: Indexer | None = None
    compressor: CompressorState | None = None
    if ratio:
        main = _Compressor(ratio, head_dim, _CSA_OVERLAP if ratio == _CSA_RATIO else 1)
        linears += main.linears(ctx, "compressor", hidden)
        other += main.other_params
        row_bytes = main.row_bytes
        if ratio == _CSA_RATIO:
            indexer = _indexer(ctx)
            index = _Compressor(ratio, indexer.head_dim, _CSA_OVERLAP)
            linears += (
                ctx.linear("attention", "indexer_wq_b", q_rank, indexer.heads * indexer.head_dim),
                ctx.linear(None, "indexer_weights", hidden, indexer.heads),
                *index.linears(ctx, "indexer_compressor", hidden),
            )
            other += index.other_params
            row_bytes += index.row_bytes
        compressor = _compressor_state(main, row_bytes)
    return AttentionSpec(
        kind=_KINDS[ratio],
        heads=heads,
        kv_heads=1,
        qk_dim=head_dim,
        v_dim=head_dim,
        prefill_qk_dim=head_dim,
        prefill_v_dim=head_dim,
        window=reader.integer("sliding_window"),
        ratio=ratio,
        entry_bytes=entry if ratio else 0.0,
        window_entry_bytes=entry,
        state_bytes=compressor.ring_rows * compressor.row_bytes if compressor else 0.0,
        linears=linears,
        other_params=other,
        other_param_bytes=other * F32,
        indexer=indexer,
        kv_dtype=dtype,
        compressor=compressor,
    )


def _compressor_state(main: _Compressor, row_bytes: float) -> CompressorState:
    """f32 rows not closed yet: CSA keeps both blocks an entry spans; HCA hands its ring over as one page."""
    rows = main.coefficient * main.ratio
    overlapping = main.coefficient == _CSA_OVERLAP
    return CompressorState(
        row_bytes=row_bytes,
        ring_rows=rows,
        draft_ring_rows=2 * rows,
        overlap_rows=main.ratio if overlapping else 0,
        sent_whole=not overlapping,
    )


def _indexer(ctx: Context) -> Indexer:
    head_dim = ctx.reader.integer("index_head_dim")
    dtype = ctx.index("fp4")
    return Indexer(
        heads=ctx.reader.integer("index_n_heads"),
        head_dim=head_dim,
        topk=ctx.reader.integer("index_topk"),
        key_bytes=index_key_bytes(head_dim, dtype),
        dtype=dtype,
    )


def _ffn(ctx: Context, hashed: bool) -> MoeSpec:
    reader = ctx.reader
    width = reader.integer("moe_intermediate_size")
    experts, topk = reader.integer("n_routed_experts"), reader.integer("num_experts_per_tok")
    ffn = moe_ffn(
        ctx,
        experts=experts,
        experts_per_token=topk,
        width=width,
        shared_width=width * reader.integer("n_shared_experts", default=0, minimum=0),
        correction_bias=not hashed,
    )
    # The token-to-expert table of a hash layer (a few MB of integers) is left out of parameters and bytes.
    return replace(ffn, routing="hash") if hashed else ffn


def _routing(reader: ConfigReader, layers: int) -> list[bool]:
    """Whether each layer routes by token id."""
    if reader.has("mlp_layer_types") and not reader.has("num_hash_layers"):
        types = reader.choices("mlp_layer_types", ("hash_moe", "moe"), least=layers)[:layers]
        return [kind == "hash_moe" for kind in types]
    hashed = reader.integer("num_hash_layers", minimum=0)
    return [i < hashed for i in range(layers)]


def build(ctx: Context, family: str) -> ModelSpec:
    """Model from `compress_ratios`, `num_hash_layers` and the MTP count."""
    reader = ctx.reader
    hidden, streams = reader.integer("hidden_size"), reader.integer("hc_mult")
    count = reader.integer("num_hidden_layers")
    mixes = (2 + streams) * streams  # pre, post and stream-to-stream weights
    site_params = mixes * streams * hidden + mixes + 3  # projection, base, three scales
    mixing = MixingSpec(streams, reader.integer("hc_sinkhorn_iters"), site_params, site_params * F32)
    collapse_params = streams * streams * hidden + streams + 1  # streams to one, before the LM head

    def layer(ratio: int, hashed: bool) -> LayerSpec:
        return LayerSpec(_attention(ctx, ratio), _ffn(ctx, hashed), mixing, 2 * hidden, 2 * hidden * F32)

    ratios, hashes = compress_ratios(reader, count), _routing(reader, count)
    layers = [layer(ratio, hashed) for ratio, hashed in zip(ratios, hashes, strict=True)]
    draft = None
    if has_draft(ctx):
        other = 3 * hidden + collapse_params  # embedding, hidden and final norms
        draft = DraftHead(
            layers=(layer(0, hashed=False),),
            linears=(
                ctx.linear("attention", "e_proj", hidden, hidden),
                ctx.linear("attention", "h_proj", hidden, hidden, rows_per_token=streams),
            ),
            other_params=other,
            other_param_bytes=other * F32,
        )
    return whole_model(ctx, family, layers, draft, collapse_params, collapse_params * F32, norm_bytes=F32)

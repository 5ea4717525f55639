"""Ops of one layer on one accelerator. Every op's work is affine in the arguments named in each docstring.

Formulas: DeepSeek V4 and V3.2 op tables (FLOPs 2 per multiply-add; causal sums in closed form, see `ops`).
"""

from __future__ import annotations

from collections.abc import Mapping

from hw_profiles.efficiency import OpClass
from simulator.model.architecture import AttentionSpec, Indexer, LayerSpec, Linear, MixingSpec, ModelSpec, MoeSpec
from simulator.model.collectives import all_gather, all_reduce, point_to_point
from simulator.model.cut import Cut
from simulator.model.ops import MATMUL_DTYPE, Op, Reader, entry_reader, key_reader, window_reader

ACTIVATION_BYTES = 2.0  # bf16
F32_BYTES = 4.0
# Queries that share one pass over keys in prefill kernels: 128-row tiles of dense cores and the indexer, 64 of the
# sparse core, whose rows select for themselves. Modelling choices; prefill cores are compute bound either way.
DENSE_TILE = 128
SPARSE_TILE = 64

Reads = Mapping[Reader, float]


def linear_op(linear: Linear, rows: float, share: float = 1.0) -> Op:
    """Projection of `rows` tokens of which `share` of the weights is on this rank."""
    rows = rows * linear.rows_per_token
    inputs = linear.inputs * (share if linear.shard == "row" else 1.0)
    outputs = linear.outputs * (share if linear.shard == "column" else 1.0)
    if linear.shard == "column" and linear.groups > 1:
        inputs = linear.inputs * share  # a rank's groups read their own inputs only
    return Op(
        linear.name,
        OpClass.DENSE_GEMM,
        {MATMUL_DTYPE[linear.dtype]: 2 * rows * linear.inputs * linear.outputs / linear.groups * share},
        linear.weight_bytes * share + rows * (inputs + outputs) * ACTIVATION_BYTES,
    )


def row_ops(layer: LayerSpec, model: ModelSpec, rows: float, cut: Cut) -> list[Op]:
    """All that depends on the rows of this rank alone: projections, norms, mixing, router, collectives of
    tensor parallelism. Affine in rows."""
    attention, ffn, hidden = layer.attention, layer.ffn, model.hidden
    ops = [_norms(rows, hidden), _rope_and_store(attention, rows, cut)]
    ops += [linear_op(x, rows, cut.linear_share(x, attention)) for x in attention.linears]
    ops += _compression(attention, rows)
    ops += _tensor_all_reduce("attention all-reduce", rows, hidden, cut)
    ops += [linear_op(x, rows, cut.linear_share(x)) for x in ffn.linears]
    ops += _feed_forward_extras(ffn, rows, cut)
    ops += _tensor_all_reduce("feed-forward all-reduce", rows, hidden, cut)
    if layer.mixing:
        ops += _mixing(layer.mixing, rows, hidden)
    return ops


def _norms(rows: float, hidden: int) -> Op:
    """Two RMSNorms fused with the residual add: read x and residual, write residual and normed."""
    return Op("norm", OpClass.ELEMENTWISE, hbm_bytes=4 * rows * hidden * ACTIVATION_BYTES, count=2)


def _rope_and_store(attention: AttentionSpec, rows: float, cut: Cut) -> Op:
    """Head norms and RoPE on queries and keys (read, write), and the write of new KV and index keys."""
    heads = attention.heads / cut.tp + attention.kv_heads * cut.kv_share(attention)
    stored = attention.window_entry_bytes * cut.kv_share(attention)
    if attention.ratio and attention.kv_source_layer is None:
        keys = attention.indexer.key_bytes if attention.indexer else 0.0
        stored += (attention.entry_bytes * cut.kv_share(attention) + keys) / attention.ratio
    per_row = heads * attention.prefill_qk_dim * 2 * ACTIVATION_BYTES + stored
    return Op("head norm, RoPE, KV write", OpClass.ELEMENTWISE, hbm_bytes=rows * per_row)


def _compression(attention: AttentionSpec, rows: float) -> list[Op]:
    """Compressor: write a row of (kv, score) per token, read the rows of each entry that closes.

    Rows read per token: rows of an entry / ratio = 2 where entries overlap, 1 where not.
    """
    compressor = attention.compressor
    if compressor is None:
        return []
    reads = 2 if compressor.overlap_rows else 1
    return [Op("compressor", OpClass.ELEMENTWISE, hbm_bytes=rows * compressor.row_bytes * (1 + reads))]


def _feed_forward_extras(ffn: MoeSpec, rows: float, cut: Cut) -> list[Op]:
    """Activations of the shared or dense part, and the choice of experts from router scores."""
    gated = sum(x.outputs * cut.linear_share(x) for x in ffn.linears if x.shard == "column")
    ops = []
    if gated:
        ops.append(Op("activation", OpClass.ELEMENTWISE, hbm_bytes=rows * 1.5 * gated * ACTIVATION_BYTES))
    if ffn.experts:
        scores = rows * ffn.experts * F32_BYTES
        ops.append(Op("choice of experts", OpClass.ELEMENTWISE, hbm_bytes=2 * scores))
    return ops


def _tensor_all_reduce(name: str, rows: float, hidden: int, cut: Cut) -> list[Op]:
    return all_reduce(name, rows * hidden * ACTIVATION_BYTES, cut.tensor_group)


def _mixing(mixing: MixingSpec, rows: float, hidden: int) -> list[Op]:
    """mHC, at both sites: mix weights from all streams, their weighted sum; and the write back to all streams."""
    wide = mixing.streams * hidden
    mixes = mixing.streams * (mixing.streams + 2)
    sinkhorn = mixing.sinkhorn_iterations * 2 * mixing.streams**2
    return [
        Op(
            "mHC pre",
            OpClass.ELEMENTWISE,
            {"tf32": rows * (2 * wide * mixes + 5 * wide + sinkhorn)},
            mixing.param_bytes_per_site + rows * (2 * wide + hidden) * ACTIVATION_BYTES,
            count=2,
        ),
        Op(
            "mHC post",
            OpClass.ELEMENTWISE,
            {"tf32": rows * (2 * mixing.streams**2 * hidden + 2 * wide)},
            rows * (2 * wide + hidden) * ACTIVATION_BYTES,
            count=2,
        ),
    ]


def _reads(reads: Reads, reader: Reader | None) -> float:
    return 0.0 if reader is None else reads[reader]


def _index_ops(indexer: Indexer, rows: float, scored: float, keys: float) -> list[Op]:
    """Index scores of `scored` (query, key) pairs and top-k of each row. keys: index keys read from memory.

    Every tensor-parallel rank scores all heads, for each needs the whole selection.
    """
    return [
        Op(
            "index scores",
            OpClass.INDEXER,
            {indexer.dtype: 2 * indexer.heads * indexer.head_dim * scored},
            keys * indexer.key_bytes + scored * F32_BYTES + rows * indexer.heads * indexer.head_dim,
        ),
        Op(
            "top-k of index scores",
            OpClass.ELEMENTWISE,
            hbm_bytes=scored * F32_BYTES + rows * indexer.topk * F32_BYTES,
        ),
    ]


def decode_core_ops(attention: AttentionSpec, sequences: float, queries: int, reads: Reads, cut: Cut) -> list[Op]:
    """Attention core and indexer of decode, `queries` rows per sequence. Affine in sequences and reads.

    reads: for each reader, entries summed over sequences. The rows of one sequence share each KV read, except
    that each selects for itself (see `entry_reader`).
    """
    rows = sequences * queries
    ops: list[Op] = []
    scored = key_reader(attention)
    if scored is not None and attention.indexer is not None:
        ops += _index_ops(attention.indexer, rows, queries * reads[scored], reads[scored])
    share = cut.kv_share(attention)
    window, entries = window_reader(attention), entry_reader(attention)
    if window is not None or entries is not None:
        kv = _reads(reads, window) * (attention.window_entry_bytes or attention.entry_bytes)
        kv += _reads(reads, entry_reader(attention, queries)) * attention.entry_bytes
        pairs = queries * (_reads(reads, window) + _reads(reads, entries))
        ops.append(
            _core(
                "attention core",
                OpClass.ATTENTION_DECODE,
                attention,
                (attention.qk_dim, attention.v_dim),
                rows,
                pairs,
                kv * share,
                cut,
            )
        )
    if attention.state_flops_per_token:
        ops.append(_recurrence(OpClass.ATTENTION_DECODE, attention, rows, sequences, cut))
    return ops


def prefill_core_ops(
    attention: AttentionSpec,
    new: float,
    past: float,
    sequences: float,
    reads: Reads,
    cut: Cut,
) -> list[Op]:
    """Attention core and indexer of prefill chunks with `new` tokens after `past` ones, summed over `sequences`
    chunks. Affine in all of them and in reads.

    reads: for each reader, entries summed over the queries of all chunks. Context-parallel ranks split the queries
    and gather the new keys. Latent attention runs decompressed unless entries are selected.
    """
    cp = cut.parallelism.cp
    rows = new / cp
    ops = _gather_keys(attention, new, cut)
    scored = key_reader(attention)
    if scored is not None and attention.indexer is not None:
        pairs = reads[scored] / cp
        ops += _index_ops(attention.indexer, rows, pairs, pairs / DENSE_TILE)
    decompressed = attention.indexer is None and attention.prefill_qk_dim != attention.qk_dim
    if decompressed:
        ops.append(_decompression(attention, past + new - rows, cut))
    window, entries = window_reader(attention), entry_reader(attention)
    if window is not None or entries is not None:
        absorbed = (attention.qk_dim, attention.v_dim)
        dims = absorbed if attention.indexer else (attention.prefill_qk_dim, attention.prefill_v_dim)
        tile = SPARSE_TILE if attention.indexer else DENSE_TILE
        if decompressed:
            entry_bytes = attention.heads / cut.tp * sum(dims) * ACTIVATION_BYTES
        else:
            entry_bytes = attention.entry_bytes * cut.kv_share(attention)
        window_bytes = attention.window_entry_bytes * cut.kv_share(attention) or entry_bytes
        kv = (_reads(reads, window) * window_bytes + _reads(reads, entries) * entry_bytes) / cp / tile
        pairs = (_reads(reads, window) + _reads(reads, entries)) / cp
        ops.append(_core("attention core", OpClass.ATTENTION_PREFILL, attention, dims, rows, pairs, kv, cut))
    if attention.state_flops_per_token:
        ops.append(_recurrence(OpClass.ATTENTION_PREFILL, attention, rows, sequences, cut))
    return ops


def _core(
    name: str,
    op_class: OpClass,
    attention: AttentionSpec,
    dims: tuple[int, int],
    rows: float,
    pairs: float,
    kv_bytes: float,
    cut: Cut,
) -> Op:
    """Score and value products of `pairs` (query, entry) pairs: 2 H (d_qk + d_v) FLOPs each."""
    heads = attention.heads / cut.tp
    width = sum(dims)
    return Op(
        name,
        op_class,
        {MATMUL_DTYPE[attention.core_dtype]: 2 * heads * width * pairs},
        kv_bytes + rows * heads * width * ACTIVATION_BYTES,
    )


def _decompression(attention: AttentionSpec, tokens: float, cut: Cut) -> Op:
    """Keys and values of `tokens` latents of other chunks or ranks (the rows of this rank are a projection of the
    layer): latent x heads x (nope + v)."""
    latent = attention.v_dim
    rope = attention.qk_dim - latent
    width = attention.prefill_qk_dim - rope + attention.prefill_v_dim
    heads = attention.heads / cut.tp
    dtype = next((x.dtype for x in attention.linears if x.inputs == latent), attention.core_dtype)
    written = heads * (width + rope) * ACTIVATION_BYTES
    return Op(
        "decompress latents",
        OpClass.DENSE_GEMM,
        {MATMUL_DTYPE[dtype]: 2 * tokens * latent * heads * width},
        tokens * (attention.entry_bytes + written),
    )


def _recurrence(op_class: OpClass, attention: AttentionSpec, rows: float, sequences: float, cut: Cut) -> Op:
    """Linear attention: the state of each sequence is read and written once."""
    return Op(
        "recurrent state",
        op_class,
        {MATMUL_DTYPE[attention.core_dtype]: attention.state_flops_per_token * rows / cut.tp},
        2 * attention.state_bytes * sequences / cut.tp,
    )


def _gather_keys(attention: AttentionSpec, new: float, cut: Cut) -> list[Op]:
    """Context parallelism: each rank's new KV goes to all; compressors gather their f32 rows instead of entries."""
    if cut.parallelism.cp == 1:
        return []
    per_token = attention.window_entry_bytes * cut.kv_share(attention)
    if attention.compressor is not None:
        per_token += attention.compressor.row_bytes
    elif attention.ratio and attention.kv_source_layer is None:
        keys = attention.indexer.key_bytes if attention.indexer else 0.0
        per_token += (attention.entry_bytes * cut.kv_share(attention) + keys) / attention.ratio
    return all_gather("gather keys", new * per_token, cut.context_group)


def embedding_ops(model: ModelSpec, rows: float, cut: Cut) -> list[Op]:
    """Row look-up, and the hand-over between pipeline stages. Affine in rows."""
    mixing = model.layers[0].mixing
    streams = mixing.streams if mixing else 1
    looked_up = rows * model.hidden * ACTIVATION_BYTES
    ops = [Op("embedding", OpClass.ELEMENTWISE, hbm_bytes=looked_up * (1 + streams))]
    boundaries = cut.parallelism.pp - 1
    if boundaries:
        ops.append(point_to_point("next stage", looked_up * streams, cut.stage_link, boundaries))
    return ops


def head_ops(model: ModelSpec, rows: float, cut: Cut) -> list[Op]:
    """Final norm, collapse of streams, LM head and sampling of `rows` rows. Affine in rows."""
    mixing = model.layers[0].mixing
    streams = mixing.streams if mixing else 1
    wide = streams * model.hidden
    share = 1.0 / cut.tp
    logits = rows * model.vocab
    return [
        Op(
            "final norm",
            OpClass.ELEMENTWISE,
            {"tf32": 2 * rows * wide * streams} if mixing else {},
            model.other_param_bytes + rows * (wide + model.hidden) * ACTIVATION_BYTES,
        ),
        linear_op(model.lm_head, rows, share if model.lm_head.shard != "replicated" else 1.0),
        *all_gather("gather logits", logits * ACTIVATION_BYTES, cut.tensor_group),
        Op("sampling", OpClass.ELEMENTWISE, hbm_bytes=3 * logits * F32_BYTES),
    ]

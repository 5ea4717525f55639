"""Ops of one layer on one accelerator. Every op's work is affine in the arguments named in each docstring.

Formulas: DeepSeek V4 and V3.2 op tables (FLOPs 2 per multiply-add; causal sums in closed form, see `ops`).
"""

from __future__ import annotations

from hw_profiles.efficiency import OpClass
from simulator.model.architecture import F32_BYTES, AttentionSpec, LayerSpec, Linear, MixingSpec, ModelSpec, MoeSpec
from simulator.model.collectives import all_gather, all_reduce, point_to_point
from simulator.model.ops import ACTIVATION_BYTES, MATMUL_DTYPE, Op
from simulator.model.sharding import Cut

# Kernels one after the other. Low-precision products quantise their input first. Launch floors of the measured tables:
# 3-4 us bf16 and 7-8 us block-scaled fp8.
LAUNCHES_BY_DTYPE = {"fp8": 2, "int8": 2, "fp4": 2}
NORM_PASSES = 4  # over the hidden width: x and residual are read, residual and normed written
ACTIVATION_PASSES = 1.5  # over gate and up together: both are read, their product, half as wide, is written
SAMPLING_PASSES = 3  # over f32 logits; assumed: written, read for their maximum and sum, read for the draw


def linear_op(linear: Linear, rows: float, share: float = 1.0) -> Op:
    """Projection of `rows` tokens of which `share` of the weights is on this rank."""
    rows = rows * linear.rows_per_token
    inputs = linear.inputs * (share if linear.shard == "row" else 1.0)
    outputs = linear.outputs * (share if linear.shard == "column" else 1.0)
    if linear.shard == "column" and linear.groups > 1:
        inputs = linear.inputs * share  # a rank's groups read their own inputs only
    row = 2 * linear.inputs * linear.outputs / linear.groups * share
    operands = linear.multiplied or MATMUL_DTYPE[linear.dtype]
    return Op(
        linear.name,
        OpClass.DENSE_GEMM,
        {operands: rows * row},
        linear.weight_bytes * share + rows * (inputs + outputs) * ACTIVATION_BYTES,
        hops=LAUNCHES_BY_DTYPE.get(operands, 1),
        row_flops=row,
        depth=linear.inputs * (share if linear.shard == "row" else 1.0) / linear.groups,
    )


def row_ops(layer: LayerSpec, model: ModelSpec, rows: float, cut: Cut) -> list[Op]:
    """All that depends on the rows of this rank alone: projections, norms, mixing, router, collectives of
    tensor parallelism. Affine in rows."""
    attention, ffn, hidden = layer.attention, layer.ffn, model.hidden
    ops = [_norms(rows, hidden, 2 - attention.absent - ffn.absent)]
    if not attention.absent:
        before_core = _convolution if attention.convolution_width else _rope_and_store
        ops.append(before_core(attention, rows, cut))
        ops += [linear_op(x, rows, cut.linear_share(x, attention)) for x in attention.linears]
        ops += _compression(attention, rows)
        ops += _tensor_all_reduce("attention all-reduce", rows, hidden, cut)
    if not ffn.absent:
        ops += [linear_op(x, rows, cut.linear_share(x)) for x in ffn.linears]
        ops += _feed_forward_extras(ffn, rows, cut)
        ops += _tensor_all_reduce("feed-forward all-reduce", rows, hidden, cut)
    if layer.mixing:
        ops += _mixing(layer.mixing, rows, hidden)
    return ops


def _norms(rows: float, hidden: int, count: int) -> Op:
    """RMSNorms fused with the residual add, one before each part of the layer."""
    return Op("norm", OpClass.ELEMENTWISE, hbm_bytes=NORM_PASSES * rows * hidden * ACTIVATION_BYTES, count=count)


def _rope_and_store(attention: AttentionSpec, rows: float, cut: Cut) -> Op:
    """Head norms and RoPE on queries and keys (read, write), and the write of new KV and index keys."""
    heads = attention.heads / cut.tp + attention.kv_heads * cut.kv_share(attention)
    stored = attention.window_entry_bytes * cut.kv_share(attention) + cut.stored_bytes(attention)
    per_row = heads * attention.prefill_qk_dim * 2 * ACTIVATION_BYTES + stored
    return Op("head norm, RoPE, KV write", OpClass.ELEMENTWISE, hbm_bytes=rows * per_row)


def _convolution(attention: AttentionSpec, rows: float, cut: Cut) -> Op:
    """Of recurrent layers, over queries, keys and values (read, write)."""
    width = attention.convolution_width / cut.tp
    return Op("convolution", OpClass.ELEMENTWISE, hbm_bytes=rows * width * 2 * ACTIVATION_BYTES)


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
        ops.append(Op("activation", OpClass.ELEMENTWISE, hbm_bytes=rows * ACTIVATION_PASSES * gated * ACTIVATION_BYTES))
    if ffn.experts:
        scores = rows * ffn.experts * F32_BYTES
        ops.append(Op("choice of experts", OpClass.ELEMENTWISE, hbm_bytes=2 * scores))
    return ops


def _tensor_all_reduce(name: str, rows: float, hidden: int, cut: Cut) -> list[Op]:
    return all_reduce(name, rows * hidden * ACTIVATION_BYTES, cut.tensor_group)


def _mixing(mixing: MixingSpec, rows: float, hidden: int) -> list[Op]:
    """mHC, at both sites: mix weights from all streams; once they are known, the weighted sum of the streams, which a
    second kernel reads again (measured floors are twice those of the write back, and so are times of long prompts less
    the output); and the write back to all streams."""
    wide = mixing.streams * hidden
    mixes = mixing.streams * (mixing.streams + 2)
    sinkhorn = mixing.sinkhorn_iterations * 2 * mixing.streams**2
    return [
        Op(
            "mHC pre",
            OpClass.MIXING,
            {"tf32": rows * (2 * wide * mixes + wide + sinkhorn)},
            mixing.param_bytes_per_site + rows * wide * ACTIVATION_BYTES,
            count=2,
        ),
        Op(
            "mHC pre",
            OpClass.MIXING,
            {"tf32": rows * 2 * wide},
            rows * (wide + hidden) * ACTIVATION_BYTES,
            count=2,
        ),
        Op(
            "mHC post",
            OpClass.MIXING,
            {"tf32": rows * (2 * mixing.streams**2 * hidden + 2 * wide)},
            rows * (2 * wide + hidden) * ACTIVATION_BYTES,
            count=2,
        ),
    ]


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
        Op("sampling", OpClass.ELEMENTWISE, hbm_bytes=SAMPLING_PASSES * logits * F32_BYTES),
    ]

"""Attention core, indexer and key traffic of one layer on one accelerator, in decode and in prefill.

Formulas: DeepSeek V4 and V3.2 op tables (FLOPs 2 per multiply-add; causal sums in closed form, see `ops`).
"""

from __future__ import annotations

from collections.abc import Mapping

from hw_profiles.efficiency import OpClass
from simulator.model.architecture import F32_BYTES, AttentionSpec, Indexer
from simulator.model.collectives import all_gather
from simulator.model.ops import (
    ACTIVATION_BYTES,
    MATMUL_DTYPE,
    Counted,
    Op,
    Reader,
    entry_reader,
    key_reader,
    short_rows,
    window_reader,
)
from simulator.model.sharding import Cut

# Queries that share one pass over keys in HBM in prefill kernels. Dense cores and the indexer work on 128-row tiles,
# of which neighbours find the keys in L2: measured MLA prefill at 32k tokens takes 0.8 of matrix peak, which bounds
# the passes to fewer than one per 1,024 rows. Tiles of sparse cores are the heads of one row, which gathers its entries
# for itself, whatever its heads: measured modules of a long past take 1.8 times as long with 128 heads as with 64, and
# as long with 8 or 16 as with 64 (see HEAD_TILE). What a row costs beyond its entries (to load queries, fill and drain
# the pipeline: `tile_rows`) it costs once, for the tiles of its heads run side by side: with 128 heads vLLM's HCA
# modules of 192 entries a row take a half longer on a B200 than with 64, not twice as long.
DENSE_TILE = 1024  # [rows]
SPARSE_TILE = 1  # [rows]
# Tiles on the causal diagonal are multiplied in full, and rows fill up to whole tiles: n rows over n entries and tiles
# of T rows make n^2/2 + n T + 3/8 T^2 pairs on average. The last term counts as 3/8 T rows of a prompt, at a T of 128.
CORNER_ROWS = 48  # [rows]
# Kernels that make the heads of shared entries the rows of one matrix tile multiply at least 64 (NVIDIA's
# instructions): 16 heads of a rank take the time of 64, as measured under tensor parallelism. Decode kernels of
# Blackwell put the heads in columns, AMD's instructions have 16 rows.
HEAD_TILE = 64  # [rows of a matrix tile]
HEADS_IN_ROWS = {
    "hopper": (OpClass.LATENT_DECODE, OpClass.SPARSE_DECODE, OpClass.SPARSE_PREFILL),
    "blackwell": (OpClass.SPARSE_PREFILL,),
    "rubin": (OpClass.SPARSE_PREFILL,),
}

Reads = Mapping[Reader, float]
Counts = Mapping[Counted, float]


def _reads(reads: Reads | Counts, reader: Reader | None) -> float:
    return 0.0 if reader is None else reads[reader]


def _index_ops(
    indexer: Indexer, rows: float, scored: float, keys: float, selects: bool, short: float = 0.0
) -> list[Op]:
    """Index scores of `scored` (query, key) pairs and top-k of each row. keys: index keys read from memory. short: of
    the pairs, those of prefill rows that choose among few.

    Every tensor-parallel rank scores all heads, for each needs the whole selection. Where no row has more entries than
    it may select, kernels skip the choice: measured decode steps grow by 25-135 us where it begins.
    """
    ops = [
        Op(
            "index scores",
            OpClass.INDEXER,
            {indexer.dtype: 2 * indexer.heads * indexer.head_dim * scored},
            keys * indexer.key_bytes + scored * F32_BYTES + rows * indexer.heads * indexer.head_dim,
        ),
    ]
    if selects:
        written = rows * indexer.topk * F32_BYTES
        ops.append(
            Op(
                "top-k of index scores",
                OpClass.SELECTION,
                hbm_bytes=scored * F32_BYTES + written,
                short_row_bytes=short * F32_BYTES,
            )
        )
    return ops


def decode_core_ops(
    attention: AttentionSpec, sequences: float, queries: int, reads: Reads, cut: Cut, *, selects: bool
) -> list[Op]:
    """Attention core and indexer of decode, `queries` rows per sequence. Affine in sequences and reads.

    reads: for each reader, entries summed over sequences. The rows of one sequence share each KV read, except
    that each selects for itself (see `entry_reader`). selects: some row has more entries than it may select.
    """
    rows = sequences * queries
    ops: list[Op] = []
    scored = key_reader(attention)
    if scored is not None and attention.indexer is not None:
        ops += _index_ops(attention.indexer, rows, queries * reads[scored], reads[scored], selects)
    share = cut.kv_share(attention)
    window, entries = window_reader(attention), entry_reader(attention)
    if window is not None or entries is not None:
        kv = _reads(reads, window) * (attention.window_entry_bytes or attention.entry_bytes)
        kv += _reads(reads, entry_reader(attention, queries)) * attention.entry_bytes
        pairs = queries * (_reads(reads, window) + _reads(reads, entries))
        ops.append(
            _core(
                "attention core",
                core_class(attention, decode=True),
                attention,
                (attention.qk_dim, attention.v_dim),
                rows,
                pairs,
                kv * share,
                cut,
                sharing=1 if attention.indexer is not None else queries,
            )
        )
    if attention.state_flops_per_token:
        flops = attention.state_flops_per_token
        ops.append(_recurrence(OpClass.RECURRENT_DECODE, attention, flops, rows, sequences, cut))
    return ops


def prefill_core_ops(
    attention: AttentionSpec,
    new: float,
    past: float,
    sequences: float,
    reads: Counts,
    cut: Cut,
    *,
    selects: bool,
) -> list[Op]:
    """Attention core and indexer of prefill chunks with `new` tokens after `past` ones, summed over `sequences`
    chunks. Affine in all of them and in reads.

    reads: each of `prefill_counts`, summed over the queries of all chunks. Context-parallel ranks split the queries
    and gather the new keys. selects: some query has more entries than it may select. Latent attention runs
    decompressed unless entries are selected.
    """
    cp = cut.parallelism.cp
    rows = new / cp
    ops = _gather_keys(attention, new, cut)
    scored = key_reader(attention)
    if scored is not None and attention.indexer is not None:
        pairs = reads[scored] / cp
        few = short_rows(attention)
        short = 0.0 if few is None else reads[few] / cp
        ops += _index_ops(attention.indexer, rows, pairs, pairs / DENSE_TILE, selects, short)
    decompressed = attention.indexer is None and attention.prefill_qk_dim != attention.qk_dim
    if decompressed:
        ops.append(_decompression(attention, past + new - rows, cut))
    window, entries = window_reader(attention), entry_reader(attention)
    if window is not None or entries is not None:
        absorbed = (attention.qk_dim, attention.v_dim)
        dims = absorbed if attention.indexer else (attention.prefill_qk_dim, attention.prefill_v_dim)
        core = core_class(attention, decode=False)
        tile = SPARSE_TILE if core is OpClass.SPARSE_PREFILL else DENSE_TILE
        if decompressed:
            entry_bytes = attention.heads / cut.tp * sum(dims) * ACTIVATION_BYTES
        else:
            entry_bytes = attention.entry_bytes * cut.kv_share(attention)
        window_bytes = attention.window_entry_bytes * cut.kv_share(attention) or entry_bytes
        kv = (_reads(reads, window) * window_bytes + _reads(reads, entries) * entry_bytes) / cp / tile
        kv += _stored_once(attention, new, past, window_bytes, entry_bytes)
        pairs = (_reads(reads, window) + _reads(reads, entries)) / cp
        ragged = rows + CORNER_ROWS * sequences
        ops.append(_core("attention core", core, attention, dims, rows, pairs, kv, cut, ragged=ragged))
    if attention.state_flops_per_token:
        flops = attention.chunk_flops_per_token
        ops.append(_recurrence(OpClass.RECURRENT_PREFILL, attention, flops, rows, sequences, cut))
    return ops


def _stored_once(attention: AttentionSpec, new: float, past: float, window_bytes: float, entry_bytes: float) -> float:
    """Bytes of what every chunk reads at least once: its own keys, and all entries that none may leave out."""
    if not attention.ratio:
        return new * window_bytes
    window = new * window_bytes if attention.window else 0.0
    return window + (new + (0.0 if attention.indexer else past)) / attention.ratio * entry_bytes


def core_class(attention: AttentionSpec, *, decode: bool) -> OpClass:
    """The kernel that runs an attention core. Layers with a window alone run that of their model's sparse layers where
    all heads share the entries."""
    shared_window = attention.window and attention.kv_heads == 1
    if attention.indexer is not None or attention.compressor is not None or shared_window:
        return OpClass.SPARSE_DECODE if decode else OpClass.SPARSE_PREFILL
    if attention.prefill_qk_dim != attention.qk_dim:
        return OpClass.LATENT_DECODE if decode else OpClass.LATENT_PREFILL
    return OpClass.ATTENTION_DECODE if decode else OpClass.ATTENTION_PREFILL


def _core(
    name: str,
    op_class: OpClass,
    attention: AttentionSpec,
    dims: tuple[int, int],
    rows: float,
    pairs: float,
    kv_bytes: float,
    cut: Cut,
    *,
    ragged: float = 0.0,
    sharing: int = 1,
) -> Op:
    """Score and value products of `pairs` (query, entry) pairs: 2 H (d_qk + d_v) FLOPs each.

    ragged: pairs added by one more row in every tile that may be ragged. sharing: rows whose heads are in one tile.
    """
    heads = attention.heads / cut.tp
    in_rows = op_class in HEADS_IN_ROWS.get(cut.generation, ())
    multiplied = max(heads, HEAD_TILE / sharing) if in_rows else heads
    width = sum(dims)
    return Op(
        name,
        op_class,
        {MATMUL_DTYPE[attention.core_dtype]: 2 * multiplied * width * pairs},
        kv_bytes + rows * heads * width * ACTIVATION_BYTES,
        row_flops=2 * (min(multiplied, HEAD_TILE) if in_rows else multiplied) * width * ragged,
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


def _recurrence(
    op_class: OpClass, attention: AttentionSpec, flops: float, rows: float, sequences: float, cut: Cut
) -> Op:
    """Linear attention: the state of each sequence is read and written once. flops: of one row. The last chunk of each
    sequence is filled up (`row_flops`)."""
    return Op(
        "recurrent state",
        op_class,
        {MATMUL_DTYPE[attention.core_dtype]: flops * rows / cut.tp},
        2 * attention.state_bytes * sequences / cut.tp,
        row_flops=flops * sequences / cut.tp,
    )


def _gather_keys(attention: AttentionSpec, new: float, cut: Cut) -> list[Op]:
    """Context parallelism: each rank's new KV goes to all; compressors gather their f32 rows instead of entries."""
    if cut.parallelism.cp == 1:
        return []
    per_token = attention.window_entry_bytes * cut.kv_share(attention)
    compressor = attention.compressor
    per_token += compressor.row_bytes if compressor else cut.stored_bytes(attention)
    return all_gather("gather keys", new * per_token, cut.context_group)

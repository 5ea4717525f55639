"""Rows of attention cores and of whole attention modules as ops; mHC and recurrent state with them.

Rows far from what is served run kernels of another kind and say nothing of the others: they are left out.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pandas as pd

from calibration.op_tables.row_filters import same_shapes
from calibration.op_tables.rows import Rows, each_row
from hw_profiles.efficiency import OpClass
from hw_profiles.profile import HardwareProfile
from simulator.model.architecture import AttentionSpec, LayerSpec, ModelSpec, MoeSpec
from simulator.model.attention import decode_core_ops, prefill_core_ops
from simulator.model.layers import row_ops
from simulator.model.ops import Counted, Op, Reader, counted, entries_read, prefill_counts, readers
from simulator.model.parallelism import Parallelism
from simulator.model.presets import load_model
from simulator.model.sharding import Cut

NO_FFN = MoeSpec(0, 0, 0, 0, "bf16", "bf16", "none")  # of a layer of which only the attention half is timed
SHORTEST_PROMPT = 64  # tokens; a tile of queries (assumed)
FEWEST_HEADS = 8  # of latent attention on a rank: 64 over 8
SHORTEST_CONTEXT = 128  # tokens before a decoded one
WIDEST_HEAD = 256  # of grouped attention
ONE_SPLIT = 256  # entries of a context that a decode core reads in one go, of MLA (assumed)
UNSPLIT = 2 / 3  # of the launches of a core
PRO_HIDDEN = 7168  # hidden size of DeepSeek-V4-Pro: its published config.json


@cache
def _model(name: str) -> ModelSpec:
    return load_model(name)


def _mla(kv_dtype: str) -> AttentionSpec:
    """Kernels that read FP8 latents multiply in FP8 (the 16-bit queries of the tables are cast on the way in)."""
    attention = _model("deepseek-r1").layers[-1].attention
    if "fp8" not in kv_dtype:
        return attention
    return replace(attention, entry_bytes=attention.entry_bytes / 2, core_dtype="fp8")


def _cut(heads: int, of: int, hardware: HardwareProfile) -> Cut:
    return Cut.of(Parallelism(tp=max(1, of // heads)), hardware)


def _decode_reads(attention: AttentionSpec, batch: int, context: int) -> dict[Reader, float]:
    return {r: float(batch * entries_read(r, 1, context - 1)) for r in readers([attention])}


def _prefill_reads(attention: AttentionSpec, batch: int, new: int, past: int) -> dict[Counted, float]:
    return {c: float(batch * counted(c, new, past)) for c in prefill_counts([attention])}


def generation_mla(frame: pd.DataFrame, hardware: HardwareProfile) -> Rows:
    """Contexts within one split have nothing to merge: one launch fewer of three (plan, core, merge) than the simulated
    core, whose contexts are longer."""
    for row in each_row(frame[(frame["num_heads"] >= FEWEST_HEADS) & _long(frame)]):
        attention = _mla(row.kv_cache_dtype)
        reads = _decode_reads(attention, row.batch_size, row.step + 1)
        cut = _cut(row.num_heads, attention.heads, hardware)
        ops = decode_core_ops(attention, row.batch_size, 1, reads, cut, selects=False)
        yield row, tuple(replace(op, hops=UNSPLIT) if row.step < ONE_SPLIT else op for op in ops)


def context_mla(frame: pd.DataFrame, hardware: HardwareProfile) -> Rows:
    """Prompts shorter than a tile are decode in disguise and left out."""
    for row in each_row(frame[(frame["isl"] >= SHORTEST_PROMPT) & (frame["num_heads"] >= FEWEST_HEADS)]):
        attention = _mla(row.kv_cache_dtype)
        reads = _prefill_reads(attention, row.batch_size, row.isl, row.step)
        cut = _cut(row.num_heads, attention.heads, hardware)
        new = float(row.batch_size * row.isl)
        ops = prefill_core_ops(attention, new, row.batch_size * row.step, row.batch_size, reads, cut, selects=False)
        yield row, tuple(op for op in ops if op.op_class is OpClass.LATENT_PREFILL)


def _gqa(row: Any) -> AttentionSpec:
    """Grouped-query attention of the row's heads, full or with a window, on one rank. FP8 as for `_mla`."""
    narrow = "fp8" in str(row.kv_cache_dtype)
    window = getattr(row, "window_size", 0) or None
    entry = 2.0 * row.num_key_value_heads * row.head_dim * (1 if narrow else 2)
    return AttentionSpec(
        "gqa", row.num_heads, row.num_key_value_heads, row.head_dim, row.head_dim, row.head_dim, row.head_dim,
        window, 0 if window else 1, 0.0 if window else entry, entry if window else 0.0, 0.0, (), 0, 0.0,
        core_dtype="fp8" if narrow else "bf16",
    )  # fmt: skip


def _long(frame: pd.DataFrame) -> pd.Series[bool]:
    return frame["step"] + 1 >= SHORTEST_CONTEXT


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows in bf16, windows over a single head left out (`core_class` takes them for another kernel's)."""
    rows = frame[(frame["attn_dtype"] == "bfloat16") & (frame["head_dim"] <= WIDEST_HEAD)]
    return rows[(rows["window_size"] == 0) | (rows["num_key_value_heads"] > 1)] if "window_size" in rows else rows


def one_kernel(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of the kernel that is fastest where several ran the same shapes, of equals the one with most rows: a stack
    runs one of them, and another where that cannot."""
    best = frame.groupby(same_shapes(frame), dropna=False)["latency"].transform("min")
    slower = (frame["latency"] / best).groupby(frame["kernel_source"]).agg(["median", "size"])
    chosen = slower.sort_values(["median", "size"], ascending=[True, False]).index[0]
    return frame[frame["kernel_source"] == chosen]


def generation_attention(frame: pd.DataFrame, hardware: HardwareProfile) -> Rows:
    cut = Cut.of(Parallelism(), hardware)
    for row in each_row(one_kernel(_plain(frame[_long(frame)]))):
        attention = _gqa(row)
        reads = _decode_reads(attention, row.batch_size, row.step + 1)
        yield row, tuple(decode_core_ops(attention, row.batch_size, 1, reads, cut, selects=False))


def context_attention(frame: pd.DataFrame, hardware: HardwareProfile) -> Rows:
    cut = Cut.of(Parallelism(), hardware)
    for row in each_row(one_kernel(_plain(frame[frame["isl"] >= SHORTEST_PROMPT]))):
        attention = _gqa(row)
        reads = _prefill_reads(attention, row.batch_size, row.isl, row.step)
        new = float(row.batch_size * row.isl)
        yield row, tuple(prefill_core_ops(attention, new, 0.0, row.batch_size, reads, cut, selects=False))


def _selects(attention: AttentionSpec, context: int) -> bool:
    """Whether the last row has more entries than it may select."""
    return attention.indexer is not None and context // attention.ratio > attention.indexer.topk


def _v4_layer(model: str, ratio: int) -> LayerSpec:
    layers = _model("deepseek-v4-pro" if "Pro" in model else "deepseek-v4-flash").layers
    return next(layer for layer in layers if layer.attention.ratio == ratio)


def _v4_rows(row: Any, layer: LayerSpec, model: ModelSpec, rows: float, cut: Cut) -> list[Op]:
    """Projections, norms, compression of the attention half of a layer; collectives are not in the tables."""
    bare = replace(layer, ffn=NO_FFN, mixing=None)
    ops = [op for op in row_ops(bare, model, rows, cut) if op.op_class is not OpClass.ALL_REDUCE]
    return [replace(op, count=1) if op.name == "norm" else op for op in ops]


def v4_generation(frame: pd.DataFrame, hardware: HardwareProfile) -> Rows:
    for row in each_row(frame):
        layer = _v4_layer(row.model, row.compress_ratio)
        model = _model("deepseek-v4-pro" if "Pro" in row.model else "deepseek-v4-flash")
        cut = _cut(row.num_heads, layer.attention.heads, hardware)
        reads = _decode_reads(layer.attention, row.batch_size, row.step + 1)
        selects = _selects(layer.attention, row.step + 1)
        ops = _v4_rows(row, layer, model, row.batch_size, cut)
        yield row, (*ops, *decode_core_ops(layer.attention, row.batch_size, 1, reads, cut, selects=selects))


def v4_context(frame: pd.DataFrame, hardware: HardwareProfile) -> Rows:
    """Short prompts are left out as for `context_mla`: the simulator prices single rows as decode."""
    for row in each_row(frame[frame["isl"] >= SHORTEST_PROMPT]):
        layer = _v4_layer(row.model, row.compress_ratio)
        model = _model("deepseek-v4-pro" if "Pro" in row.model else "deepseek-v4-flash")
        cut = _cut(row.num_heads, layer.attention.heads, hardware)
        new = float(row.batch_size * row.isl)
        reads = _prefill_reads(layer.attention, row.batch_size, row.isl, row.step)
        selects = _selects(layer.attention, row.step + row.isl)
        ops = _v4_rows(row, layer, model, new, cut)
        past = float(row.batch_size * row.step)
        yield row, (*ops, *prefill_core_ops(layer.attention, new, past, row.batch_size, reads, cut, selects=selects))


def mhc(frame: pd.DataFrame, hardware: HardwareProfile) -> Rows:
    """One of the two mHC ops of both sites of a layer."""
    for row in each_row(frame):
        model = _model("deepseek-v4-pro" if row.hidden_size == PRO_HIDDEN else "deepseek-v4-flash")
        cut = Cut.of(Parallelism(), hardware)
        layer = replace(model.layers[-1], ffn=NO_FFN)
        ops = [op for op in row_ops(layer, model, row.num_tokens, cut) if op.name == f"mHC {row.op_name}"]
        yield row, tuple(replace(op, count=row.num_sites) for op in ops)


def _gated_delta_net(heads: int) -> AttentionSpec:
    """Recurrent attention of as many value heads, on one rank."""
    whole = next(x.attention for x in _model("qwen3.5-397b-a17b").layers if x.attention.convolution_width)
    share = heads / whole.heads
    return replace(
        whole,
        heads=heads,
        state_bytes=whole.state_bytes * share,
        state_flops_per_token=whole.state_flops_per_token * share,
        chunk_flops_per_token=whole.chunk_flops_per_token * share,
    )


def gdn(frame: pd.DataFrame, hardware: HardwareProfile) -> Rows:
    """State of Gated DeltaNet: one kernel in decode, and in prefill of whole chunks (shorter prompts are left out as
    for `context_mla`). Rows of the convolution beside it are left out."""
    cut = Cut.of(Parallelism(), hardware)
    recurrent = frame["kernel_source"].str.contains("gated_delta_rule")
    for row in each_row(frame[recurrent & (frame["phase"].eq("generation") | (frame["seq_len"] >= SHORTEST_PROMPT))]):
        attention = _gated_delta_net(row.num_v_heads)
        if row.phase == "generation":
            yield row, tuple(decode_core_ops(attention, row.batch_size, 1, {}, cut, selects=False))
        else:
            new = float(row.batch_size * row.seq_len)
            yield row, tuple(prefill_core_ops(attention, new, 0.0, row.batch_size, {}, cut, selects=False))

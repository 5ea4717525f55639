"""Rows of measured op tables as the ops that the simulator would price for them.

Each function takes a frame of one family and gives measurements; shapes and dtypes that the simulator has no op for
are left out (the caller counts them). Latency columns are milliseconds except DeepEP's, which are microseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pandas as pd

from calibration.op_tables.expert_loads import (
    ALPHA,
    GROUPED,
    MOST_OF_ONE,
    ROUTED_IN_GROUPS,
    power_law_counts,
    touched_in_groups,
)
from calibration.op_tables.row_filters import fastest, same_shapes
from calibration.roofline_fit import Measured
from hw_profiles.efficiency import OpClass
from hw_profiles.profile import HardwareProfile
from hw_profiles.units import MS, US
from simulator.model.architecture import AttentionSpec, LayerSpec, Linear, ModelSpec, MoeSpec, WeightDtype
from simulator.model.attention import decode_core_ops, prefill_core_ops
from simulator.model.collectives import Group, all_gather, all_reduce, all_to_all
from simulator.model.expert_load import tiles_beyond
from simulator.model.layers import linear_op, row_ops
from simulator.model.moe import INPUT_BYTES, OUTPUT_BYTES, RankLoad, copies_per_rank, fused_op, tile_of, unfused_ops
from simulator.model.ops import Counted, Op, Reader, counted, entries_read, prefill_counts, readers
from simulator.model.parallelism import Parallelism
from simulator.model.presets import load_model
from simulator.model.sharding import Cut

Rows = Iterator[tuple[Any, tuple[Op, ...]]]
LARGEST = 2000  # rows of a family: fits have 4-7 parameters a class, and hold-out needs no more
NO_FFN = MoeSpec(0, 0, 0, 0, "bf16", "bf16", "none")  # of a layer of which only the attention half is timed
ELEMENT_BYTES = 2  # of nccl and custom_allreduce message sizes
SHORTEST_PROMPT = 64  # tokens; a tile of queries (assumed)
# Tables of the wheel sweep far beyond what is served, down to products of 32 x 32 and contexts of one token, in kernels
# of another kind: such rows say nothing of the others.
FEWEST_HEADS = 8  # of latent attention on a rank: 64 over 8
SHORTEST_CONTEXT = 128  # tokens before a decoded one
WIDEST_HEAD = 256  # of grouped attention
PRODUCTS = (256, 20_000)  # inner and outer width of weights
SMALLEST_MODEL = 2048  # hidden size of routed experts
ONE_SPLIT = 256  # entries of a context that a decode core reads in one go, of MLA (assumed)
UNSPLIT = 2 / 3  # of the launches of a core
NODE = 8  # accelerators of a node in the DeepEP tables

# 4-bit GEMM tables multiply 4-bit by 4-bit; the simulator's 4-bit projections are weight-only, so they are left out.
GEMM_DTYPE: dict[str, WeightDtype] = {"bfloat16": "bf16", "fp8_block": "fp8", "fp8": "fp8"}
# (storage, operand precision) of expert GEMMs
MOE_DTYPE: dict[str, tuple[WeightDtype, WeightDtype]] = {
    "bfloat16": ("bf16", "bf16"),
    "fp8_block": ("fp8", "fp8"),
    "nvfp4": ("fp4", "fp4"),
    "w4a8_mxfp4_mxfp8": ("fp4", "fp8"),
}


def _each(frame: pd.DataFrame) -> Iterator[Any]:
    """Rows as named tuples, of large tables a sample; what the columns hold is the table's affair."""
    if len(frame) > LARGEST:
        frame = frame.sample(LARGEST, random_state=0).sort_index()
    return iter(frame.itertuples())


def gemm(frame: pd.DataFrame, _: HardwareProfile) -> Rows:
    """Block-scaled FP8 where the stack has it (what checkpoints ship), per-tensor FP8 left out; and bf16."""
    served = frame["n"].between(*PRODUCTS) & frame["k"].between(*PRODUCTS)
    for row in _each(frame[served & frame["gemm_dtype"].isin(["bfloat16", "fp8_block"])]):
        linear = Linear("gemm", row.k, row.n, GEMM_DTYPE[row.gemm_dtype])
        yield row, (linear_op(linear, row.m),)


def moe(frame: pd.DataFrame, _: HardwareProfile) -> Rows:
    """Whole experts on one rank (moe_ep_size 1: other sizes count tokens differently by framework), loads by power
    law; `balanced` rows of two frameworks touch fewer experts than they say."""
    rows = fastest(frame[(frame["moe_ep_size"] == 1) & (frame["distribution"] == f"power_law_{ALPHA}")])
    for row in _each(rows[rows["moe_dtype"].isin(list(MOE_DTYPE)) & (rows["hidden_size"] >= SMALLEST_MODEL)]):
        storage, operand = MOE_DTYPE[row.moe_dtype]
        ffn = _experts(row, storage, operand)
        yield row, tuple(unfused_ops(ffn, _load(row), row.moe_tp_size))


def _load(row: Any) -> RankLoad:
    counts = power_law_counts(row.num_tokens * row.topk, row.num_experts, ALPHA, row.num_tokens * MOST_OF_ONE)
    choices, touched = float(counts.sum()), float((counts > 0).sum())
    groups = GROUPED.get((row.num_experts, row.topk, row.hidden_size))
    if groups and row.db_framework in ROUTED_IN_GROUPS:
        touched = touched_in_groups(row.num_tokens, row.topk, tuple(counts.astype(int).tolist()), *groups)
    crowded = tiles_beyond(counts[counts > 0], tile_of(choices / row.num_experts))
    return RankLoad(choices, touched, float(crowded.mean()) * touched)


def _experts(row: Any, storage: WeightDtype, operand: WeightDtype) -> MoeSpec:
    return MoeSpec(row.num_experts, row.topk, row.inter_size, row.hidden_size, storage, operand, "scored")


def megamoe(frame: pd.DataFrame, hardware: HardwareProfile) -> Rows:
    """One fused kernel over moe_ep_size ranks. The busiest rank binds; imbalance of sampled loads is not counted, so
    only balanced rows are used."""
    for row in _each(frame[frame["distribution"] == "balanced"]):
        ffn = _experts(row, "fp4", "fp8")
        cut = Cut.of(Parallelism(dp=row.moe_ep_size, ep=row.moe_ep_size), hardware)
        held = row.num_experts / row.moe_ep_size
        choices = row.num_tokens * row.topk
        touched = min(held, float(choices))  # balanced rows spread tokens evenly over experts
        yield row, (fused_op(ffn, row.num_tokens, RankLoad(choices, touched, 0.0), cut),)


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
    for row in _each(frame[(frame["num_heads"] >= FEWEST_HEADS) & _long(frame)]):
        attention = _mla(row.kv_cache_dtype)
        reads = _decode_reads(attention, row.batch_size, row.step + 1)
        cut = _cut(row.num_heads, attention.heads, hardware)
        ops = decode_core_ops(attention, row.batch_size, 1, reads, cut, selects=False)
        yield row, tuple(replace(op, hops=UNSPLIT) if row.step < ONE_SPLIT else op for op in ops)


def context_mla(frame: pd.DataFrame, hardware: HardwareProfile) -> Rows:
    """Prompts shorter than a tile are decode in disguise and left out."""
    for row in _each(frame[(frame["isl"] >= SHORTEST_PROMPT) & (frame["num_heads"] >= FEWEST_HEADS)]):
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
    for row in _each(one_kernel(_plain(frame[_long(frame)]))):
        attention = _gqa(row)
        reads = _decode_reads(attention, row.batch_size, row.step + 1)
        yield row, tuple(decode_core_ops(attention, row.batch_size, 1, reads, cut, selects=False))


def context_attention(frame: pd.DataFrame, hardware: HardwareProfile) -> Rows:
    cut = Cut.of(Parallelism(), hardware)
    for row in _each(one_kernel(_plain(frame[frame["isl"] >= SHORTEST_PROMPT]))):
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
    for row in _each(frame):
        layer = _v4_layer(row.model, row.compress_ratio)
        model = _model("deepseek-v4-pro" if "Pro" in row.model else "deepseek-v4-flash")
        cut = _cut(row.num_heads, layer.attention.heads, hardware)
        reads = _decode_reads(layer.attention, row.batch_size, row.step + 1)
        selects = _selects(layer.attention, row.step + 1)
        ops = _v4_rows(row, layer, model, row.batch_size, cut)
        yield row, (*ops, *decode_core_ops(layer.attention, row.batch_size, 1, reads, cut, selects=selects))


def v4_context(frame: pd.DataFrame, hardware: HardwareProfile) -> Rows:
    """Short prompts are left out as for `context_mla`: the simulator prices single rows as decode."""
    for row in _each(frame[frame["isl"] >= SHORTEST_PROMPT]):
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
    for row in _each(frame):
        model = _model("deepseek-v4-pro" if row.hidden_size == 7168 else "deepseek-v4-flash")
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
    for row in _each(frame[recurrent & (frame["phase"].eq("generation") | (frame["seq_len"] >= SHORTEST_PROMPT))]):
        attention = _gated_delta_net(row.num_v_heads)
        if row.phase == "generation":
            yield row, tuple(decode_core_ops(attention, row.batch_size, 1, {}, cut, selects=False))
        else:
            new = float(row.batch_size * row.seq_len)
            yield row, tuple(prefill_core_ops(attention, new, 0.0, row.batch_size, {}, cut, selects=False))


def nccl(frame: pd.DataFrame, hardware: HardwareProfile) -> Rows:
    """All-gather and reduce-scatter inside a domain; the stacks' own kernels run the all-reduce."""
    for row in _each(frame[frame["op_name"].isin(["all_gather", "reduce_scatter"])]):
        group = Group(row.num_gpus, hardware.scale_up_domain)
        yield row, tuple(all_gather("gather", float(row.message_size * ELEMENT_BYTES), group))


def custom_allreduce(frame: pd.DataFrame, hardware: HardwareProfile) -> Rows:
    rows = frame[~frame["kernel_source"].astype(str).str.endswith("eager")]
    for row in _each(rows[rows["num_gpus"] <= hardware.scale_up_domain]):
        group = Group(row.num_gpus, hardware.scale_up_domain)
        yield row, tuple(all_reduce("all-reduce", float(row.message_size * ELEMENT_BYTES), group))


def deepep(frame: pd.DataFrame, hardware: HardwareProfile) -> Rows:
    """Dispatch and combine of one node, newest version only (older tables are copies of each other)."""
    rows = frame[(frame["node_num"] == 1) & (frame["db_version"] == frame["db_version"].max())]
    for row in _each(rows[rows["num_topk"] > 1]):
        group = Group(NODE, max(NODE, hardware.scale_up_domain))
        remote = copies_per_rank(row.num_topk, NODE) * (NODE - 1) / NODE * row.num_token * row.hidden_size
        out = all_to_all("dispatch", remote * INPUT_BYTES["fp8"], 0.0, group)
        back = all_to_all("combine", remote * OUTPUT_BYTES, 0.0, group)
        yield row, (out, back)


# One launch on the same operands, over and over: times of products and experts show no such warmth. Those of MLA decode
# show little, and serving is predicted worse from rates that are fitted beside it.
WARM = ("generation_attention", "mhc_module")

FAMILY_ROWS: dict[str, Callable[[pd.DataFrame, HardwareProfile], Rows]] = {
    "gemm": gemm,
    "moe": moe,
    "dsv4_megamoe": megamoe,
    "generation_mla": generation_mla,
    "context_mla": context_mla,
    "generation_attention": generation_attention,
    "context_attention": context_attention,
    "dsv4_csa_generation_module": v4_generation,
    "dsv4_hca_generation_module": v4_generation,
    "dsv4_csa_context_module": v4_context,
    "dsv4_hca_context_module": v4_context,
    "mhc_module": mhc,
    "gdn": gdn,
    "nccl": nccl,
    "custom_allreduce": custom_allreduce,
    "deepep_low_latency": deepep,
}


def measurements(family: str, frame: pd.DataFrame, hardware: HardwareProfile) -> list[Measured]:
    """Measurements of one family."""
    found = []
    for row, ops in FAMILY_ROWS[family](frame, hardware):
        if family == "deepep_low_latency":
            seconds = (row.dispatch_avg_t_us + row.combine_avg_t_us) * US
        else:
            seconds = row.latency * MS
        found.append(Measured(family, ops, float(seconds), f"{family} row {row.Index}", family in WARM))
    return found

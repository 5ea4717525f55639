"""Rows of measured op tables as the ops that the simulator would price for them.

Each function takes a frame of one family and gives measurements; shapes and dtypes that the simulator has no op for
are left out (the caller counts them). Latency columns are milliseconds except DeepEP's, which are microseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from calibration.op_tables.attention_rows import (
    context_attention,
    context_mla,
    gdn,
    generation_attention,
    generation_mla,
    mhc,
    v4_context,
    v4_generation,
)
from calibration.op_tables.expert_loads import (
    ALPHA,
    GROUPED,
    MOST_OF_ONE,
    ROUTED_IN_GROUPS,
    power_law_counts,
    touched_in_groups,
)
from calibration.op_tables.row_filters import fastest
from calibration.op_tables.rows import Rows, each_row
from calibration.roofline_fit import MeasuredWork
from hw_profiles.profile import HardwareProfile
from hw_profiles.units import MS, US
from simulator.model.architecture import Linear, MoeSpec, WeightDtype
from simulator.model.collectives import RankGroup, all_gather, all_reduce, all_to_all
from simulator.model.expert_load import tiles_beyond
from simulator.model.layers import linear_op
from simulator.model.moe import INPUT_BYTES, OUTPUT_BYTES, RankLoad, copies_per_rank, fused_op, tile_of, unfused_ops
from simulator.model.parallelism import Parallelism
from simulator.model.sharding import Cut

ELEMENT_BYTES = 2  # of nccl and custom_allreduce message sizes
# Tables of the wheel sweep far beyond what is served, down to products of 32 x 32, in kernels of another kind: such
# rows say nothing of the others.
PRODUCTS = (256, 20_000)  # inner and outer width of weights
SMALLEST_MODEL = 2048  # hidden size of routed experts
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


def gemm(frame: pd.DataFrame, _: HardwareProfile) -> Rows:
    """Block-scaled FP8 where the stack has it (what checkpoints ship), per-tensor FP8 left out; and bf16."""
    served = frame["n"].between(*PRODUCTS) & frame["k"].between(*PRODUCTS)
    for row in each_row(frame[served & frame["gemm_dtype"].isin(["bfloat16", "fp8_block"])]):
        linear = Linear("gemm", row.k, row.n, GEMM_DTYPE[row.gemm_dtype])
        yield row, (linear_op(linear, row.m),)


def moe(frame: pd.DataFrame, _: HardwareProfile) -> Rows:
    """Whole experts on one rank (moe_ep_size 1: other sizes count tokens differently by framework), loads by power
    law; `balanced` rows of two frameworks touch fewer experts than they say."""
    rows = fastest(frame[(frame["moe_ep_size"] == 1) & (frame["distribution"] == f"power_law_{ALPHA}")])
    for row in each_row(rows[rows["moe_dtype"].isin(list(MOE_DTYPE)) & (rows["hidden_size"] >= SMALLEST_MODEL)]):
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
    for row in each_row(frame[frame["distribution"] == "balanced"]):
        ffn = _experts(row, "fp4", "fp8")
        cut = Cut.of(Parallelism(dp=row.moe_ep_size, ep=row.moe_ep_size), hardware)
        held = row.num_experts / row.moe_ep_size
        choices = row.num_tokens * row.topk
        touched = min(held, float(choices))  # balanced rows spread tokens evenly over experts
        yield row, (fused_op(ffn, row.num_tokens, RankLoad(choices, touched, 0.0), cut),)


def nccl(frame: pd.DataFrame, hardware: HardwareProfile) -> Rows:
    """All-gather and reduce-scatter inside a domain; the stacks' own kernels run the all-reduce."""
    for row in each_row(frame[frame["op_name"].isin(["all_gather", "reduce_scatter"])]):
        group = RankGroup(row.num_gpus, hardware.scale_up_domain)
        yield row, tuple(all_gather("gather", float(row.message_size * ELEMENT_BYTES), group))


def custom_allreduce(frame: pd.DataFrame, hardware: HardwareProfile) -> Rows:
    rows = frame[~frame["kernel_source"].astype(str).str.endswith("eager")]
    for row in each_row(rows[rows["num_gpus"] <= hardware.scale_up_domain]):
        group = RankGroup(row.num_gpus, hardware.scale_up_domain)
        yield row, tuple(all_reduce("all-reduce", float(row.message_size * ELEMENT_BYTES), group))


def deepep(frame: pd.DataFrame, hardware: HardwareProfile) -> Rows:
    """Dispatch and combine of one node, newest version only (older tables are copies of each other)."""
    rows = frame[(frame["node_num"] == 1) & (frame["db_version"] == frame["db_version"].max())]
    for row in each_row(rows[rows["num_topk"] > 1]):
        group = RankGroup(NODE, max(NODE, hardware.scale_up_domain))
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


def measurements(family: str, frame: pd.DataFrame, hardware: HardwareProfile) -> list[MeasuredWork]:
    """Measurements of one family."""
    found = []
    for row, ops in FAMILY_ROWS[family](frame, hardware):
        if family == "deepep_low_latency":
            seconds = (row.dispatch_avg_t_us + row.combine_avg_t_us) * US
        else:
            seconds = row.latency * MS
        found.append(MeasuredWork(family, ops, float(seconds), f"{family} row {row.Index}", family in WARM))
    return found

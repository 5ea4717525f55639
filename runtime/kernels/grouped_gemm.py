"""Both products of the routed experts, each one persistent launch over all experts.

Row tiles come from an Alignment whose size only the device knows: a fixed grid walks the used tiles, so the
host never waits and a CUDA graph can hold the launch. fp4 weights are decoded in registers on their way to
the matrix unit; fp8 weights meet fp8 activations and are scaled per 128-wide step.
"""

from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from runtime.kernels.configs import (
    BULK_COPY_BYTES,
    Tile,
    compute_units,
    grouped_tile,
    uses_descriptors,
    weight_format,
)
from runtime.kernels.fp8_gemm import GROUP_M, tile_coordinates
from runtime.kernels.grouped_gemm_step import accumulate, load_left
from runtime.kernels.quantize import group_scale, to_fp8
from runtime.reference.moe_align import Alignment
from runtime.reference.quantize import SCALE_BLOCK

COMBINED_COLUMNS = 1024  # of one program at most (assumed)


@triton.jit
def _gemm1_kernel(
    x,
    x_scale,
    w,
    w_scale,
    row_scale,
    out,
    out_scale,
    pairs,
    tile_expert,
    num_rows,
    num_pairs,
    inter,
    K,
    k_blocks,
    x_stride,
    limit,
    TOP_K: tl.constexpr,
    FORMAT: tl.constexpr,
    SCALED: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    ONE_SCALE: tl.constexpr,
    ROW_SCALED: tl.constexpr,
    CLAMP: tl.constexpr,
    QUANTIZE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
):
    tiles_m, tiles_n = tl.load(num_rows) // BM, tl.cdiv(inter, BN)
    for tile in range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0)):
        tile_m, tile_n = tile_coordinates(tile, tiles_m, tiles_n, GROUP)
        pair = tl.load(pairs + tile_m * BM + tl.arange(0, BM))
        valid = pair < num_pairs
        expert = tl.load(tile_expert + tile_m).to(tl.int64)
        row = tile_n * BN
        gate = tl.zeros((BM, BN), tl.float32)
        up = tl.zeros((BM, BN), tl.float32)
        for step in range(tl.cdiv(K, BK)):
            left, scale = load_left(x, x_scale, pair // TOP_K, valid, step, K, k_blocks, x_stride, SCALED, BM, BK)
            gate = accumulate(
                gate, left, scale, w, w_scale, expert, row, 2 * inter, step, K, k_blocks,
                FORMAT, DESCRIPTOR, ONE_SCALE, BN, BK,
            )  # fmt: skip
            up = accumulate(
                up, left, scale, w, w_scale, expert, inter + row, 2 * inter, step, K, k_blocks,
                FORMAT, DESCRIPTOR, ONE_SCALE, BN, BK,
            )  # fmt: skip
        column = row + tl.arange(0, BN)
        if ROW_SCALED:
            own = row_scale + expert * 2 * inter + column
            gate *= tl.load(own, mask=column < inter, other=0.0)[None, :]
            up *= tl.load(own + inter, mask=column < inter, other=0.0)[None, :]
        if CLAMP:
            gate = tl.minimum(gate, limit)
            up = tl.minimum(tl.maximum(up, -limit), limit)
        inside = valid[:, None] & (column < inter)[None, :]
        hidden = tl.where((column < inter)[None, :], gate * tl.sigmoid(gate) * up, 0.0)
        place = pair.to(tl.int64)[:, None] * inter + column[None, :]
        if QUANTIZE:  # BN is the scale group
            scale = group_scale(hidden, False)
            tl.store(out + place, to_fp8(hidden, scale), mask=inside)
            tl.store(out_scale + pair * tl.cdiv(inter, BN) + tile_n, scale, mask=valid)
        else:
            tl.store(out + place, hidden.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gemm2_kernel(
    h,
    h_scale,
    w,
    w_scale,
    row_scale,
    weights,
    out,
    pairs,
    tile_expert,
    num_rows,
    num_pairs,
    N,
    K,
    k_blocks,
    FORMAT: tl.constexpr,
    SCALED: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    ONE_SCALE: tl.constexpr,
    ROW_SCALED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
):
    tiles_m, tiles_n = tl.load(num_rows) // BM, tl.cdiv(N, BN)
    for tile in range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0)):
        tile_m, tile_n = tile_coordinates(tile, tiles_m, tiles_n, GROUP)
        pair = tl.load(pairs + tile_m * BM + tl.arange(0, BM))
        valid = pair < num_pairs
        expert = tl.load(tile_expert + tile_m).to(tl.int64)
        acc = tl.zeros((BM, BN), tl.float32)
        for step in range(tl.cdiv(K, BK)):
            left, scale = load_left(h, h_scale, pair, valid, step, K, k_blocks, K, SCALED, BM, BK)
            acc = accumulate(
                acc, left, scale, w, w_scale, expert, tile_n * BN, N, step, K, k_blocks,
                FORMAT, DESCRIPTOR, ONE_SCALE, BN, BK,
            )  # fmt: skip
        acc *= tl.load(weights + pair, mask=valid, other=0.0)[:, None]
        column = tile_n * BN + tl.arange(0, BN)
        if ROW_SCALED:
            acc *= tl.load(row_scale + expert * N + column, mask=column < N, other=0.0)[None, :]
        place = pair.to(tl.int64)[:, None] * N + column[None, :]
        tl.store(out + place, acc.to(out.dtype.element_ty), mask=valid[:, None] & (column < N)[None, :])


@triton.jit
def _combine_kernel(y, ids, out, num_experts, columns, TOP_K: tl.constexpr, BLOCK: tl.constexpr):
    """Sum the choices of one token, in order: the result does not depend on the order of atomics."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for choice in tl.static_range(TOP_K):
        pair = token * TOP_K + choice
        expert = tl.load(ids + pair)
        held = (expert >= 0) & (expert < num_experts)
        acc += tl.load(y + pair * columns + column, mask=(column < columns) & held, other=0.0).to(tl.float32)
    tl.store(out + token * columns + column, acc.to(out.dtype.element_ty), mask=column < columns)


def _weight_source(weight: Tensor, scale: Tensor | None, tile: Tile) -> tuple[Any, str, bool]:
    """The kernel's view of a stored weight [E, N, K]: (pointer or descriptor, format, whether a
    descriptor).
    """
    if not weight.is_contiguous():
        raise ValueError(f"expert weights with strides {weight.stride()} must be contiguous")
    form = weight_format(weight, scale)
    experts, rows, columns = weight.shape
    descriptor = (
        weight.dtype != torch.uint8
        and uses_descriptors(weight.device)
        and columns * weight.element_size() % BULK_COPY_BYTES == 0
    )
    if not descriptor:
        return weight, form, False
    flat = weight.view(experts * rows, columns)
    return TensorDescriptor.from_tensor(flat, [tile.n, tile.k]), form, True


def grouped_gemm1(
    x: Tensor,
    x_scale: Tensor | None,
    w13: Tensor,
    w13_scale: Tensor | None,
    alignment: Alignment,
    top_k: int,
    limit: float | None = None,
    quantize: bool = False,
    row_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """See runtime.reference.grouped_gemm."""
    (tokens, k), inter, device = x.shape, w13.shape[1] // 2, x.device
    num_pairs = tokens * top_k
    tile = grouped_tile(device, w13, alignment.block_m)
    if quantize:
        tile = replace(tile, n=SCALE_BLOCK)
    source, form, descriptor = _weight_source(w13, w13_scale, tile)
    float_dtype = x.dtype if x_scale is None else torch.bfloat16
    out_dtype = torch.float8_e4m3fn if quantize else float_dtype
    out = torch.empty(num_pairs, inter, dtype=out_dtype, device=device)
    groups = triton.cdiv(inter, SCALE_BLOCK)
    out_scale = torch.empty(num_pairs, groups, dtype=torch.float32, device=device) if quantize else None
    if num_pairs:
        max_tiles = alignment.tile_expert.shape[0] * triton.cdiv(inter, tile.n)
        _gemm1_kernel[(min(max_tiles, compute_units(device)),)](
            x,
            x_scale,
            source,
            w13_scale,
            row_scale,
            out,
            out_scale,
            alignment.pairs,
            alignment.tile_expert,
            alignment.num_rows,
            num_pairs,
            inter,
            k,
            triton.cdiv(k, SCALE_BLOCK),
            x.stride(0),
            limit or 0.0,
            TOP_K=top_k,
            FORMAT=form,
            SCALED=x_scale is not None,
            DESCRIPTOR=descriptor,
            ONE_SCALE=SCALE_BLOCK % tile.n == 0 and inter % tile.n == 0,
            ROW_SCALED=row_scale is not None,
            CLAMP=limit is not None,
            QUANTIZE=quantize,
            BM=tile.m,
            BN=tile.n,
            BK=tile.k,
            GROUP=GROUP_M,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return out, out_scale


def grouped_gemm2_combine(
    h: Tensor,
    h_scale: Tensor | None,
    w2: Tensor,
    w2_scale: Tensor | None,
    alignment: Alignment,
    weights: Tensor,
    expert_ids: Tensor,
    out_dtype: torch.dtype,
    row_scale: Tensor | None = None,
) -> Tensor:
    """See runtime.reference.grouped_gemm. Each choice is rounded to out_dtype before the sum."""
    (tokens, top_k), (experts, columns, _) = weights.shape, w2.shape
    (num_pairs, k), device = h.shape, h.device
    tile = grouped_tile(device, w2, alignment.block_m)
    source, form, descriptor = _weight_source(w2, w2_scale, tile)
    y = torch.empty(num_pairs, columns, dtype=out_dtype, device=device)
    out = torch.empty(tokens, columns, dtype=out_dtype, device=device)
    if tokens == 0:
        return out
    max_tiles = alignment.tile_expert.shape[0] * triton.cdiv(columns, tile.n)
    _gemm2_kernel[(min(max_tiles, compute_units(device)),)](
        h,
        h_scale,
        source,
        w2_scale,
        row_scale,
        weights.contiguous(),
        y,
        alignment.pairs,
        alignment.tile_expert,
        alignment.num_rows,
        num_pairs,
        columns,
        k,
        triton.cdiv(k, SCALE_BLOCK),
        FORMAT=form,
        SCALED=h_scale is not None,
        DESCRIPTOR=descriptor,
        ONE_SCALE=SCALE_BLOCK % tile.n == 0,
        ROW_SCALED=row_scale is not None,
        BM=tile.m,
        BN=tile.n,
        BK=tile.k,
        GROUP=GROUP_M,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    block = min(triton.next_power_of_2(columns), COMBINED_COLUMNS)
    _combine_kernel[(tokens, triton.cdiv(columns, block))](
        y, expert_ids.contiguous(), out, experts, columns, TOP_K=top_k, BLOCK=block, num_warps=4
    )
    return out

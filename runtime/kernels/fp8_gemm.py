"""Dense product of block-scaled fp8 operands: persistent, accumulated per 128-wide step in float32.

Hopper's fp8 matrix unit keeps about 14 bits while it accumulates, so every 128-wide step starts from zero
and is scaled and added in float32 (DeepSeek-V3 report, section 3.3.2).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from runtime.kernels.configs import BULK_COPY_BYTES, compute_units, dense_fp8_tile, uses_descriptors
from runtime.reference.quantize import SCALE_BLOCK

_SCALE_BLOCK = tl.constexpr(SCALE_BLOCK)
GROUP_M = 8  # row tiles that share a weight tile while it is in L2


@triton.jit
def tile_coordinates(tile, tiles_m, tiles_n, GROUP: tl.constexpr):
    """Walk GROUP row tiles down, then one column tile across: (row tile, column tile)."""
    in_group = GROUP * tiles_n
    first = tile // in_group * GROUP
    size = tl.minimum(tiles_m - first, GROUP)
    return first + tile % in_group % size, tile % in_group // size


@triton.jit
def load_rows(source, row, rows, column, columns, DESCRIPTOR: tl.constexpr, R: tl.constexpr, C: tl.constexpr):
    """Tile [R, C] from (row, column) of a row-major matrix, zero beyond its edges.

    source: a tensor descriptor of block [R, C], or a pointer to `columns`-wide rows.
    """
    if DESCRIPTOR:
        block = source.load([row, column])
    else:
        r, c = row + tl.arange(0, R), column + tl.arange(0, C)
        place = r.to(tl.int64)[:, None] * columns + c[None, :]
        block = tl.load(source + place, mask=(r < rows)[:, None] & (c < columns)[None, :], other=0.0)
    return block


@triton.jit
def _fp8_gemm_kernel(
    a,
    a_scale,
    b,
    b_scale,
    out,
    M,
    N,
    K,
    k_blocks,
    DESCRIPTOR: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
):
    tiles_m, tiles_n = tl.cdiv(M, BM), tl.cdiv(N, BN)
    for tile in range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0)):
        tile_m, tile_n = tile_coordinates(tile, tiles_m, tiles_n, GROUP)
        row, column = tile_m * BM, tile_n * BN
        rows, columns = row + tl.arange(0, BM), column + tl.arange(0, BN)
        acc = tl.zeros((BM, BN), tl.float32)
        for step in range(tl.cdiv(K, BK)):
            left = load_rows(a, row, M, step * BK, K, DESCRIPTOR, BM, BK)
            right = load_rows(b, column, N, step * BK, K, DESCRIPTOR, BN, BK)
            left_scale = tl.load(a_scale + rows * k_blocks + step, mask=rows < M, other=0.0)
            # BN divides the scale block, so a tile has one weight scale a step.
            right_scale = tl.load(b_scale + column // _SCALE_BLOCK * k_blocks + step)
            acc += tl.dot(left, right.T) * (left_scale * right_scale)[:, None]
        inside = (rows < M)[:, None] & (columns < N)[None, :]
        place = rows.to(tl.int64)[:, None] * N + columns[None, :]
        tl.store(out + place, acc.to(out.dtype.element_ty), mask=inside)


def fp8_gemm(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, out_dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """See runtime.reference.fp8_gemm."""
    (m, k), n = a.shape, b.shape[0]
    out = torch.empty(m, n, dtype=out_dtype, device=a.device)
    if m == 0:
        return out
    tile = dense_fp8_tile(a.device, m)
    a, b = a.contiguous(), b.contiguous()
    descriptor = uses_descriptors(a.device) and k % BULK_COPY_BYTES == 0
    if descriptor:
        left = TensorDescriptor.from_tensor(a, [tile.m, tile.k])
        right = TensorDescriptor.from_tensor(b, [tile.n, tile.k])
    else:
        left, right = a, b
    tiles = triton.cdiv(m, tile.m) * triton.cdiv(n, tile.n)
    _fp8_gemm_kernel[(min(tiles, compute_units(a.device)),)](
        left,
        a_scale.contiguous(),
        right,
        b_scale.contiguous(),
        out,
        m,
        n,
        k,
        triton.cdiv(k, SCALE_BLOCK),
        DESCRIPTOR=descriptor,
        BM=tile.m,
        BN=tile.n,
        BK=tile.k,
        GROUP=GROUP_M,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out

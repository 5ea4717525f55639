"""Dense product with a weight of packed fp4: codes are decoded in registers on their way to the matrix unit."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.kernels.configs import LEAST_ROWS, SKINNY_ROWS, compute_units, grouped_tile, weight_format
from runtime.kernels.fp8_gemm import GROUP_M, load_rows, tile_coordinates
from runtime.kernels.grouped_gemm_step import load_fp4


@triton.jit
def _fp4_gemm_kernel(
    a,
    b,
    b_scale,
    row_scale,
    out,
    M,
    N,
    K,
    FORMAT: tl.constexpr,
    ROW_SCALED: tl.constexpr,
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
            left = load_rows(a, row, M, step * BK, K, False, BM, BK)
            right = load_fp4(b, b_scale, 0, column, N, step * BK, K, FORMAT, BN, BK)
            acc = tl.dot(left.to(tl.bfloat16), right, acc)
        if ROW_SCALED:
            acc *= tl.load(row_scale + columns, mask=columns < N, other=0.0)[None, :]
        inside = (rows < M)[:, None] & (columns < N)[None, :]
        place = rows.to(tl.int64)[:, None] * N + columns[None, :]
        tl.store(out + place, acc.to(out.dtype.element_ty), mask=inside)


def fp4_gemm(
    a: Tensor, b: Tensor, b_scale: Tensor, row_scale: Tensor | None = None, out_dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """See runtime.reference.fp4_gemm. Products are of bfloat16 operands."""
    (m, k), n = a.shape, b.shape[0]
    out = torch.empty(m, n, dtype=out_dtype, device=a.device)
    if m == 0:
        return out
    tile = grouped_tile(a.device, b, max(LEAST_ROWS, min(SKINNY_ROWS, triton.next_power_of_2(m))))
    tiles = triton.cdiv(m, tile.m) * triton.cdiv(n, tile.n)
    _fp4_gemm_kernel[(min(tiles, compute_units(a.device)),)](
        a.contiguous(),
        b.contiguous(),
        b_scale.contiguous(),
        row_scale,
        out,
        m,
        n,
        k,
        FORMAT=weight_format(b, b_scale),
        ROW_SCALED=row_scale is not None,
        BM=tile.m,
        BN=tile.n,
        BK=tile.k,
        GROUP=GROUP_M,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out

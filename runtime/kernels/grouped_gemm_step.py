"""One step of a product of routed experts along its inner axis: activations and weights of every stored format."""

import triton
import triton.language as tl

from runtime.kernels.fp8_gemm import load_rows
from runtime.reference.quantize import FP4_GROUP, NVFP4_GROUP, SCALE_BLOCK, UE8M0_BIAS

_SCALE_BLOCK = tl.constexpr(SCALE_BLOCK)
_FP4_GROUP = tl.constexpr(FP4_GROUP)
_NVFP4_GROUP = tl.constexpr(NVFP4_GROUP)
_NO_SCALE = tl.constexpr(UE8M0_BIAS)  # the exponent byte of one


@triton.jit
def decode_fp4(code, exponent):
    """Values of e2m1 codes (low four bits of an int32 tile) under ue8m0 exponents of the same shape:
    bfloat16.

    All in the bits of a float32: the two exponents add up; the one subnormal code (0.5) is 2^-1 of the scale.
    Exact while the scale is between 2^-125 and 2^125.
    """
    power, half = (code >> 1) & 3, code & 1
    subnormal = power == 0
    field = tl.where(subnormal, tl.where(half == 1, exponent - 1, 0), exponent + power - 1)
    mantissa = tl.where(subnormal, 0, half << 22)
    bits = ((code & 8) << 28) | (field << 23) | mantissa
    return bits.to(tl.float32, bitcast=True).to(tl.bfloat16)


@triton.jit
def load_fp4(w, w_scale, first, row, rows, column, K, FORMAT: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """Tile [BK, BN] bfloat16 of packed fp4 rows first + row ..., each group's scale read once and spread in registers.

    An e4m3 scale (4 significant bits) times a code (2) is exact in bfloat16 (8).
    """
    GROUP: tl.constexpr = _FP4_GROUP if FORMAT == "fp4" else _NVFP4_GROUP
    r, byte = row + tl.arange(0, BN), column // 2 + tl.arange(0, BK // 2)
    group = column // GROUP + tl.arange(0, BK // GROUP)
    known = (r < rows)[:, None]
    flat = first + r.to(tl.int64)[:, None]
    packed = tl.load(w + flat * (K // 2) + byte[None, :], mask=known & (byte * 2 < K)[None, :], other=0).to(tl.int32)
    place, there = flat * (K // GROUP) + group[None, :], known & (group * GROUP < K)[None, :]
    if FORMAT == "fp4":
        scale = tl.load(w_scale + place, mask=there, other=_NO_SCALE).to(tl.int32)
    else:
        scale = tl.load(w_scale + place, mask=there, other=0.0).to(tl.float32)
    spread = tl.broadcast_to(scale[:, :, None], (BN, BK // GROUP, GROUP // 2))
    spread = tl.reshape(spread, (BN, BK // 2))
    if FORMAT == "fp4":
        low, high = decode_fp4(packed & 15, spread), decode_fp4(packed >> 4, spread)
    else:
        one = tl.full((BN, BK // 2), _NO_SCALE, tl.int32)
        low = (decode_fp4(packed & 15, one).to(tl.float32) * spread).to(tl.bfloat16)
        high = (decode_fp4(packed >> 4, one).to(tl.float32) * spread).to(tl.bfloat16)
    return tl.reshape(tl.permute(tl.join(low, high), (1, 2, 0)), (BK, BN))


@triton.jit
def accumulate(
    acc,
    left,
    left_scale,
    w,
    w_scale,
    expert,
    row,
    rows,
    step,
    K,
    k_blocks,
    FORMAT: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    ONE_SCALE: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """acc += left [BM, BK] @ w[expert, row : row + BN, step * BK : ...].T, with every scale applied.

    rows: rows of one expert's weight; ONE_SCALE: the tile's rows lie within one fp8 scale block.
    """
    column = step * BK
    if FORMAT == "fp4" or FORMAT == "nvfp4":
        right = load_fp4(w, w_scale, expert * rows, row, rows, column, K, FORMAT, BN, BK)
        acc += tl.dot(left.to(tl.bfloat16), right) * left_scale[:, None]
    else:
        if DESCRIPTOR:
            right = w.load([(expert * rows).to(tl.int32) + row, column])
        else:
            right = load_rows(w + expert * rows * K, row, rows, column, K, False, BN, BK)
        if FORMAT == "float":
            acc = tl.dot(left, right.T, acc)
        else:
            product = tl.dot(left, right.to(left.dtype).T)
            base = w_scale + expert * tl.cdiv(rows, _SCALE_BLOCK) * k_blocks + step
            if ONE_SCALE:
                acc += product * (left_scale * tl.load(base + row // _SCALE_BLOCK * k_blocks))[:, None]
            else:
                r = row + tl.arange(0, BN)
                right_scale = tl.load(base + r // _SCALE_BLOCK * k_blocks, mask=r < rows, other=0.0)
                acc += product * left_scale[:, None] * right_scale[None, :]
    return acc


@triton.jit
def load_left(
    x, x_scale, source, valid, step, K, k_blocks, x_stride, SCALED: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr
):
    """Rows `source` of the activations: tile [BM, BK] and its scales [BM] (ones when x is not fp8)."""
    column = step * BK + tl.arange(0, BK)
    inside = valid[:, None] & (column < K)[None, :]
    left = tl.load(x + source.to(tl.int64)[:, None] * x_stride + column[None, :], mask=inside, other=0.0)
    if SCALED:
        place = source * k_blocks + step * BK // _SCALE_BLOCK
        scale = tl.load(x_scale + place, mask=valid, other=0.0)
    else:
        scale = tl.full((BM,), 1.0, tl.float32)
    return left, scale

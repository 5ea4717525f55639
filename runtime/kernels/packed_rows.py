"""Cache rows packed into bytes: written by one program a row, read by whatever kernel needs a tile of them."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.kernels.grouped_gemm_step import decode_fp4
from runtime.kernels.quantize import group_scale, to_fp8
from runtime.reference.packed_rows import Packing
from runtime.reference.quantize import FP4_MAX, TINY, UE8M0_BIAS

_TINY, _FP4_MAX, _BIAS = tl.constexpr(TINY), tl.constexpr(FP4_MAX), tl.constexpr(UE8M0_BIAS)


@triton.jit
def load_packed(
    base,
    row,
    seen,
    column,
    CODED: tl.constexpr,
    ROPE: tl.constexpr,
    BYTES: tl.constexpr,
    GROUP: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Columns of rows `row` [T] int64 of fp8 rows at `base` (uint8): float32 [T, C], zero where not `seen` [T].

    column: [C], C a power of two and column[0] a multiple of it; each scale is read once and spread in registers.
    """
    C: tl.constexpr = column.shape[0]
    GROUPS: tl.constexpr = (C + GROUP - 1) // GROUP
    start = (base + row * BYTES)[:, None]
    coded = column < CODED
    place = (start + column[None, :]).to(tl.pointer_type(tl.float8e4nv), bitcast=True)
    code = tl.load(place, mask=seen[:, None] & coded[None, :], other=0.0).to(tl.float32)
    group = tl.min(column, 0) // GROUP + tl.arange(0, GROUPS)
    there = seen[:, None] & (group * GROUP < CODED)[None, :]
    scales = start + CODED + 2 * ROPE
    if WIDE:
        at = (scales + 4 * group[None, :]).to(tl.pointer_type(tl.float32), bitcast=True)
        scale = tl.load(at, mask=there, other=0.0)
    else:
        exponent = tl.load(scales + group[None, :], mask=there, other=0).to(tl.int32)
        scale = (exponent << 23).to(tl.float32, bitcast=True)
    spread = tl.broadcast_to(scale[:, :, None], (row.shape[0], GROUPS, C // GROUPS))
    value = code * tl.reshape(spread, (row.shape[0], C))
    if ROPE > 0:
        turned = (column >= CODED) & (column < CODED + ROPE)
        at = (start + CODED + 2 * (column - CODED)[None, :]).to(tl.pointer_type(tl.bfloat16), bitcast=True)
        rope = tl.load(at, mask=seen[:, None] & turned[None, :], other=0.0).to(tl.float32)
        value = tl.where(turned[None, :], rope, value)
    return value


@triton.jit
def load_packed_fp4(base, row, seen, DIM: tl.constexpr, BYTES: tl.constexpr, GROUP: tl.constexpr, BD: tl.constexpr):
    """Whole fp4 rows, bfloat16 [T, BD]; exponents from 2 to 252 are exact."""
    GROUPS: tl.constexpr = (BD + GROUP - 1) // GROUP
    byte, group = tl.arange(0, BD // 2), tl.arange(0, GROUPS)
    start = (base + row * BYTES)[:, None]
    code = tl.load(start + byte[None, :], mask=seen[:, None] & (byte * 2 < DIM)[None, :], other=0).to(tl.int32)
    there = seen[:, None] & (group * GROUP < DIM)[None, :]
    exponent = tl.load(start + DIM // 2 + group[None, :], mask=there, other=_BIAS).to(tl.int32)
    spread = tl.broadcast_to(exponent[:, :, None], (row.shape[0], GROUPS, BD // 2 // GROUPS))
    spread = tl.reshape(spread, (row.shape[0], BD // 2))
    return tl.reshape(tl.join(decode_fp4(code & 15, spread), decode_fp4(code >> 4, spread)), (row.shape[0], BD))


@triton.jit
def _fp4_code(value, scale):
    """Nearest e2m1 code; a tie between two goes to the even one."""
    size = tl.abs(value) / scale[:, None]
    code = (size > 0.25).to(tl.int32) + (size >= 0.75).to(tl.int32) + (size > 1.25).to(tl.int32)
    code += (size >= 1.75).to(tl.int32) + (size > 2.5).to(tl.int32) + (size >= 3.5).to(tl.int32)
    code += (size > 5.0).to(tl.int32)
    return code | ((value.to(tl.int32, bitcast=True) >> 28) & 8)


@triton.jit
def _power_of_two_ceiling(scale):
    bits = scale.to(tl.int32, bitcast=True)
    return (bits + 0x7FFFFF) & 0x7F800000


@triton.jit
def _pack_kernel(
    values,
    cache,
    rows,
    value_stride,
    CODED: tl.constexpr,
    ROPE: tl.constexpr,
    BYTES: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    ROPE_BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
    FP4: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + token).to(tl.int64)
    if row >= 0:
        source, target = values + token * value_stride, cache + row * BYTES
        group = tl.arange(0, GROUPS)
        if FP4:
            byte = group[:, None] * (GROUP // 2) + tl.arange(0, GROUP // 2)[None, :]
            inside = byte * 2 < CODED
            even = tl.load(source + byte * 2, mask=inside, other=0.0).to(tl.float32)
            odd = tl.load(source + byte * 2 + 1, mask=inside, other=0.0).to(tl.float32)
            largest = tl.maximum(tl.max(tl.maximum(tl.abs(even), tl.abs(odd)), 1), _TINY)
            bits = _power_of_two_ceiling(tl.div_rn(largest, tl.full((GROUPS,), _FP4_MAX, tl.float32)))
            scale = bits.to(tl.float32, bitcast=True)
            both = _fp4_code(even, scale) | (_fp4_code(odd, scale) << 4)
            tl.store(target + byte, both.to(tl.uint8), mask=inside)
            tl.store(target + CODED // 2 + group, (bits >> 23).to(tl.uint8), mask=group < NUM_GROUPS)
        else:
            column = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
            inside = column < CODED
            value = tl.load(source + column, mask=inside, other=0.0).to(tl.float32)
            scale = group_scale(value, not WIDE)
            place = (target + column).to(tl.pointer_type(tl.float8e4nv), bitcast=True)
            tl.store(place, to_fp8(value, scale), mask=inside)
            scales = target + CODED + 2 * ROPE
            if WIDE:
                at = (scales + 4 * group).to(tl.pointer_type(tl.float32), bitcast=True)
                tl.store(at, scale, mask=group < NUM_GROUPS)
            else:
                exponent = scale.to(tl.int32, bitcast=True) >> 23
                tl.store(scales + group, exponent.to(tl.uint8), mask=group < NUM_GROUPS)
            if ROPE > 0:
                turned = tl.arange(0, ROPE_BLOCK)
                value = tl.load(source + CODED + turned, mask=turned < ROPE, other=0.0)
                at = (target + CODED + 2 * turned).to(tl.pointer_type(tl.bfloat16), bitcast=True)
                tl.store(at, value.to(tl.bfloat16), mask=turned < ROPE)


@triton.jit
def _unpack_kernel(
    packed,
    out,
    rows,
    CODED: tl.constexpr,
    ROPE: tl.constexpr,
    BYTES: tl.constexpr,
    GROUP: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    value = load_packed(packed, row, row < rows, column, CODED, ROPE, BYTES, GROUP, WIDE)
    inside = (row < rows)[:, None] & (column < CODED + ROPE)[None, :]
    place = row[:, None] * (CODED + ROPE) + column[None, :]
    tl.store(out + place, value.to(out.dtype.element_ty), mask=inside)


UNPACKED_ROWS = 4  # of one program (assumed)


def store_packed(values: Tensor, cache: Tensor, rows: Tensor, packing: Packing) -> None:
    """cache[rows[t]] = pack(values[t]) where rows[t] >= 0. values: [T, dim]; cache: [N, num_bytes] uint8."""
    if values.shape[0] == 0:
        return
    _pack_kernel[(values.shape[0],)](
        values if values.stride(-1) == 1 else values.contiguous(),
        cache,
        rows,
        values.stride(0) if values.stride(-1) == 1 else values.shape[1],
        CODED=packing.coded,
        ROPE=packing.rope,
        BYTES=packing.num_bytes,
        GROUP=packing.group,
        GROUPS=triton.next_power_of_2(packing.num_groups),
        NUM_GROUPS=packing.num_groups,
        ROPE_BLOCK=triton.next_power_of_2(max(packing.rope, 1)),
        WIDE=packing.wide_scale,
        FP4=packing.fp4,
        num_warps=4,
    )


def round_rows(values: Tensor, packing: Packing) -> Tensor:
    """See runtime.reference.packed_rows."""
    count = values.shape[0]
    packed = torch.empty(count, packing.num_bytes, dtype=torch.uint8, device=values.device)
    store_packed(values, packed, torch.arange(count, dtype=torch.int32, device=values.device), packing)
    out = torch.empty(count, packing.dim, dtype=values.dtype, device=values.device)
    if count:
        _unpack_kernel[(triton.cdiv(count, UNPACKED_ROWS),)](
            packed,
            out,
            count,
            CODED=packing.coded,
            ROPE=packing.rope,
            BYTES=packing.num_bytes,
            GROUP=packing.group,
            WIDE=packing.wide_scale,
            ROWS=UNPACKED_ROWS,
            BLOCK=triton.next_power_of_2(packing.dim),
            num_warps=4,
        )
    return out

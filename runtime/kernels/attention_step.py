"""Online softmax, one tile of keys at a time, in base 2 (Milakov and Gimelshein, 2018; FlashAttention, 2022)."""

import torch
import triton
import triton.language as tl

from runtime.kernels.packed_rows import load_packed
from runtime.reference.packed_rows import Packing

LOG2_E = 1.4426950408889634  # log2(e), for exponentials in base 2
LOG2_E_IN_KERNELS = tl.constexpr(LOG2_E)


def dot_precision(dtype: torch.dtype) -> str:
    """float32 inputs keep float32 products; narrower ones are exact in the matrix unit anyway."""
    return "ieee" if dtype == torch.float32 else "tf32"


def key_layout(packing: Packing | None) -> dict[str, int]:
    """Constants of the kernels that read keys; BYTES is 0 for plain ones."""
    if packing is None:
        return {"CODED": 0, "ROPE": 0, "BYTES": 0, "GROUP": 1}
    return {"CODED": packing.coded, "ROPE": packing.rope, "BYTES": packing.num_bytes, "GROUP": packing.group}


@triton.jit
def load_keys(
    base, row, seen, column, dim, dtype: tl.constexpr,
    CODED: tl.constexpr, ROPE: tl.constexpr, BYTES: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Rows `row` [T] of `dim` values, plain or packed with exponent bytes: [T, D] in `dtype`, zero where unseen."""
    if BYTES > 0:
        keys = load_packed(base, row.to(tl.int64), seen, column, CODED, ROPE, BYTES, GROUP, False).to(dtype)
    else:
        inside = seen[:, None] & (column < dim)[None, :]
        keys = tl.load(base + row[:, None] * dim + column[None, :], mask=inside, other=0.0).to(dtype)
    return keys


@triton.jit
def load_cached(
    base, place, seen, column, dim, dtype: tl.constexpr,
    CODED: tl.constexpr, ROPE: tl.constexpr, BYTES: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """As `load_keys`, from offsets `place` [T] into the cache; packed rows have float32 scales."""
    if BYTES > 0:
        keys = load_packed(base + place, tl.zeros_like(place), seen, column, CODED, ROPE, BYTES, GROUP, True).to(dtype)
    else:
        inside = seen[:, None] & (column < dim)[None, :]
        keys = tl.load(base + place[:, None] + column[None, :], mask=inside, other=0.0).to(dtype)
    return keys


@triton.jit
def attend(scores, values, seen, peak, total, acc, PRECISION: tl.constexpr):
    """Add a tile of keys to the running softmax. scores [M, T] in base 2; values [T, D]; seen [M or 1, T].

    peak, total [M] and acc [M, D] are the running maximum, weight sum and weighted values.
    """
    scores = tl.where(seen, scores, float("-inf"))
    new_peak = tl.maximum(peak, tl.max(scores, 1))
    safe = tl.where(new_peak == float("-inf"), 0.0, new_peak)  # nothing seen yet
    weight = tl.exp2(scores - safe[:, None])
    shrink = tl.exp2(peak - safe)
    total = total * shrink + tl.sum(weight, 1)
    acc = tl.dot(weight.to(values.dtype), values, acc * shrink[:, None], input_precision=PRECISION)
    return new_peak, total, acc


@triton.jit
def combine_splits_kernel(partial, lse, sinks, out, heads, dim, splits, SINK: tl.constexpr, BLOCK: tl.constexpr):
    """Merge the splits of one (sequence, head): partial [B, S, H, D] normalised, lse [B, S, H] in base 2."""
    batch, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = tl.arange(0, BLOCK)
    peak = tl.full((), float("-inf"), tl.float32)
    for split in range(splits):
        peak = tl.maximum(peak, tl.load(lse + (batch * splits + split) * heads + head))
    total = 0.0
    if SINK:
        sink = tl.load(sinks + head).to(tl.float32) * LOG2_E_IN_KERNELS
        peak = tl.maximum(peak, sink)
        total += tl.exp2(sink - peak)
    safe = tl.where(peak == float("-inf"), 0.0, peak)
    acc = tl.zeros((BLOCK,), tl.float32)
    for split in range(splits):
        row = (batch * splits + split) * heads + head
        weight = tl.exp2(tl.load(lse + row) - safe)
        acc += weight * tl.load(partial + row * dim + column, mask=column < dim, other=0.0)
        total += weight
    result = acc / tl.where(total == 0.0, 1.0, total)
    tl.store(out + (batch * heads + head) * dim + column, result.to(out.dtype.element_ty), mask=column < dim)


@triton.jit
def store_split(partial, lse, row, head, valid, dim, peak, total, acc, BLOCK: tl.constexpr):
    """One split's normalised values and log-sum-exp; row: (batch * splits + split) * heads; head [M]."""
    column = tl.arange(0, BLOCK)
    some = total > 0
    safe = tl.where(some, total, 1.0)
    place = (row + head)[:, None] * dim + column[None, :]
    tl.store(partial + place, acc / safe[:, None], mask=valid[:, None] & (column < dim)[None, :])
    tl.store(lse + row + head, tl.where(some, peak + tl.log2(safe), float("-inf")), mask=valid)

"""The k best scores of each row by radix selection, written in ascending index order.

Four passes of eight bits find the k-th largest key, a fifth writes the indices; each pass reads only the visible part
of the row, which stays in L2.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

FEWEST, MOST = 16, 2048  # columns of one program (assumed)


@triton.jit
def sortable(value):
    """Order-preserving map of float32 to uint32; -0.0 equals 0.0."""
    bits = tl.where(value == 0.0, 0.0, value).to(tl.int32, bitcast=True)
    flip = (bits >> 31) | -2147483648  # all ones for negative numbers, the sign bit for others
    return (bits ^ flip).to(tl.uint32, bitcast=True)


@triton.jit
def _top_k_kernel(scores, lengths, out, k, row_stride, BLOCK: tl.constexpr, BINS: tl.constexpr, SLOTS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    length = tl.load(lengths + row).to(tl.int32)
    base = scores + row * row_stride
    digit = tl.arange(0, BINS)
    prefix = tl.zeros((), tl.uint32)  # the leading digits of the k-th largest key, found so far
    missing = tl.minimum(k, length)  # how many are still to be taken from keys with exactly this prefix
    if length > k:
        for step in tl.static_range(4):
            counts = tl.zeros((BINS,), tl.int32)
            for start in range(0, length, BLOCK):
                index = start + tl.arange(0, BLOCK)
                key = sortable(tl.load(base + index, mask=index < length, other=0.0))
                live = index < length
                if step > 0:
                    live = live & ((key >> (32 - 8 * step)) == (prefix >> (32 - 8 * step)))
                counts += tl.histogram(((key >> (24 - 8 * step)) & 255).to(tl.int32), BINS, mask=live)
            above = tl.sum(counts, 0) - tl.cumsum(counts, 0)  # keys with a larger digit
            chosen = tl.max(tl.where(above + counts >= missing, digit, -1), 0)
            missing -= tl.sum(tl.where(digit == chosen, above, 0), 0)
            prefix = prefix | (chosen.to(tl.uint32) << (24 - 8 * step))
    taken = 0  # of those equal to the k-th largest key
    written = 0
    for start in range(0, length, BLOCK):
        index = start + tl.arange(0, BLOCK)
        inside = index < length
        key = sortable(tl.load(base + index, mask=inside, other=0.0))
        if length > k:
            equal = inside & (key == prefix)
            order = taken + tl.cumsum(equal.to(tl.int32), 0)
            keep = (inside & (key > prefix)) | (equal & (order <= missing))
            taken += tl.sum(equal.to(tl.int32), 0)
        else:
            keep = inside
        place = written + tl.cumsum(keep.to(tl.int32), 0) - 1
        tl.store(out + row * k + place, index, mask=keep)
        written += tl.sum(keep.to(tl.int32), 0)
    for start in range(0, k, SLOTS):
        slot = start + tl.arange(0, SLOTS)
        tl.store(out + row * k + slot, tl.full((SLOTS,), -1, tl.int32), mask=(slot >= written) & (slot < k))


def top_k(scores: Tensor, lengths: Tensor, k: int) -> Tensor:
    """See runtime.reference.topk."""
    rows, columns = scores.shape
    out = torch.empty(rows, k, dtype=torch.int32, device=scores.device)
    if rows:
        block = min(max(triton.next_power_of_2(columns), FEWEST), MOST)
        _top_k_kernel[(rows,)](scores, lengths, out, k, scores.stride(0), BLOCK=block, BINS=256, SLOTS=256, num_warps=8)
    return out

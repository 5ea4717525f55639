"""One token a row, drawn in one program without sorting the vocabulary.

Top-k and top-p both keep the tokens at or above some logit. That threshold is built bit by bit: 32 passes over a
row that stays in L2, run only for the rows that ask for them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.kernels.topk import sortable

COLUMNS = 4096  # of one step at most (assumed)


@triton.jit
def _at_least(base, vocab, scale, peak, floor, threshold, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr):
    """Number, or total weight, of the tokens whose key is >= floor and >= threshold."""
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, vocab, BLOCK):
        index = start + tl.arange(0, BLOCK)
        value = tl.load(base + index, mask=index < vocab, other=float("-inf")).to(tl.float32) * scale
        key = sortable(value)
        kept = (index < vocab) & (key >= floor) & (key >= threshold)
        if WEIGHTED:
            total += tl.where(kept, tl.exp(value - peak), 0.0)
        else:
            total += kept.to(tl.float32)
    return tl.sum(total, 0)


@triton.jit
def _threshold(base, vocab, scale, peak, floor, target, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr):
    """The largest key t such that the tokens with key >= t still amount to `target`."""
    found = tl.zeros((), tl.uint32)
    bit = tl.full((), 0x80000000, tl.uint32)
    for _ in range(32):
        candidate = found | bit
        bit = bit >> 1
        if _at_least(base, vocab, scale, peak, floor, candidate, WEIGHTED, BLOCK) >= target:
            found = candidate
    return found


@triton.jit
def _sample_kernel(logits, temperature, top_k, top_p, seeds, steps, out, vocab, row_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    base = logits + row * row_stride
    heat = tl.load(temperature + row)
    scale = 1.0 / tl.where(heat > 0, heat, 1.0)
    peak = tl.full((), float("-inf"), tl.float32)
    best = 0
    for start in range(0, vocab, BLOCK):
        index = start + tl.arange(0, BLOCK)
        value = tl.load(base + index, mask=index < vocab, other=float("-inf")).to(tl.float32) * scale
        here = tl.max(value, 0)
        if here > peak:  # the first of equal logits wins
            best = start + tl.argmax(value, 0)
            peak = here
    if heat > 0:
        floor = tl.zeros((), tl.uint32)
        wanted = tl.load(top_k + row)
        if (wanted > 0) & (wanted < vocab):
            floor = _threshold(base, vocab, scale, peak, floor, wanted.to(tl.float32), False, BLOCK)
        share = tl.load(top_p + row)
        if share < 1.0:
            goal = share * _at_least(base, vocab, scale, peak, floor, floor, True, BLOCK)
            floor = tl.maximum(floor, _threshold(base, vocab, scale, peak, floor, goal, True, BLOCK))
        total = _at_least(base, vocab, scale, peak, floor, floor, True, BLOCK)
        bits = tl.randint(tl.load(seeds + row), tl.load(steps + row)).to(tl.uint32, bitcast=True)
        target = ((bits >> 9).to(tl.float32) + 0.5) * (1.0 / 8388608.0) * total  # 23 bits: see the reference
        running = 0.0
        drawn = -1
        for start in range(0, vocab, BLOCK):
            index = start + tl.arange(0, BLOCK)
            value = tl.load(base + index, mask=index < vocab, other=float("-inf")).to(tl.float32) * scale
            kept = (index < vocab) & (sortable(value) >= floor)
            weight = tl.where(kept, tl.exp(value - peak), 0.0)
            reached = kept & (running + tl.cumsum(weight, 0) > target)
            first = tl.min(tl.where(reached, index, vocab), 0)
            if (drawn < 0) & (first < vocab):
                drawn = first
            running += tl.sum(weight, 0)
        best = tl.where(drawn >= 0, drawn, best)  # sums in two orders may differ by a rounding at the far end
    tl.store(out + row, best)


def sample(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, seeds: Tensor, steps: Tensor) -> Tensor:
    """See runtime.reference.sampling."""
    rows, vocab = logits.shape
    out = torch.empty(rows, dtype=torch.int64, device=logits.device)
    if rows:
        block = min(triton.next_power_of_2(vocab), COLUMNS)
        _sample_kernel[(rows,)](
            logits, temperature, top_k, top_p, seeds, steps, out, vocab, logits.stride(0), BLOCK=block, num_warps=8
        )
    return out

"""Hyper-connections: one pass to project the streams, one to mix and collapse them, one to expand.

The projection needs every column of a row before the collapse can begin, so the streams are read twice. Its columns
are split over programs when there are few tokens.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.kernels.configs import LEAST_ROWS, compute_units

# Of one program, all assumed: tokens where there are many, columns of a step of the projection and its fewest steps,
# and columns at most of what moves data alone.
MANY_TOKENS, MANY_TOKENS_TILE = 2048, 64
WIDTH_STEP, FEWEST_STEPS = 128, 4
COLUMNS = 1024


@triton.jit
def _project_kernel(
    x,
    fn,
    partial,
    squares,
    tokens,
    width,
    rows,
    per_split,
    PRECISION: tl.constexpr,
    BT: tl.constexpr,
    BR: tl.constexpr,
    BK: tl.constexpr,
):
    """partial[split, t, r] = sum over the split's columns of x[t] * fn[r]; squares likewise of x[t]^2."""
    token = tl.program_id(0) * BT + tl.arange(0, BT)
    split = tl.program_id(1)
    row, column = tl.arange(0, BR), tl.arange(0, BK)
    acc = tl.zeros((BT, BR), tl.float32)
    square = tl.zeros((BT,), tl.float32)
    base = x + token.to(tl.int64)[:, None] * width
    for start in range(split * per_split, tl.minimum((split + 1) * per_split, width), BK):
        place = start + column
        inside = (token < tokens)[:, None] & (place < width)[None, :]
        value = tl.load(base + place[None, :], mask=inside, other=0.0).to(tl.float32)
        inside = (row < rows)[:, None] & (place < width)[None, :]
        weight = tl.load(fn + row[:, None] * width + place[None, :], mask=inside, other=0.0).to(tl.float32)
        acc = tl.dot(value, weight.T, acc, input_precision=PRECISION)
        square += tl.sum(value * value, 1)
    out = split.to(tl.int64) * tokens + token
    tl.store(partial + out[:, None] * BR + row[None, :], acc, mask=(token < tokens)[:, None])
    tl.store(squares + out, square, mask=token < tokens)


@triton.jit
def _sum_splits(partial, token, tokens, place, inside, splits, BR: tl.constexpr, SHAPE: tl.constexpr):
    acc = tl.zeros(SHAPE, tl.float32)
    for split in range(splits):
        acc += tl.load(partial + (split * tokens + token) * BR + place, mask=inside, other=0.0)
    return acc


@triton.jit
def _collapse_kernel(
    x,
    partial,
    squares,
    base,
    scale,
    collapsed,
    post,
    comb,
    tokens,
    hidden,
    m,
    splits,
    iterations,
    norm_eps,
    eps,
    HEAD: tl.constexpr,
    M: tl.constexpr,
    BR: tl.constexpr,
    BH: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    stream = tl.arange(0, M)
    valid = stream < m
    square = 0.0
    for split in range(splits):
        square += tl.load(squares + split * tokens + token)
    rstd = tl.rsqrt(square / (m * hidden) + norm_eps)

    mixed = _sum_splits(partial, token, tokens, stream, valid, splits, BR, (M,)) * rstd
    pre = tl.sigmoid(mixed * tl.load(scale) + tl.load(base + stream, mask=valid, other=0.0)) + eps
    pre = tl.where(valid, pre, 0.0)
    if not HEAD:  # noqa: SIM102 - decided at compile time, the inner one at run time
        if tl.program_id(1) == 0:
            gain = _sum_splits(partial, token, tokens, m + stream, valid, splits, BR, (M,)) * rstd
            gain_bias = tl.load(base + m + stream, mask=valid, other=0.0)
            tl.store(post + token * m + stream, 2.0 * tl.sigmoid(gain * tl.load(scale + 1) + gain_bias), mask=valid)
            place = stream[:, None] * m + stream[None, :]
            square_valid = valid[:, None] & valid[None, :]
            carry = _sum_splits(partial, token, tokens, 2 * m + place, square_valid, splits, BR, (M, M)) * rstd
            carry_bias = tl.load(base + 2 * m + place, mask=square_valid, other=0.0)
            logit = tl.where(square_valid, carry * tl.load(scale + 2) + carry_bias, float("-inf"))
            matrix = tl.exp(logit - tl.where(valid, tl.max(logit, 1), 0.0)[:, None])
            matrix = matrix / tl.where(valid, tl.sum(matrix, 1), 1.0)[:, None]
            matrix = tl.where(square_valid, matrix + eps, 0.0)
            matrix = matrix / (tl.sum(matrix, 0) + eps)[None, :]
            for _ in range(iterations - 1):
                matrix = matrix / (tl.sum(matrix, 1) + eps)[:, None]
                matrix = matrix / (tl.sum(matrix, 0) + eps)[None, :]
            tl.store(comb + token * m * m + place, matrix, mask=square_valid)

    for start in range(tl.program_id(1) * BH, hidden, tl.num_programs(1) * BH):
        column = start + tl.arange(0, BH)
        inside = valid[:, None] & (column < hidden)[None, :]
        source = x + token * m * hidden + stream[:, None] * hidden + column[None, :]
        value = tl.load(source, mask=inside, other=0.0).to(tl.float32)
        total = tl.sum(value * pre[:, None], 0)
        tl.store(collapsed + token * hidden + column, total.to(collapsed.dtype.element_ty), mask=column < hidden)


@triton.jit
def _expand_kernel(x, y, post, comb, out, hidden, m, STREAMS: tl.constexpr, M: tl.constexpr, BH: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BH + tl.arange(0, BH)
    stream = tl.arange(0, M)
    valid = stream < m
    inside = valid[:, None] & (column < hidden)[None, :]
    row = token * m * hidden
    source = x + row + stream[:, None] * hidden + column[None, :]
    streams = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    added = tl.load(y + token * hidden + column, mask=column < hidden, other=0.0).to(tl.float32)
    for target in tl.static_range(STREAMS):
        carry = tl.load(comb + token * m * m + stream * m + target, mask=valid, other=0.0)
        mixed = tl.sum(streams * carry[:, None], 0) + tl.load(post + token * m + target) * added
        place = out + row + target * hidden + column
        tl.store(place, mixed.to(out.dtype.element_ty), mask=column < hidden)


def _project(streams: Tensor, fn: Tensor) -> tuple[Tensor, Tensor, int, int]:
    """(partial products, partial squares, splits, padded rows of fn)."""
    tokens, width = streams.shape[0], streams.shape[1] * streams.shape[2]
    rows = fn.shape[0]
    padded = max(LEAST_ROWS, triton.next_power_of_2(rows))
    block_t = MANY_TOKENS_TILE if tokens > MANY_TOKENS else LEAST_ROWS
    tiles = triton.cdiv(tokens, block_t)
    block_k = WIDTH_STEP
    wanted = triton.cdiv(2 * compute_units(streams.device), tiles)
    splits = max(1, min(wanted, triton.cdiv(width, FEWEST_STEPS * block_k)))
    per_split = triton.cdiv(triton.cdiv(width, splits), block_k) * block_k
    splits = triton.cdiv(width, per_split)
    partial = torch.empty(splits, tokens, padded, dtype=torch.float32, device=streams.device)
    squares = torch.empty(splits, tokens, dtype=torch.float32, device=streams.device)
    _project_kernel[(tiles, splits)](
        streams,
        fn.contiguous(),
        partial,
        squares,
        tokens,
        width,
        rows,
        per_split,
        # bf16 is exact in tf32; only fn is rounded, to 11 bits. float32 streams keep full precision.
        PRECISION="ieee" if streams.dtype == torch.float32 else "tf32",
        BT=block_t,
        BR=padded,
        BK=block_k,
        num_warps=4,
        num_stages=3,
    )
    return partial, squares, splits, padded


def _collapse(
    streams: Tensor,
    fn: Tensor,
    base: Tensor,
    scale: Tensor,
    norm_eps: float,
    eps: float,
    iterations: int,
    head: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    streams = streams.contiguous()
    tokens, m, hidden = streams.shape
    device = streams.device
    collapsed = torch.empty(tokens, hidden, dtype=streams.dtype, device=device)
    post = torch.empty(0 if head else tokens, m, dtype=torch.float32, device=device)
    comb = torch.empty(0 if head else tokens, m, m, dtype=torch.float32, device=device)
    if tokens:
        partial, squares, splits, padded = _project(streams, fn)
        block = min(triton.next_power_of_2(hidden), COLUMNS)
        across = 1 if tokens >= compute_units(device) else triton.cdiv(hidden, block)
        _collapse_kernel[(tokens, across)](
            streams,
            partial,
            squares,
            base.float().contiguous(),
            scale.float().contiguous(),
            collapsed,
            post,
            comb,
            tokens,
            hidden,
            m,
            splits,
            iterations,
            norm_eps,
            eps,
            HEAD=head,
            M=triton.next_power_of_2(m),
            BR=padded,
            BH=block,
            num_warps=4,
        )
    return collapsed, post, comb


def mhc_pre(
    streams: Tensor,
    fn: Tensor,
    base: Tensor,
    scale: Tensor,
    norm_eps: float,
    eps: float,
    iterations: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """See runtime.reference.mhc."""
    return _collapse(streams, fn, base, scale, norm_eps, eps, iterations, head=False)


def mhc_post(streams: Tensor, y: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """See runtime.reference.mhc."""
    streams = streams.contiguous()
    tokens, m, hidden = streams.shape
    out = torch.empty_like(streams)
    if tokens:
        # 8 columns a thread: the streams of a column stay in one thread, so mixing them moves no data.
        block = min(triton.next_power_of_2(hidden), COLUMNS)
        _expand_kernel[(tokens, triton.cdiv(hidden, block))](
            streams,
            y.contiguous(),
            post.contiguous(),
            comb.contiguous(),
            out,
            hidden,
            m,
            STREAMS=m,
            M=triton.next_power_of_2(m),
            BH=block,
            num_warps=4,
        )
    return out


def mhc_head(streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor, norm_eps: float, eps: float) -> Tensor:
    """See runtime.reference.mhc."""
    return _collapse(streams, fn, base, scale, norm_eps, eps, 1, head=True)[0]

"""Manifold-constrained hyper-connections: m residual streams mixed before and after each sub-layer.

Reference: Xie et al., "mHC: Manifold-Constrained Hyper-Connections", 2026 (DeepSeek V4 residual).
"""

import torch
from torch import Tensor


def _mixes(streams: Tensor, fn: Tensor, norm_eps: float) -> Tensor:
    """RMS-normalised flattened streams [T, m * H] projected by fn [R, m * H]: float32 [T, R]."""
    flat = streams.flatten(1).float()
    return (flat * torch.rsqrt(flat.square().mean(-1, keepdim=True) + norm_eps)) @ fn.float().T


def sinkhorn(comb: Tensor, iterations: int, eps: float) -> Tensor:
    """Alternate column and row normalisation of positive [T, m, m], columns first and last."""
    comb = comb / (comb.sum(-2, keepdim=True) + eps)
    for _ in range(iterations - 1):
        comb = comb / (comb.sum(-1, keepdim=True) + eps)
        comb = comb / (comb.sum(-2, keepdim=True) + eps)
    return comb


def mhc_pre(
    streams: Tensor,
    fn: Tensor,
    base: Tensor,
    scale: Tensor,
    norm_eps: float,
    eps: float,
    iterations: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Collapse the streams into one sub-layer input and derive how its output is mixed back.

    streams: [T, m, H]; fn: [(2 + m) m, m H]; base: [(2 + m) m]; scale: [3] for pre, post and comb.
    Returns collapsed [T, H] in streams' dtype, post [T, m] float32 and comb [T, m, m] float32
    (comb[:, i, o] carries stream i into stream o).
    """
    m = streams.shape[1]
    mixes = _mixes(streams, fn, norm_eps)
    base, scale = base.float(), scale.float()
    pre = torch.sigmoid(mixes[:, :m] * scale[0] + base[:m]) + eps
    post = 2 * torch.sigmoid(mixes[:, m : 2 * m] * scale[1] + base[m : 2 * m])
    comb = torch.softmax((mixes[:, 2 * m :] * scale[2] + base[2 * m :]).view(-1, m, m), -1) + eps
    collapsed = (pre[..., None] * streams).sum(1).to(streams.dtype)
    return collapsed, post, sinkhorn(comb, iterations, eps)


def mhc_post(streams: Tensor, y: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """New streams [T, m, H] = post * y + comb^T @ streams, in float32, returned in streams' dtype.

    streams: [T, m, H]; y: [T, H]; post: [T, m]; comb: [T, m, m].
    """
    mixed = torch.einsum("tio,tih->toh", comb, streams.float()) + post[..., None] * y.float()[:, None]
    return mixed.to(streams.dtype)


def mhc_head(streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor, norm_eps: float, eps: float) -> Tensor:
    """Final collapse before the last norm. streams: [T, m, H]; fn: [m, m H]; base: [m]; scale: [1]. -> [T,
    H].
    """
    pre = torch.sigmoid(_mixes(streams, fn, norm_eps) * scale.float() + base.float()) + eps
    return (pre[..., None] * streams).sum(1).to(streams.dtype)

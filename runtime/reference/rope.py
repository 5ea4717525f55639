"""Rotary position embedding on the trailing dimensions of each head."""

import torch
from torch import Tensor


def rope(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = True, inverse: bool = False) -> Tensor:
    """Rotate the last 2 P dimensions of every head by the token's angles; the leading ones pass through.

    x: [T, H, D]; cos, sin: [T, P] float32. A pair is (2 i, 2 i + 1) when `interleaved` (DeepSeek), else
    (i, P + i) (Qwen). `inverse` rotates by the negative angle: it takes the position back out of an attention
    output whose values carried it (DeepSeek V4 reads one vector as key and value). Returns x's shape and
    dtype. Reference: Su et al., "RoFormer", 2021.
    """
    pairs = cos.shape[1]
    head, tail = x[..., : x.shape[-1] - 2 * pairs], x[..., x.shape[-1] - 2 * pairs :].float()
    if interleaved:
        first, second = tail[..., 0::2], tail[..., 1::2]
    else:
        first, second = tail[..., :pairs], tail[..., pairs:]
    c, s = cos[:, None], (-sin if inverse else sin)[:, None]
    rotated = (first * c - second * s, second * c + first * s)
    turned = torch.stack(rotated, -1).flatten(-2) if interleaved else torch.cat(rotated, -1)
    return torch.cat([head, turned.to(x.dtype)], -1)

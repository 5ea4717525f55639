"""The two matrix products of a routed expert, each over all experts at once.

Weights come in one of four stored formats, told by dtype: floating point (no scale), float8_e4m3fn with float32
scales per 128 x 128 block, or packed fp4 (uint8) with scales along K: ue8m0 bytes per 32 (MXFP4) or e4m3 per 16
(NVFP4). A scale of each row, [E, rows] float32, may multiply on top.
"""

import torch
from torch import Tensor

from runtime.reference.moe_align import Alignment
from runtime.reference.quantize import dequantize_fp8, dequantize_weight, quantize_fp8


def _expert_pairs(alignment: Alignment, num_pairs: int) -> list[tuple[int, Tensor]]:
    """(expert, its pairs) for every expert that has any."""
    used = int(alignment.num_rows)
    experts = alignment.tile_expert[: used // alignment.block_m].repeat_interleave(alignment.block_m)
    pairs = alignment.pairs[:used].long()
    return [(int(e), pairs[(experts == e) & (pairs < num_pairs)]) for e in experts.unique()]


def grouped_gemm1(
    x: Tensor,
    x_scale: Tensor | None,
    w13: Tensor,
    w13_scale: Tensor | None,
    alignment: Alignment,
    top_k: int,
    limit: float | None = None,
    quantize: bool = False,
    row_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """silu(gate) * up of every pair, gate clamped from above and up on both sides by `limit`.

    x: [T, H] floating point, or float8_e4m3fn with x_scale [T, ceil(H / 128)].
    w13: [E, 2 I, H] stored weights, gate rows first. Returns [T * top_k, I] in x's dtype (bfloat16 if x is
    fp8), or fp8 codes and scales [T * top_k, ceil(I / 128)] when `quantize`. Rows of dropped pairs are
    unspecified.
    """
    inter = w13.shape[1] // 2
    num_pairs = x.shape[0] * top_k
    out_dtype = x.dtype if x_scale is None else torch.bfloat16
    tokens = x.float() if x_scale is None else dequantize_fp8(x, x_scale)
    out = torch.zeros(num_pairs, inter, dtype=torch.float32 if quantize else out_dtype, device=x.device)
    for expert, pairs in _expert_pairs(alignment, num_pairs):
        scale = None if w13_scale is None else w13_scale[expert]
        rows = None if row_scale is None else row_scale[expert]
        gate_up = tokens[pairs // top_k] @ dequantize_weight(w13[expert], scale, rows).T
        gate, up = gate_up[:, :inter], gate_up[:, inter:]
        if limit is not None:
            gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        out[pairs] = (torch.nn.functional.silu(gate) * up).to(out.dtype)
    return quantize_fp8(out) if quantize else (out, None)


def grouped_gemm2_combine(
    h: Tensor,
    h_scale: Tensor | None,
    w2: Tensor,
    w2_scale: Tensor | None,
    alignment: Alignment,
    weights: Tensor,
    expert_ids: Tensor,
    out_dtype: torch.dtype,
    row_scale: Tensor | None = None,
) -> Tensor:
    """Project every pair back and sum each token's choices by their routing weight.

    h: [T * top_k, I] (fp8 with h_scale, or floating point); w2: [E, H, I] stored weights; weights [T, top_k]
    float32; expert_ids [T, top_k]: choices outside 0..E-1 contribute nothing. Returns [T, H].
    """
    num_tokens, top_k = weights.shape
    rows = h.float() if h_scale is None else dequantize_fp8(h, h_scale)
    flat_weights = weights.reshape(-1, 1)
    out = torch.zeros(num_tokens, w2.shape[1], dtype=torch.float32, device=h.device)
    for expert, pairs in _expert_pairs(alignment, num_tokens * top_k):
        scale = None if w2_scale is None else w2_scale[expert]
        over = None if row_scale is None else row_scale[expert]
        result = rows[pairs] @ dequantize_weight(w2[expert], scale, over).T
        out.index_add_(0, pairs // top_k, result * flat_weights[pairs])
    return out.to(out_dtype)

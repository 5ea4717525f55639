"""Dense matrix product with a weight of packed fp4, MXFP4 or NVFP4."""

import torch
from torch import Tensor

from runtime.reference.quantize import dequantize_weight


def fp4_gemm(
    a: Tensor, b: Tensor, b_scale: Tensor, row_scale: Tensor | None = None, out_dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """a @ b.T with float32 accumulation.

    a: [M, K] floating point; b: [N, K / 2] packed codes, uint8, with b_scale [N, K / 32] exponent bytes or [N, K / 16]
    float8_e4m3fn; row_scale: [N] float32 on top. Returns [M, N].
    """
    return (a.float() @ dequantize_weight(b, b_scale, row_scale).T).to(out_dtype)

"""Dense matrix product of block-scaled fp8 operands."""

import torch
from torch import Tensor

from runtime.reference.quantize import dequantize_fp8, dequantize_fp8_blocks


def fp8_gemm(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, out_dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """a @ b.T with float32 accumulation.

    a: [M, K] float8_e4m3fn with scales [M, ceil(K / 128)]; b: [N, K] float8_e4m3fn with scales
    [ceil(N / 128), ceil(K / 128)]. Returns [M, N].
    """
    return (dequantize_fp8(a, a_scale) @ dequantize_fp8_blocks(b, b_scale).T).to(out_dtype)

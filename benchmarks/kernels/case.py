"""One case of a kernel: its inputs at DeepSeek-V4-Flash shapes on any device, and the work that it must do."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Published config.json of DeepSeek-V4-Flash; contexts of 32k tokens (assumed).
HIDDEN, HEADS, HEAD_DIM, ROPE_PAIRS = 4096, 64, 512, 32
EXPERTS, TOP_K, INTER = 256, 6, 2048
STREAMS, VOCABULARY = 4, 129280
CONTEXT, CSA_RATIO, HCA_RATIO, INDEX_TOP_K = 32768, 4, 128, 512
WINDOW, INDEX_HEADS, INDEX_DIM = 128, 64, 128
BLOCK = 128  # tokens a cache block
GQA_HEADS, GQA_KV_HEADS, GQA_DIM = 64, 4, 128  # Qwen3-235B
MLA_HEADS, MLA_DIM, MLA_LATENT, MLA_ROPE = 128, 576, 512, 64  # DeepSeek-V3


@dataclass(frozen=True)
class Case:
    """One op at one shape. build(device) makes the inputs and returns the call to time."""

    name: str
    build: Callable[[torch.device], Callable[[], object]]
    flops: float  # of the matrix unit; 0 where the op only moves data
    num_bytes: float
    fp8: bool = False  # takes or makes fp8 tensors
    matrix_dtype: str = "bf16"  # whose roof bounds the FLOPs


def normal(device: torch.device, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, device=device, dtype=torch.float32).to(dtype)


def codes(device: torch.device, *shape: int) -> Tensor:
    return torch.randn(*shape, device=device, dtype=torch.bfloat16).to(torch.float8_e4m3fn)


def positive(device: torch.device, *shape: int) -> Tensor:
    return torch.rand(*shape, device=device) + 0.5


def integers(device: torch.device, low: int, high: int, *shape: int) -> Tensor:
    return torch.randint(low, high, shape, dtype=torch.int32, device=device)

"""The hot ops, each picking its Triton kernel for CUDA tensors and its plain PyTorch reference otherwise."""

import importlib
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from runtime.reference import attention_decode as _attention_decode
from runtime.reference import attention_prefill as _attention_prefill
from runtime.reference import compressor as _compressor
from runtime.reference import fp4_gemm as _fp4_gemm
from runtime.reference import fp8_gemm as _fp8_gemm
from runtime.reference import grouped_gemm as _grouped_gemm
from runtime.reference import indexer as _indexer
from runtime.reference import mhc as _mhc
from runtime.reference import moe_align as _moe_align
from runtime.reference import norm_rope_store as _norm_rope_store
from runtime.reference import packed_rows as _packed_rows
from runtime.reference import quantize as _quantize
from runtime.reference import rms_norm as _rms_norm
from runtime.reference import rope as _rope
from runtime.reference import router_gate as _router_gate
from runtime.reference import sampling as _sampling
from runtime.reference import store_rows as _store_rows
from runtime.reference import topk as _topk

P = ParamSpec("P")
R = TypeVar("R")
TILE_ROWS = (16, 32, 64, 128)  # that a grouped-GEMM tile may have, from the least a matrix unit takes (assumed)


def uses_kernels(tensor: Tensor) -> bool:
    """Whether ops on this tensor run as Triton kernels."""
    return tensor.is_cuda


def _dispatch(reference: Callable[P, R]) -> Callable[P, R]:
    """The reference, or the kernel of the same module and name when the first argument lives on a GPU.

    Kernel modules are imported at the first CUDA call: `import runtime.ops` needs no Triton.
    """
    module = reference.__module__.replace("runtime.reference", "runtime.kernels")

    @wraps(reference)
    def op(*args: P.args, **kwargs: P.kwargs) -> R:
        first = args[0] if args else next(iter(kwargs.values()))
        if isinstance(first, Tensor) and uses_kernels(first):
            kernel: Callable[P, R] = getattr(importlib.import_module(module), reference.__name__)
            with torch.cuda.device_of(first):  # a launch goes to the current device, whatever the tensors' own
                return kernel(*args, **kwargs)
        return reference(*args, **kwargs)

    return op


rms_norm = _dispatch(_rms_norm.rms_norm)
rope = _dispatch(_rope.rope)
round_rows = _dispatch(_packed_rows.round_rows)
store_rows = _dispatch(_store_rows.store_rows)
norm_rope_store = _dispatch(_norm_rope_store.norm_rope_store)
compress = _dispatch(_compressor.compress)
indexer_scores = _dispatch(_indexer.indexer_scores)
top_k = _dispatch(_topk.top_k)
window_attention_prefill = _dispatch(_attention_prefill.window_attention_prefill)
paged_attention_prefill = _dispatch(_attention_prefill.paged_attention_prefill)
window_attention_decode = _dispatch(_attention_decode.window_attention_decode)
paged_attention_decode = _dispatch(_attention_decode.paged_attention_decode)
mhc_pre = _dispatch(_mhc.mhc_pre)
mhc_post = _dispatch(_mhc.mhc_post)
mhc_head = _dispatch(_mhc.mhc_head)
quantize_fp8 = _dispatch(_quantize.quantize_fp8)
fp4_gemm = _dispatch(_fp4_gemm.fp4_gemm)
fp8_gemm = _dispatch(_fp8_gemm.fp8_gemm)
moe_align = _dispatch(_moe_align.moe_align)
grouped_gemm1 = _dispatch(_grouped_gemm.grouped_gemm1)
grouped_gemm2_combine = _dispatch(_grouped_gemm.grouped_gemm2_combine)
router_gate = _dispatch(_router_gate.router_gate)
sample = _dispatch(_sampling.sample)


def tile_rows(num_pairs: int, num_experts: int) -> int:
    """Rows of a grouped-GEMM tile: about the mean pairs an expert gets, from the least a matrix
    unit takes.
    """
    mean = num_pairs / num_experts
    return next((rows for rows in TILE_ROWS if mean <= rows), TILE_ROWS[-1])


def linear(x: Tensor, weight: Tensor, scale: Tensor | None = None, row_scale: Tensor | None = None) -> Tensor:
    """x [M, K] @ weight [N, K].T, the weight as stored; an fp8 one takes x quantised on the fly. Returns x's
    dtype.

    scale: per 128 x 128 block (fp8) or per group (packed fp4); row_scale: [N] float32 on top.
    """
    if scale is None:
        return torch.nn.functional.linear(x, weight)
    if not uses_kernels(x):  # the CPU path keeps the activation exact: only the stored weight is rounded
        return (x.float() @ _quantize.dequantize_weight(weight, scale, row_scale).T).to(x.dtype)
    if weight.dtype == torch.uint8:
        return fp4_gemm(x, weight, scale, row_scale, x.dtype)
    codes, x_scale = quantize_fp8(x)
    if row_scale is None:
        return fp8_gemm(codes, x_scale, weight, scale, x.dtype)
    return (fp8_gemm(codes, x_scale, weight, scale, torch.float32) * row_scale).to(x.dtype)


def moe_experts(
    x: Tensor,
    expert_ids: Tensor,
    weights: Tensor,
    w13: Tensor,
    w2: Tensor,
    w13_scale: Tensor | None = None,
    w2_scale: Tensor | None = None,
    limit: float | None = None,
    w13_row_scale: Tensor | None = None,
    w2_row_scale: Tensor | None = None,
) -> Tensor:
    """Routed experts of one layer: align, gate/up + SwiGLU, down + weighted sum.

    x: [T, H]; expert_ids, weights: [T, top_k] (ids outside 0..E-1 are skipped); w13: [E, 2 I, H] and w2: [E,
    H, I] as stored (see runtime.reference.grouped_gemm). fp8 weights on a GPU take activations quantised to
    fp8.
    """
    top_k, num_experts = expert_ids.shape[1], w13.shape[0]
    alignment = moe_align(expert_ids, num_experts, tile_rows(expert_ids.numel(), num_experts))
    fp8 = uses_kernels(x) and w13.dtype == torch.float8_e4m3fn
    codes, x_scale = quantize_fp8(x) if fp8 else (x, None)
    h, h_scale = grouped_gemm1(codes, x_scale, w13, w13_scale, alignment, top_k, limit, fp8, w13_row_scale)
    return grouped_gemm2_combine(h, h_scale, w2, w2_scale, alignment, weights, expert_ids, x.dtype, w2_row_scale)

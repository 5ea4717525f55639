"""Every kernel at DeepSeek-V4-Flash shapes: how to build its inputs, and the work it must do.

A case is built on any device: on `meta` for the compile gate, on a GPU to be timed. FLOPs count multiply and add;
bytes count each input read once and each output written once.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.kernels.attention_cases import attention_cases, compressor_case
from benchmarks.kernels.case import (
    CONTEXT,
    CSA_RATIO,
    EXPERTS,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    INDEX_TOP_K,
    INTER,
    ROPE_PAIRS,
    STREAMS,
    TOP_K,
    VOCABULARY,
    Case,
    codes,
    normal,
    positive,
)
from runtime.kernels.fp4_gemm import fp4_gemm
from runtime.kernels.fp8_gemm import fp8_gemm
from runtime.kernels.grouped_gemm import grouped_gemm1, grouped_gemm2_combine
from runtime.kernels.mhc import mhc_head, mhc_post, mhc_pre
from runtime.kernels.moe_align import moe_align
from runtime.kernels.norm_rope_store import norm_rope_store
from runtime.kernels.quantize import quantize_fp8
from runtime.kernels.rms_norm import rms_norm
from runtime.kernels.rope import rope
from runtime.kernels.router_gate import router_gate
from runtime.kernels.sampling import sample
from runtime.kernels.store_rows import store_rows
from runtime.kernels.topk import top_k
from runtime.ops import tile_rows


def norm_cases(tokens: int) -> list[Case]:
    def build_norm(device: torch.device) -> Callable[[], object]:
        x, weight = normal(device, tokens, HIDDEN), positive(device, HIDDEN)
        return lambda: rms_norm(x, weight, 1e-6)

    def build_store(device: torch.device) -> Callable[[], object]:
        x, weight = normal(device, tokens, 1, HEAD_DIM), positive(device, HEAD_DIM)
        angles = positive(device, tokens, ROPE_PAIRS)
        cache = normal(device, tokens + 1, 1, HEAD_DIM)
        rows = torch.arange(tokens, dtype=torch.int32, device=device)
        return lambda: norm_rope_store(x, weight, 1e-6, angles, angles, True, cache, rows)

    def build_rope(device: torch.device) -> Callable[[], object]:
        x, angles = normal(device, tokens, HEADS, HEAD_DIM), positive(device, tokens, ROPE_PAIRS)
        return lambda: rope(x, angles, angles, True, True)

    def build_rows(device: torch.device) -> Callable[[], object]:
        x, cache = normal(device, tokens, 2 * HEAD_DIM), normal(device, tokens + 1, 2 * HEAD_DIM)
        rows = torch.arange(tokens, dtype=torch.int32, device=device)
        return lambda: store_rows(x, cache, rows)

    return [
        Case(f"rms_norm_{tokens}", build_norm, 0, tokens * HIDDEN * 4),
        Case(f"norm_rope_store_{tokens}", build_store, 0, tokens * (HEAD_DIM * 6 + ROPE_PAIRS * 8)),
        Case(f"rope_{tokens}", build_rope, 0, tokens * (HEADS * HEAD_DIM * 4 + ROPE_PAIRS * 8)),
        Case(f"store_rows_{tokens}", build_rows, 0, tokens * 2 * HEAD_DIM * 4),
    ]


def fp8_cases(tokens: int) -> list[Case]:
    rank, width = 1024, HEADS * HEAD_DIM  # wq_b: the largest dense product of a layer

    def build_quantize(device: torch.device) -> Callable[[], object]:
        x = normal(device, tokens, HIDDEN)
        return lambda: quantize_fp8(x)

    def build_gemm(device: torch.device) -> Callable[[], object]:
        a, a_scale = codes(device, tokens, rank), positive(device, tokens, rank // 128)
        b, b_scale = codes(device, width, rank), positive(device, width // 128, rank // 128)
        return lambda: fp8_gemm(a, a_scale, b, b_scale)

    traffic = tokens * rank + width * rank + tokens * width * 2
    return [
        Case(f"quantize_fp8_{tokens}", build_quantize, 0, tokens * HIDDEN * 3, True),
        Case(f"fp8_gemm_{tokens}", build_gemm, 2 * tokens * width * rank, traffic, True, "fp8"),
    ]


def expert_weight(device: torch.device, form: str, rows: int, columns: int) -> tuple[Tensor, Tensor | None]:
    if form == "bf16":
        return normal(device, EXPERTS, rows, columns), None
    if form == "fp8":
        return codes(device, EXPERTS, rows, columns), positive(device, EXPERTS, rows // 128, columns // 128)
    packed = torch.randint(0, 256, (EXPERTS, rows, columns // 2), device=device, dtype=torch.uint8)
    if form == "nvfp4":
        return packed, positive(device, EXPERTS, rows, columns // 16).to(torch.float8_e4m3fn)
    return packed, torch.full((EXPERTS, rows, columns // 32), 127, device=device, dtype=torch.uint8)


def moe_cases(tokens: int) -> list[Case]:
    pairs = tokens * TOP_K
    block_m = tile_rows(pairs, EXPERTS)
    touched = EXPERTS * (1 - (1 - TOP_K / EXPERTS) ** tokens)

    def route(device: torch.device) -> tuple[Tensor, Tensor]:
        ids = torch.rand(tokens, EXPERTS, device=device).topk(TOP_K, -1).indices.int()
        return ids, positive(device, tokens, TOP_K)

    def build_align(device: torch.device) -> Callable[[], object]:
        ids, _ = route(device)
        return lambda: moe_align(ids, EXPERTS, block_m)

    def build_gemm1(form: str) -> Callable[[torch.device], Callable[[], object]]:
        def build(device: torch.device) -> Callable[[], object]:
            ids, _ = route(device)
            alignment = moe_align(ids, EXPERTS, block_m)
            w13, scale = expert_weight(device, form, 2 * INTER, HIDDEN)
            fp8 = form == "fp8"
            x = codes(device, tokens, HIDDEN) if fp8 else normal(device, tokens, HIDDEN)
            x_scale = positive(device, tokens, HIDDEN // 128) if fp8 else None
            rows = positive(device, EXPERTS, 2 * INTER) if form == "nvfp4" else None
            return lambda: grouped_gemm1(x, x_scale, w13, scale, alignment, TOP_K, 10.0, fp8, rows)

        return build

    def build_gemm2(form: str) -> Callable[[torch.device], Callable[[], object]]:
        def build(device: torch.device) -> Callable[[], object]:
            ids, weights = route(device)
            alignment = moe_align(ids, EXPERTS, block_m)
            w2, scale = expert_weight(device, form, HIDDEN, INTER)
            fp8 = form == "fp8"
            h = codes(device, pairs, INTER) if fp8 else normal(device, pairs, INTER)
            h_scale = positive(device, pairs, INTER // 128) if fp8 else None
            rows = positive(device, EXPERTS, HIDDEN) if form == "nvfp4" else None
            return lambda: grouped_gemm2_combine(h, h_scale, w2, scale, alignment, weights, ids, torch.bfloat16, rows)

        return build

    cases = [
        Case(f"moe_align_{tokens}", build_align, 0, pairs * 8),
    ]
    forms = (("bf16", 2.0, 2.0), ("fp8", 1.0, 1.0), ("fp4", 17 / 32, 2.0), ("nvfp4", 9 / 16, 2.0))
    for form, weight_bytes, act_bytes in forms:
        fp8, dtype = form in ("fp8", "nvfp4"), "fp8" if form == "fp8" else "bf16"
        gemm1_bytes = touched * 2 * INTER * HIDDEN * weight_bytes + (tokens * HIDDEN + pairs * INTER) * act_bytes
        # The combine reads what the product wrote: pairs rows of bf16, twice over the memory.
        gemm2_bytes = (
            touched * INTER * HIDDEN * weight_bytes + pairs * INTER * act_bytes + (2 * pairs + tokens) * HIDDEN * 2
        )
        cases += [
            Case(
                f"grouped_gemm1_{form}_{tokens}", build_gemm1(form), 4 * pairs * INTER * HIDDEN, gemm1_bytes, fp8, dtype
            ),
            Case(
                f"grouped_gemm2_{form}_{tokens}", build_gemm2(form), 2 * pairs * INTER * HIDDEN, gemm2_bytes, fp8, dtype
            ),
        ]
    return cases


def fp4_cases(tokens: int) -> list[Case]:
    """The down projection of a shared expert, in MXFP4."""

    def build(device: torch.device) -> Callable[[], object]:
        x = normal(device, tokens, INTER)
        weight = torch.randint(0, 256, (HIDDEN, INTER // 2), device=device, dtype=torch.uint8)
        scale = torch.full((HIDDEN, INTER // 32), 127, device=device, dtype=torch.uint8)
        return lambda: fp4_gemm(x, weight, scale)

    traffic = tokens * (INTER + HIDDEN) * 2 + HIDDEN * INTER * 17 / 32
    return [Case(f"fp4_gemm_{tokens}", build, 2 * tokens * HIDDEN * INTER, traffic)]


def mhc_cases(tokens: int) -> list[Case]:
    mixes = (2 + STREAMS) * STREAMS
    stream_bytes = tokens * STREAMS * HIDDEN * 2

    def build_pre(device: torch.device) -> Callable[[], object]:
        x, fn = normal(device, tokens, STREAMS, HIDDEN), positive(device, mixes, STREAMS * HIDDEN)
        base, scale = positive(device, mixes), positive(device, 3)
        return lambda: mhc_pre(x, fn, base, scale, 1e-6, 1e-6, 20)

    def build_post(device: torch.device) -> Callable[[], object]:
        x, y = normal(device, tokens, STREAMS, HIDDEN), normal(device, tokens, HIDDEN)
        post, comb = positive(device, tokens, STREAMS), positive(device, tokens, STREAMS, STREAMS)
        return lambda: mhc_post(x, y, post, comb)

    def build_head(device: torch.device) -> Callable[[], object]:
        x, fn = normal(device, tokens, STREAMS, HIDDEN), positive(device, STREAMS, STREAMS * HIDDEN)
        base, scale = positive(device, STREAMS), positive(device, 1)
        return lambda: mhc_head(x, fn, base, scale, 1e-6, 1e-6)

    # Projection and collapse each read the streams: a row is longer than a program can keep.
    return [
        Case(f"mhc_pre_{tokens}", build_pre, 0, 2 * stream_bytes + tokens * HIDDEN * 2),
        Case(f"mhc_post_{tokens}", build_post, 0, 2 * stream_bytes + tokens * HIDDEN * 2),
        Case(f"mhc_head_{tokens}", build_head, 0, 2 * stream_bytes + tokens * HIDDEN * 2),
    ]


def choice_cases(tokens: int) -> list[Case]:
    """Ops that pick: experts, indexer entries, tokens."""
    entries, chosen = CONTEXT // CSA_RATIO, INDEX_TOP_K

    def build_gate(device: torch.device) -> Callable[[], object]:
        logits, bias = normal(device, tokens, EXPERTS, dtype=torch.float32), positive(device, EXPERTS)
        return lambda: router_gate(logits, TOP_K, "sqrtsoftplus", bias, True, 1.5)

    def build_top_k(device: torch.device) -> Callable[[], object]:
        scores = normal(device, tokens, entries, dtype=torch.float32)
        lengths = torch.full((tokens,), entries, dtype=torch.int32, device=device)
        return lambda: top_k(scores, lengths, chosen)

    return [
        Case(f"router_gate_{tokens}", build_gate, 0, tokens * (EXPERTS * 4 + TOP_K * 8)),
        Case(f"top_k_{tokens}", build_top_k, 0, tokens * (entries + chosen) * 4),
    ]


def sample_cases(rows: int) -> list[Case]:
    def build(device: torch.device) -> Callable[[], object]:
        logits = normal(device, rows, VOCABULARY, dtype=torch.float32)
        heat, share = positive(device, rows), torch.full((rows,), 0.9, device=device)
        kept = torch.full((rows,), 50, dtype=torch.int32, device=device)
        seeds = torch.arange(rows, device=device)
        steps = torch.zeros(rows, dtype=torch.int32, device=device)
        return lambda: sample(logits, heat, kept, share, seeds, steps)

    return [Case(f"sample_{rows}", build, 0, rows * VOCABULARY * 4)]


PREFILL, DECODE = 8192, 64  # tokens of a step: of one chunk, and of as many sequences (assumed)
_BOTH = (norm_cases, fp8_cases, fp4_cases, moe_cases, mhc_cases, choice_cases)
CASES: list[Case] = [
    *(case for tokens in (PREFILL, DECODE) for make in _BOTH for case in make(tokens)),
    *attention_cases(PREFILL, decode=False),
    *attention_cases(DECODE, decode=True),
    *(compressor_case(kind, PREFILL) for kind in ("csa", "hca")),
    *sample_cases(DECODE),
]

# One case for each kernel and weight format: large tiles where they are quick to compile.
_LARGE = (
    *("rms_norm", "norm_rope_store", "rope", "store_rows", "quantize_fp8", "fp8_gemm", "moe_align"),
    *("grouped_gemm1_bf16", "grouped_gemm2_bf16", "mhc_pre", "mhc_post", "router_gate", "top_k"),
    *("window_prefill_csa", "paged_prefill_gqa", "compress_csa"),
)
_SMALL = (
    *("grouped_gemm1_fp8", "grouped_gemm2_fp8", "grouped_gemm1_fp4"),
    *("window_decode_swa", "paged_decode_mla", "indexer_scores", "sample"),
    *("fp4_gemm", "grouped_gemm2_nvfp4", "store_packed_index", "store_packed_kv", "round_rows"),
    *("window_decode_csa_packed", "paged_decode_mla_packed", "indexer_scores_packed"),
)
REPRESENTATIVE = frozenset([*(f"{name}_{PREFILL}" for name in _LARGE), *(f"{name}_{DECODE}" for name in _SMALL)])

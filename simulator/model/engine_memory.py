"""What an engine holds on each accelerator beside weights and KV, and what it takes its share of, by stack.

Figures of vLLM are fitted to what versions 0.16 to 0.19 report at start-up on H100 80GB (accuracy report of
llm-d-planner, 875a4fd; TP 1 to 4 and PP 2 to 4, 8192 tokens a step, 1024 sequences).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from simulator.model.parallelism import Parallelism

GIB = 2.0**30
# total: share of the device, in which weights, working memory and buffers are (vLLM's gpu-memory-utilization).
# before_loading: share of what is free before weights are loaded, for weights and KV; working memory and graphs have
# the rest (SGLang's mem-fraction-static). after_loading: share of what weights, working memory and buffers leave
# (TensorRT-LLM's free_gpu_memory_fraction).
ShareOf = Literal["total", "before_loading", "after_loading"]


@dataclass(frozen=True)
class EngineMemory:
    """Memory habits of an engine. Bytes on one accelerator."""

    share_of: ShareOf
    context_bytes: float  # CUDA context and kernels, held by any process
    tensor_parallel_bytes: float  # buffers of all-reduces, where tensor-parallel ranks have them; context included
    pipeline_bytes: float  # what is held instead where only stages talk
    resident_bytes: float  # working memory that every step holds: inputs, block tables, residual streams
    logits_copies: float  # f32 copies of the logits of a step's last rows that sampling holds at once
    sampled_rows: int  # rows of such a step, where the limit of sequences is not told
    page_tokens: int  # of KV, of one page; compressed caches: see `simulator.model.kv_pages`
    pads_pages: bool  # unlike layers take pages of one size
    # index keys of compressed entries are kept in fp8 with an f32 scale where the model would do with fp4
    fp8_index_keys: bool
    # start-up logs count a whole step's tokens in the windows of every sequence, as if all computed prompts at once
    counts_chunks: bool
    source: str


OTHER = EngineMemory(
    share_of="total",
    context_bytes=0.25 * GIB,
    tensor_parallel_bytes=2.1 * GIB,
    pipeline_bytes=0.07 * GIB,
    resident_bytes=0.17 * GIB,
    logits_copies=1.0,
    sampled_rows=1024,
    page_tokens=16,
    pads_pages=False,
    fp8_index_keys=False,
    counts_chunks=False,
    source="assumed: buffers as vLLM's",
)
VLLM = replace(
    OTHER,
    context_bytes=0.25 * GIB,  # 0.24 to 0.27 at TP1
    tensor_parallel_bytes=2.1 * GIB,  # 2.06 to 2.17 at TP2 and TP4
    # bf16 and f32 logits, and values and indices of the sort: 3.5 fits five vocabularies of 49k to 262k within 4%
    logits_copies=3.52,
    pads_pages=True,
    fp8_index_keys=True,  # use_fp4_indexer_cache is off unless asked for
    counts_chunks=True,  # SlidingWindowSpec.max_memory_usage_bytes
    source="vLLM 0.16 to 0.19 at start-up on H100 80GB (llm-d-planner@875a4fd accuracy_report.md)",
)
SGLANG = replace(
    OTHER,
    share_of="before_loading",
    # DeepSeek-V3.1 under TP8: 138.51 GiB free before loading of 139.8
    tensor_parallel_bytes=1.3 * GIB,
    page_tokens=1,
    source="memory before and after loading as SGLang 0.5 logs it; context and stages as vLLM's",
)
TENSORRT_LLM = replace(OTHER, share_of="after_loading", page_tokens=32)
BY_STACK: dict[str, EngineMemory] = {"vllm": VLLM, "sglang": SGLANG, "trtllm": TENSORRT_LLM}


def engine_memory(stack: str) -> EngineMemory:
    """Of a stack by its name; one that is not known here is taken for an engine that pads nothing."""
    return BY_STACK.get(stack, OTHER)


def outside_bytes(engine: EngineMemory, parallelism: Parallelism) -> float:
    """Memory held outside weights, working memory and KV, on one accelerator. [B]

    What tensor-parallel ranks hold is for their all-reduces: data-parallel ranks alone are taken to hold a context.
    """
    if parallelism.tp * parallelism.cp > 1:
        return engine.tensor_parallel_bytes
    return engine.pipeline_bytes if parallelism.pp > 1 else engine.context_bytes

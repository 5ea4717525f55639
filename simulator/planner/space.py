"""The designs worth trying: cuts of the model over groups of accelerators, and step sizes."""

from __future__ import annotations

from simulator.model.architecture import ModelSpec
from simulator.model.parallelism import Parallelism, ParallelismError

# New tokens of a step on each attention rank: from 64 up by factors of sqrt 2. [tokens]
BUDGETS = tuple(round(64 * 2 ** (step / 2)) for step in range(18))
# Those that all cuts are looked at with first; the rest only where a cut is among the cheapest. [assumed: enough]
FIRST_PREFILL_BUDGETS = (4096,)
FIRST_COLOCATED_BUDGETS = (256, 1024, 4096, 16384)
DECODE_BUDGET = 2048  # of a rank that only decodes: rows of all its sequences and drafts fit [tokens; assumed]
# Prompts from this length on spread over enough steps that cutting each step by sequence is worth a try. [assumed]
LONG_PROMPT = 65_536  # tokens
NODE_GPUS = 8  # of a node, as HGX and OAM baseboards have them [accelerators]
NODES_WITHOUT_DOMAIN = 4  # of one instance where the fast fabric ends with the node [nodes; assumed]
MAX_GROUP = 72  # of one instance [accelerators; assumed: a whole NVL72]
TENSOR_PARALLEL = (1, 2, 4, 8, 16)  # ranks; 16: for racks, whose domain is larger than a node
TENSOR_PARALLEL_OF_CP = (1, 2, 4, 8)  # ranks beside context parallelism


def group_sizes(scale_up_domain: int) -> tuple[int, ...]:
    """Sizes of one instance: powers of two and one and a half of them, nodes and whole domains; up to 4 nodes where the
    fast fabric ends with the node.

    >>> group_sizes(72)
    (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 36, 48, 64, 72)
    >>> group_sizes(8)
    (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
    """
    limit = min(MAX_GROUP, max(scale_up_domain, NODES_WITHOUT_DOMAIN * NODE_GPUS))
    twos = [2**i for i in range(limit.bit_length())]
    return tuple(sorted(size for size in {*twos, *(3 * size // 2 for size in twos[1:]), 36, 72} if size <= limit))


def cuts(model: ModelSpec, scale_up_domain: int) -> list[Parallelism]:
    """Cuts that the model allows: tensor parallel, tensor + expert, and data-parallel attention + expert.

    Tensor parallelism stays inside the scale-up domain, or the node of a part that has none; across it only
    experts are spread.
    """
    has_experts = any(layer.ffn.experts for layer in model.layers)
    found: list[Parallelism] = []
    for size in group_sizes(scale_up_domain):
        for tp in (t for t in TENSOR_PARALLEL if t <= size):
            if tp > max(scale_up_domain, NODE_GPUS):
                continue
            if size % tp:
                continue
            dp = size // tp
            if dp > 1 and not has_experts:
                continue  # independent instances do the same without a shared step
            for ep in {1, size} if has_experts and dp == 1 else {size}:
                if not has_experts and ep > 1:
                    continue
                try:
                    cut = Parallelism(tp=tp, dp=dp, ep=ep if has_experts else 1)
                    cut.check(model)
                except ParallelismError:
                    continue
                found.append(cut)
    return sorted(set(found), key=lambda c: (c.gpus, c.tp, c.dp, c.ep))


def context_parallel_cuts(model: ModelSpec, scale_up_domain: int) -> list[Parallelism]:
    """Cuts for prefill of long prompts: the tokens of each step over cp ranks of tp, the experts over all of them."""
    has_experts = any(layer.ffn.experts for layer in model.layers)
    found: list[Parallelism] = []
    for size in group_sizes(scale_up_domain):
        for tp in (t for t in TENSOR_PARALLEL_OF_CP if t < size and size % t == 0):
            try:
                cut = Parallelism(tp=tp, cp=size // tp, ep=size if has_experts else 1)
                cut.check(model)
            except ParallelismError:
                continue
            found.append(cut)
    return found

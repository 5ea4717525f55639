"""Routed experts: how many are touched, how tokens reach them, and the fused and unfused forms of the work."""

from __future__ import annotations

import math
from typing import NamedTuple

from hw_profiles.efficiency import OpClass
from simulator.model.architecture import BF16_BYTES, BYTE, F32_BYTES, NIBBLE, MoeSpec, WeightDtype
from simulator.model.collectives import all_gather, all_to_all
from simulator.model.ops import Op
from simulator.model.sharding import Cut

INPUT_GROUP = 32  # elements of an expert's input under one scale (OCP microscaling formats)
# Bytes of an expert input element by compute precision, one-byte scales of low-precision groups included. [B]
INPUT_BYTES: dict[WeightDtype, float] = {
    "fp32": F32_BYTES,
    "bf16": BF16_BYTES,
    "fp8": BYTE + BYTE / INPUT_GROUP,
    "int8": BYTE + BYTE / INPUT_GROUP,
    "fp4": NIBBLE + BYTE / INPUT_GROUP,
    "int4": NIBBLE + BYTE / INPUT_GROUP,
}
OUTPUT_BYTES = BF16_BYTES  # results travel and are summed in bf16 [B]
SMALLEST_TILE, LARGEST_TILE = 16, 256  # tokens of a tile of expert GEMMs (see `tile_of`)


def touched_experts(tokens: float, experts: int, chosen: int, held: float | None = None) -> float:
    """Experts with at least one token, of `held` (default all) of a layer, under uniform routing:
    held * (1 - (1 - K/E)^N).

    >>> touched_experts(1, experts=256, chosen=6)
    6.0
    """
    return (experts if held is None else held) * (1.0 - (1.0 - chosen / experts) ** tokens)


class RankLoad(NamedTuple):
    """What one expert rank gets in a step: token-choices to multiply, experts to read, and how many of them to read
    once more for further tiles of tokens."""

    choices: float
    touched: float
    again: float


def tile_of(mean: float) -> int:
    """Tokens of a tile: the power of two at or above the mean load of an expert, within bounds.

    Kernels guess so because they know the loads only once they run. That, and the bounds, follow from op tables of
    Hopper and Blackwell: times of crowded experts jump where the mean passes a power of two.

    >>> [tile_of(mean) for mean in (0.2, 16, 17, 5000)]
    [16, 16, 32, 256]
    """
    return min(LARGEST_TILE, max(SMALLEST_TILE, 2 ** math.ceil(math.log2(max(mean, 1.0)))))


def uniform_load(ffn: MoeSpec, tokens: float, ranks: int) -> RankLoad:
    """Expected load of each of `ranks` expert ranks where all experts are alike, so that none passes its tile."""
    held = ffn.experts / ranks
    touched = touched_experts(tokens, ffn.experts, ffn.experts_per_token, held)
    return RankLoad(tokens * ffn.experts_per_token / ffn.experts * held, touched, 0.0)


def copies_per_rank(chosen: int, ranks: int) -> float:
    """Ranks that a token is sent to, its own included, with K uniform choices: R (1 - (1 - 1/R)^K).

    >>> round(copies_per_rank(6, 8), 2)  # DeepEP sends one copy per rank
    4.41
    """
    return ranks * (1.0 - (1.0 - 1.0 / ranks) ** chosen)


def expert_ops(ffn: MoeSpec, sent: float, tokens: float, load: RankLoad, cut: Cut, *, low_latency: bool) -> list[Op]:
    """Routed experts of one layer on the rank with `load`.

    sent: tokens that this accelerator sends out. tokens: of the whole stage.
    low_latency: kernels of decode (one copy to each rank); otherwise of prefill (one copy to each domain).
    """
    if cut.fused(ffn):
        return [fused_op(ffn, sent, load, cut)]
    before, after = _exchange(ffn, sent, tokens, cut, low_latency)
    return [*before, *unfused_ops(ffn, load, cut.expert_tp), *after]


def _operands(ffn: MoeSpec) -> WeightDtype:
    return "bf16" if ffn.expert_compute == "int4" else ffn.expert_compute


def _flops(ffn: MoeSpec, matrices: int, choices: float, expert_tp: int) -> dict[str, float]:
    work = 2 * matrices * ffn.expert_hidden * ffn.expert_intermediate * choices / expert_tp
    return {_operands(ffn): work}


def _widened(ffn: MoeSpec) -> WeightDtype | None:
    """Storage type of weights that are not multiplied as they are stored."""
    return None if ffn.expert_dtype == _operands(ffn) else ffn.expert_dtype


def fused_op(ffn: MoeSpec, sent: float, load: RankLoad, cut: Cut) -> Op:
    """Dispatch, both GEMMs, activation and combine as one kernel (MegaMoE): every choice travels by itself.

    Activations per choice: input written, GEMM1 output written and read, result written in bf16. With these,
    HBM bytes match the published bandwidths of DeepGEMM #316 (8,192 and 32,768 tokens a rank).
    """
    width, inner = ffn.expert_hidden, ffn.expert_intermediate
    element = INPUT_BYTES[ffn.expert_compute]
    activations = load.choices * (element * (width + 2 * inner) + OUTPUT_BYTES * width)
    remote = (cut.parallelism.ep - 1) / cut.parallelism.ep
    # The busiest sender binds: it sends at least the mean, which is what every rank receives.
    travelling = sent * ffn.experts_per_token * remote
    return Op(
        "experts fused with dispatch and combine",
        OpClass.MOE_FUSED,
        _flops(ffn, ffn.matrices, load.choices, 1),
        load.touched * ffn.expert_bytes + activations,
        travelling * width * (element + OUTPUT_BYTES),
        "scale_up",
    )


def unfused_ops(ffn: MoeSpec, load: RankLoad, expert_tp: int) -> list[Op]:
    """Two grouped GEMMs around the activation, then the weighted sum of each token's choices."""
    width, inner = ffn.expert_hidden, ffn.expert_intermediate / expert_tp
    element = INPUT_BYTES[ffn.expert_compute]
    up = ffn.matrices - 1  # gate and up; one where the activation is not gated
    choices, weights = load.choices, load.touched * ffn.expert_bytes / expert_tp
    again = load.again * ffn.expert_bytes / expert_tp
    return [
        Op(
            "expert up GEMM",
            OpClass.GROUPED_GEMM,
            _flops(ffn, up, choices, expert_tp),
            weights * up / ffn.matrices + choices * (element * width + OUTPUT_BYTES * up * inner),
            again_bytes=again * up / ffn.matrices,
            stored=_widened(ffn),
        ),
        Op(
            "expert activation",
            OpClass.GROUPED_GEMM,
            hbm_bytes=choices * inner * (OUTPUT_BYTES * up + element),
        ),
        Op(
            "expert down GEMM",
            OpClass.GROUPED_GEMM,
            _flops(ffn, 1, choices, expert_tp),
            weights / ffn.matrices + choices * (element * inner + OUTPUT_BYTES * width),
            again_bytes=again / ffn.matrices,
            stored=_widened(ffn),
        ),
        Op(
            "sum of choices",
            OpClass.GROUPED_GEMM,
            hbm_bytes=choices * OUTPUT_BYTES * width * (1 + 1 / ffn.experts_per_token),
        ),
    ]


def _exchange(ffn: MoeSpec, sent: float, tokens: float, cut: Cut, low_latency: bool) -> tuple[list[Op], list[Op]]:
    """Collectives before and after unfused experts."""
    if not cut.exchanges_tokens:
        return [], []  # tensor-parallel ranks hold every token; their sums meet in the layer's all-reduce
    element = INPUT_BYTES[ffn.expert_compute]
    width = ffn.expert_hidden
    ranks = cut.parallelism.ep
    if ranks == 1:
        group = cut.token_group
        return (
            all_gather("gather tokens", tokens * width * element, group),
            all_gather("reduce-scatter results", tokens * width * OUTPUT_BYTES, group),
        )
    # Every rank that shares an expert needs the token.
    inside, outside = _copies(ffn.experts_per_token, cut, low_latency)
    inside, outside = inside * cut.expert_tp * sent, outside * cut.expert_tp * sent

    def exchange(name: str, size: float) -> list[Op]:
        return [all_to_all(name, inside * width * size, outside * width * size, cut.expert_group)]

    return exchange("dispatch", element), exchange("combine", OUTPUT_BYTES)


def _copies(chosen: int, cut: Cut, low_latency: bool) -> tuple[float, float]:
    """Copies of a token that leave for other ranks of its domain, and for other domains (DeepEP)."""
    group = cut.expert_group
    to_ranks = copies_per_rank(chosen, group.ranks)
    inside = to_ranks * (group.inside - 1) / group.ranks
    if group.domains == 1:
        return inside, 0.0
    if low_latency:
        return inside, to_ranks * (group.ranks - group.inside) / group.ranks
    return inside, copies_per_rank(chosen, group.domains) * (group.domains - 1) / group.domains

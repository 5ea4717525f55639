"""DeepSeek V4's KV compressor and the lightning indexer that chooses among its entries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from runtime import ops
from runtime.batch import Compression, StepBatch
from runtime.config.spec import CompressedAttention
from runtime.layers.linear import Factory, Linear, RMSNorm
from runtime.layers.rotary import Angles
from runtime.reference.packed_rows import Packing

MAX_SCORES = 1 << 26  # scores held at once (256 MiB in float32); longer prefills go in slices of queries


@dataclass(frozen=True)
class CompressionStep:
    """A compression of this step with the angles of its entries."""

    plan: Compression
    angles: Angles


class Compressor(nn.Module):
    """Every `ratio` tokens become one cached entry of `dim` values."""

    def __init__(self, hidden: int, dim: int, ratio: int, overlapping: bool, eps: float, make: Factory) -> None:
        super().__init__()
        width = 2 * dim if overlapping else dim
        self.ratio = ratio
        self.proj = Linear(hidden, 2 * width, make, pieces=2)  # values, then gate scores
        self.bias = make.empty_float32(ratio, width)  # on the gate, by position within the window
        self.norm = RMSNorm(dim, eps, make)

    def forward(
        self,
        x: Tensor,
        batch: StepBatch,
        step: CompressionStep,
        entries: Tensor,
        state: Tensor,
        packing: Packing | None,
    ) -> None:
        """Store the entries that this step closes, then remember the rows later entries need.

        entries: [blocks, entries_per_block, dim], or bytes with packing; state: [slots, rows, 2 width].
        """
        plan, whole = step.plan, batch.whole
        new = self.proj(x)
        if plan.entry_seq.shape[0]:
            closed = ops.compress(
                new,
                state,
                self.bias,
                whole.cu_seqlens,
                whole.past,
                whole.slots,
                plan.entry_seq,
                plan.entry_index,
                self.norm.weight,
                self.norm.eps,
                step.angles.cos,
                step.angles.sin,
                self.ratio,
            )
            ops.store_rows(closed, entries.flatten(0, 1), plan.entry_rows, packing)
        ops.store_rows(new, state.flatten(0, 1), plan.state_rows)


class Indexer(nn.Module):
    """Scores entries by many small heads on keys of its own and keeps the best `index_topk`."""

    def __init__(self, config: CompressedAttention, hidden: int, eps: float, make: Factory) -> None:
        super().__init__()
        self.num_heads, self.dim, self.top_k = config.index_heads, config.index_dim, config.index_topk
        self.wq_b = Linear(config.q_lora_rank, self.num_heads * self.dim, make)
        self.weights_proj = Linear(hidden, self.num_heads, make)
        self.compressor = Compressor(hidden, self.dim, config.sparse_ratio, True, eps, make)

    def forward(
        self,
        x: Tensor,
        q_low: Tensor,
        batch: StepBatch,
        angles: Angles,
        step: CompressionStep,
        keys: Tensor,
        state: Tensor,
        packing: Packing | None,
    ) -> Tensor | None:
        """Entries each token reads, [T, k] int32 ascending, padded with -1; None: all it may see."""
        self.compressor(x, batch, step, keys, state, packing)
        plan = step.plan
        if plan.max_visible <= self.top_k:
            return None
        q = ops.rope(self.wq_b(q_low).unflatten(1, (self.num_heads, self.dim)), angles.cos, angles.sin)
        weights = self.weights_proj(x).float() * (self.dim * self.num_heads) ** -0.5
        chosen = []
        rows = max(1, MAX_SCORES // plan.max_visible)
        for start in range(0, x.shape[0], rows):
            part = slice(start, start + rows)
            scores = ops.indexer_scores(
                q[part],
                weights[part],
                keys,
                batch.whole.block_table,
                batch.whole.token_seq[part],
                plan.visible[part],
                plan.max_visible,
                packing,
            )
            chosen.append(ops.top_k(scores, plan.visible[part], self.top_k))
        return torch.cat(chosen)

"""DeepSeek V4 attention: low-rank queries, one KV head, window and compressed entries, grouped output."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from runtime import ops
from runtime.batch import SequenceRun, StepBatch
from runtime.cache import LayerCache
from runtime.config.spec import AttentionKind, CompressedAttention
from runtime.layers.compressor import CompressionStep, Compressor, Indexer
from runtime.layers.linear import Factory, Linear, RMSNorm
from runtime.layers.rotary import Angles
from runtime.reference.packed_rows import Packing


class GroupedOutput(nn.Module):
    """Heads in groups, each projected to a low rank on its own, then mixed to the hidden size."""

    def __init__(self, config: CompressedAttention, hidden: int, make: Factory) -> None:
        super().__init__()
        tensor = make.ranks.tensor
        self.groups = tensor.share("o_groups", config.o_groups)
        inputs = config.num_heads * config.head_dim // config.o_groups
        self.wo_a = make.empty(self.groups, config.o_lora_rank, inputs)
        self.shards = {"wo_a": tensor.shard(0)}
        self.wo_b = Linear(self.groups * config.o_lora_rank, hidden, make, shard=tensor.shard(1), summed=tensor)

    def forward(self, heads: Tensor) -> Tensor:
        """heads: [T, H, D] -> [T, hidden]."""
        grouped = heads.flatten(1).unflatten(1, (self.groups, -1)).transpose(0, 1)
        low = torch.bmm(grouped, self.wo_a.transpose(1, 2))  # [G, T, rank]
        return self.wo_b(low.transpose(0, 1).flatten(1))


class CompressedSelfAttention(nn.Module):
    """One layer; `kind` says whether it has a compressor and an indexer beside the window."""

    def __init__(
        self, config: CompressedAttention, kind: AttentionKind, hidden: int, eps: float, make: Factory
    ) -> None:
        super().__init__()
        tensor = make.ranks.tensor
        self.num_heads = tensor.share("num_attention_heads", config.num_heads)
        self.head_dim, self.eps = config.head_dim, eps
        self.scale = config.head_dim**-0.5
        self.wq_a = Linear(hidden, config.q_lora_rank, make)
        self.q_norm = RMSNorm(config.q_lora_rank, eps, make)
        self.wq_b = Linear(config.q_lora_rank, self.num_heads * config.head_dim, make, shard=tensor.shard(0))
        self.wkv = Linear(hidden, config.head_dim, make)
        self.kv_norm = RMSNorm(config.head_dim, eps, make)
        self.sinks = make.empty_float32(self.num_heads)
        self.shards = {"sinks": tensor.shard(0)}
        self.output = GroupedOutput(config, hidden, make)
        self.compressor, self.indexer, self.ratio = None, None, 0
        if kind == "sparse":
            self.ratio = config.sparse_ratio
            self.compressor = Compressor(hidden, config.head_dim, self.ratio, True, eps, make)
            self.indexer = Indexer(config, hidden, eps, make)
        elif kind == "heavy":
            self.ratio = config.heavy_ratio
            self.compressor = Compressor(hidden, config.head_dim, self.ratio, False, eps, make)

    def forward(
        self,
        x: Tensor,
        batch: StepBatch,
        angles: Angles,
        compressions: Mapping[int, CompressionStep],
        cache: LayerCache,
    ) -> Tensor:
        """x: [T, hidden]; angles: of this layer's RoPE; compressions: by ratio."""
        window = cache.window
        assert window is not None
        q_low = self.q_norm(self.wq_a(x))
        q = self.wq_b(q_low).unflatten(1, (self.num_heads, self.head_dim))
        q = ops.norm_rope_store(q, None, self.eps, angles.cos, angles.sin)
        ring = window.flatten(0, 1)[:, None]
        new, packing = self.wkv(x)[:, None], cache.packing
        turn = (self.kv_norm.weight, self.eps, angles.cos, angles.sin)
        if packing is None:
            kv = ops.norm_rope_store(new, *turn, cache=ring, rows=batch.window_rows)
        else:
            kv = ops.norm_rope_store(new, *turn)
            ops.store_rows(kv, ring, batch.window_rows, packing)
        selected = None
        if self.compressor is not None:
            step = compressions[self.ratio]
            assert cache.entries is not None
            assert cache.state is not None
            self.compressor(x, batch, step, cache.entries, cache.state, packing)
            if self.indexer is not None:
                assert cache.index_keys is not None
                assert cache.index_state is not None
                selected = self.indexer(
                    x, q_low, batch, angles, step, cache.index_keys, cache.index_state, cache.index_packing
                )
        visible = compressions[self.ratio].plan.visible if self.compressor is not None else None
        out = torch.empty_like(q)
        if batch.decode is not None:
            rows = batch.decode.rows
            out[rows] = self._decode(q[rows], batch.decode, window, cache.entries, visible, selected, packing)
        if batch.prefill is not None:
            rows = batch.prefill.rows
            own = kv[rows, 0] if packing is None else ops.round_rows(kv[rows, 0], packing)
            out[rows] = self._prefill(q[rows], own, batch.prefill, window, cache.entries, visible, selected, packing)
            # Only now: early queries of a chunk still read what its last tokens overwrite.
            ops.store_rows(kv[rows], ring, batch.late_window_rows[rows], packing)
        return self.output(ops.rope(out, angles.cos, angles.sin, inverse=True))

    def _decode(
        self,
        q: Tensor,
        run: SequenceRun,
        window: Tensor,
        entries: Tensor | None,
        visible: Tensor | None,
        selected: Tensor | None,
        packing: Packing | None,
    ) -> Tensor:
        return ops.window_attention_decode(
            q,
            window,
            run.slots,
            run.context_lens,
            self.sinks,
            self.scale,
            entries,
            run.block_table,
            None if visible is None else visible[run.rows],
            None if selected is None else selected[run.rows],
            packing,
        )

    def _prefill(
        self,
        q: Tensor,
        kv: Tensor,
        run: SequenceRun,
        window: Tensor,
        entries: Tensor | None,
        visible: Tensor | None,
        selected: Tensor | None,
        packing: Packing | None,
    ) -> Tensor:
        return ops.window_attention_prefill(
            q,
            kv,
            window,
            self.sinks,
            self.scale,
            run.token_seq,
            run.positions,
            run.past,
            run.slots,
            entries,
            run.block_table,
            None if visible is None else visible[run.rows],
            None if selected is None else selected[run.rows],
            packing,
        )

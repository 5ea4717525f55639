"""Attention over keys and values kept in full: multi-head latent (DeepSeek V3) and grouped-query (Qwen3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from runtime import ops
from runtime.batch import StepBatch
from runtime.cache import LayerCache
from runtime.config.spec import GroupedAttention, LatentAttention
from runtime.layers.linear import Factory, Linear, RMSNorm
from runtime.layers.rotary import Angles
from runtime.layers.tensor_parallel import Shard, TensorGroup
from runtime.reference.packed_rows import Packing


def attend(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    batch: StepBatch,
    scale: float,
    packing: Packing | None = None,
    v_dim: int = 0,
) -> Tensor:
    """Decode rows and prefill rows by their own op. q: [T, H, Dk] -> [T, H, Dv]; v_dim: Dv of packed keys."""
    parts = []
    if (part := batch.decode) is not None:
        parts.append(
            ops.paged_attention_decode(
                q[part.rows], keys, values, part.block_table, part.context_lens, scale, packing, v_dim
            )
        )
    if (part := batch.prefill) is not None:
        parts.append(
            ops.paged_attention_prefill(
                q[part.rows],
                keys,
                values,
                part.block_table,
                part.cu_seqlens,
                part.past,
                part.max_new,
                scale,
                packing,
                v_dim,
            )
        )
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def kv_heads_of(config: GroupedAttention, tensor: TensorGroup) -> range:
    """KV heads that a rank holds: an equal share, or one that several ranks hold."""
    if tensor.size <= config.num_kv_heads:
        share = tensor.share("num_key_value_heads", config.num_kv_heads)
        return range(tensor.rank * share, (tensor.rank + 1) * share)
    if tensor.size % config.num_kv_heads:
        raise ValueError(f"{tensor.size} ranks cannot hold num_key_value_heads={config.num_kv_heads}; use a multiple")
    head = tensor.rank // (tensor.size // config.num_kv_heads)
    return range(head, head + 1)


class GroupedSelfAttention(nn.Module):
    def __init__(self, config: GroupedAttention, hidden: int, eps: float, make: Factory) -> None:
        super().__init__()
        self.config, self.eps = config, eps
        dim, bias, tensor = config.head_dim, config.has_bias, make.ranks.tensor
        self.heads = tensor.share("num_attention_heads", config.num_heads)
        held = kv_heads_of(config, tensor)
        self.kv_heads = len(held)
        # Ranks beyond the KV heads hold the same one in turn.
        kv_shard = Shard(0, held.start // len(held), config.num_kv_heads // len(held))
        self.wq = Linear(hidden, self.heads * dim, make, bias, shard=tensor.shard(0))
        self.wk = Linear(hidden, self.kv_heads * dim, make, bias, shard=kv_shard)
        self.wv = Linear(hidden, self.kv_heads * dim, make, bias, shard=kv_shard)
        self.wo = Linear(self.heads * dim, hidden, make, bias, shard=tensor.shard(1), summed=tensor)
        self.q_norm = RMSNorm(dim, eps, make)
        self.k_norm = RMSNorm(dim, eps, make)

    def forward(self, x: Tensor, batch: StepBatch, angles: Angles, cache: LayerCache) -> Tensor:
        c, keys, values = self.config, cache.keys, cache.values
        assert keys is not None
        assert values is not None
        turn = (angles.cos, angles.sin, c.rope.interleaved)
        q = self.wq(x).unflatten(1, (self.heads, c.head_dim))
        q = ops.norm_rope_store(q, self.q_norm.weight, self.eps, *turn)
        k = self.wk(x).unflatten(1, (self.kv_heads, c.head_dim))
        if keys.dtype == torch.float8_e4m3fn:  # its store saturates
            k = ops.norm_rope_store(k, self.k_norm.weight, self.eps, *turn)
            ops.store_rows(k, keys.flatten(0, 1), batch.block_rows)
        else:
            ops.norm_rope_store(k, self.k_norm.weight, self.eps, *turn, keys.flatten(0, 1), batch.block_rows)
        v = self.wv(x).unflatten(1, (self.kv_heads, c.head_dim))
        ops.store_rows(v, values.flatten(0, 1), batch.block_rows)
        out = attend(q, keys, values, batch, c.head_dim**-0.5)
        return self.wo(out.flatten(1))


class LatentSelfAttention(nn.Module):
    """MLA with absorbed projections: queries go to the latent space, so that prefill and decode both read the
    cached latents as one KV head (DeepSeek-V2, section 2.1.2). Prefill pays for it in FLOPs, not in memory.
    """

    def __init__(self, config: LatentAttention, hidden: int, eps: float, make: Factory) -> None:
        super().__init__()
        self.config = config
        tensor = make.ranks.tensor
        self.heads, rank = tensor.share("num_attention_heads", config.num_heads), config.kv_lora_rank
        heads = self.heads
        q_dim = heads * (config.nope_dim + config.rope_dim)
        if config.q_lora_rank is None:
            self.wq = Linear(hidden, q_dim, make, shard=tensor.shard(0))
        else:
            self.wq_a = Linear(hidden, config.q_lora_rank, make, config.has_bias)
            self.q_norm = RMSNorm(config.q_lora_rank, eps, make)
            self.wq_b = Linear(config.q_lora_rank, q_dim, make, shard=tensor.shard(0))
        self.wkv_a = Linear(hidden, config.latent_dim, make, config.has_bias)
        self.kv_norm = RMSNorm(rank, eps, make)
        # Latent to keys (first nope_dim rows of a head) and to values (the rest).
        self.wkv_b = make.empty(heads, config.nope_dim + config.v_dim, rank)
        self.shards = {"wkv_b": tensor.shard(0)}
        self.wo = Linear(heads * config.v_dim, hidden, make, config.has_bias, shard=tensor.shard(1), summed=tensor)

    def forward(self, x: Tensor, batch: StepBatch, angles: Angles, cache: LayerCache) -> Tensor:
        c, keys, values = self.config, cache.keys, cache.values
        assert keys is not None
        assert values is not None
        turn = (angles.cos, angles.sin, c.rope.interleaved)
        q = self.wq(x) if c.q_lora_rank is None else self.wq_b(self.q_norm(self.wq_a(x)))
        q = ops.rope(q.unflatten(1, (self.heads, -1)), *turn)
        latent, k_rope = self.wkv_a(x).split([c.kv_lora_rank, c.rope_dim], 1)
        k_rope = ops.rope(k_rope[:, None].contiguous(), *turn)
        row = torch.cat([self.kv_norm(latent)[:, None], k_rope], -1)
        ops.store_rows(row, keys.flatten(0, 1), batch.block_rows, cache.packing)
        to_key, to_value = self.wkv_b.split([c.nope_dim, c.v_dim], 1)
        absorbed = torch.einsum("thn,hnr->thr", q[..., : c.nope_dim], to_key)
        query = torch.cat([absorbed, q[..., c.nope_dim :]], -1)
        out = attend(query, keys, values, batch, c.scale, cache.packing, c.kv_lora_rank)
        heads = torch.einsum("thr,hvr->thv", out, to_value)
        return self.wo(heads.flatten(1))

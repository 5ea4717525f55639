"""Device memory of the KV cache: block pools, which grow with the context, and slot pools, which do not.

A DeepSeek V4 sequence keeps in its blocks the compressed entries (CSA, HCA) and the indexer keys, and in its
slot the last window of keys of every layer and the rows a compressor still needs. GQA and MLA keep all in
blocks. Who owns which block or slot is the block manager's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.config.spec import (
    AttentionKind,
    CompressedAttention,
    ConfigError,
    GroupedAttention,
    LatentAttention,
    ModelConfig,
)
from runtime.config.storage import CacheDtypes
from runtime.reference.packed_rows import Packing, index_key, latent, pack, shared_kv


@dataclass(frozen=True)
class SequenceInput:
    """One sequence's share of one step: a prefill chunk or a decode token."""

    token_ids: tuple[int, ...]  # new tokens of this step
    past: int  # tokens of this sequence already in the cache
    block_ids: tuple[int, ...]  # physical blocks covering past + new tokens, in order
    slot: int = 0  # state slot; models without state ignore it


@dataclass(frozen=True)
class LayerCache:
    """One layer's views into the pools; None where the layer has no such part."""

    window: Tensor | None = None  # [slots, window, D]: token j at row j % window
    entries: Tensor | None = None  # [blocks, entries_per_block, D]
    packing: Packing | None = None  # of window and entries, or of keys: their last axis is bytes then
    index_packing: Packing | None = None  # of index_keys
    state: Tensor | None = None  # [slots, rows, 2 C] float32: compressor input of the latest tokens
    index_keys: Tensor | None = None  # [blocks, entries_per_block, index_dim]
    index_state: Tensor | None = None  # as state, for the indexer's compressor
    keys: Tensor | None = None  # [blocks, block_size, kv_heads, Dk]
    values: Tensor | None = None  # [blocks, block_size, kv_heads, Dv]


def check_block_size(config: ModelConfig, block_size: int) -> None:
    """ConfigError for blocks that would cut entries."""
    if block_size < 1 or block_size % config.block_multiple:
        multiple = config.block_multiple
        raise ConfigError(f"block_size={block_size} must be a multiple of {multiple} for this model; use that")


class KVCache:
    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        num_slots: int,
        block_size: int,
        device: torch.device | str,
        dtype: torch.dtype,
        stored: CacheDtypes | None = None,
        kv_heads: range | None = None,
    ) -> None:
        """block_size: tokens a block, a multiple of `config.block_multiple` (128 for full V4).

        stored: how keys and values are kept; by default in dtype. kv_heads: of grouped attention, those of this rank.
        """
        check_block_size(config, block_size)
        self.config = config
        self.num_blocks, self.num_slots, self.block_size = num_blocks, num_slots, block_size
        self.device, self.dtype = torch.device(device), dtype
        self.stored = stored or CacheDtypes()
        self.kv_heads = kv_heads
        self._packings: dict[str, Packing] = {}  # of pools by name
        self.has_state = isinstance(config.attention, CompressedAttention)
        self._blocks: dict[str, Tensor] = {}  # each [layers that have it, num_blocks, rows, ...]
        self._slots: dict[str, Tensor] = {}  # each [layers that have it, num_slots, rows, ...]
        # An MTP layer follows the others; in V4 it has a window alone.
        mtp: AttentionKind = "window" if self.has_state else config.attention_kinds[-1]
        kinds = config.attention_kinds + (mtp,) * config.num_mtp_layers
        self.layers = self._allocate(kinds)

    @property
    def bytes_per_block(self) -> int:
        return sum(p.nbytes for p in self._blocks.values()) // max(self.num_blocks, 1)

    @property
    def bytes_per_slot(self) -> int:
        return sum(p.nbytes for p in self._slots.values()) // max(self.num_slots, 1)

    def reset_slot(self, slot: int) -> None:
        for pool in self._slots.values():
            pool[:, slot].zero_()

    def randomise(self, seed: int) -> None:
        """Fill all blocks and slots as if sequences had been served: for measurements, since zeros compress, tie in
        selections and cost less power."""
        generator = torch.Generator(self.device).manual_seed(seed)
        for name, pool in (self._blocks | self._slots).items():
            packing = self._packings.get(name)
            for layer in pool:
                shape = layer.shape if packing is None else (*layer.shape[:-1], packing.dim)
                values = torch.randn(shape, generator=generator, device=self.device)
                layer.copy_(values if packing is None else pack(values, packing))

    def copy_slot(self, source: int, target: int) -> None:
        """Snapshot or restore the state of a sequence."""
        for pool in self._slots.values():
            pool[:, target].copy_(pool[:, source])

    def export_blocks(self, block_ids: Sequence[int], slot: int) -> list[Tensor]:
        """Copies of the blocks and the slot, one contiguous tensor a pool, on the cache's device."""
        ids = torch.tensor(block_ids, dtype=torch.long, device=self.device)
        blocks = [pool.index_select(1, ids) for pool in self._blocks.values()]
        return blocks + [pool[:, slot].clone() for pool in self._slots.values()]

    def import_blocks(self, block_ids: Sequence[int], slot: int, tensors: Sequence[Tensor]) -> None:
        """Write what `export_blocks` of a cache of the same model gave into these blocks and this slot."""
        pools = len(self._blocks) + len(self._slots)
        if len(tensors) != pools:
            raise ValueError(f"a hand-over of {len(tensors)} tensors does not fit a cache of {pools} pools")
        ids = torch.tensor(block_ids, dtype=torch.long, device=self.device)
        for pool, given in zip(self._blocks.values(), tensors, strict=False):
            if self.kv_heads is not None:
                given = given[..., self.kv_heads.start : self.kv_heads.stop, :]
            # As bytes: the CPU cannot scatter fp8.
            _as_bytes(pool).index_copy_(1, ids, _as_bytes(given.to(pool.device, pool.dtype).contiguous()))
        for pool, given in zip(self._slots.values(), tensors[len(self._blocks) :], strict=True):
            pool[:, slot].copy_(given)

    def _allocate(self, kinds: Sequence[AttentionKind]) -> list[LayerCache]:
        attention = self.config.attention
        if isinstance(attention, CompressedAttention):
            return self._allocate_compressed(attention, kinds)
        if isinstance(attention, LatentAttention):
            if self.stored.kv == "fp8":
                packing = latent(attention.kv_lora_rank, attention.rope_dim)
                rows = self._block_pool("latent", len(kinds), self.block_size, 1, packing=packing)
                return [LayerCache(keys=x, values=x, packing=packing) for x in rows]
            latents = self._block_pool("latent", len(kinds), self.block_size, 1, attention.latent_dim)
            return [LayerCache(keys=x, values=x[..., : attention.kv_lora_rank]) for x in latents]
        return self._allocate_grouped(attention, len(kinds))

    def _allocate_grouped(self, attention: GroupedAttention, layers: int) -> list[LayerCache]:
        heads = attention.num_kv_heads if self.kv_heads is None else len(self.kv_heads)
        shape = (layers, self.block_size, heads, attention.head_dim)
        # Without scales: as servers keep keys and values where a checkpoint has none.
        dtype = torch.float8_e4m3fn if self.stored.kv == "fp8" else self.dtype
        pools = (self._block_pool(name, *shape, dtype=dtype) for name in ("keys", "values"))
        pairs = zip(*pools, strict=True)
        return [LayerCache(keys=keys, values=values) for keys, values in pairs]

    def _allocate_compressed(self, attention: CompressedAttention, kinds: Sequence[AttentionKind]) -> list[LayerCache]:
        dim, index_dim = attention.head_dim, attention.index_dim
        sparse, heavy = kinds.count("sparse"), kinds.count("heavy")
        ratio, per_block = attention.sparse_ratio, self.block_size // attention.sparse_ratio
        packing = shared_kv(dim, attention.rope.dim) if self.stored.kv == "fp8" else None
        index_packing = index_key(index_dim) if self.stored.index == "fp4" else None
        width = () if packing else (dim,)
        window = iter(
            self._slot_pool("window", len(kinds), attention.window, *width, dtype=self.dtype, packing=packing)
        )
        # An overlapping entry pools two windows of two series; each row holds values and gate scores.
        csa = iter(self._block_pool("sparse_entries", sparse, per_block, *width, packing=packing))
        index_width = () if index_packing else (index_dim,)
        keys = iter(self._block_pool("index_keys", sparse, per_block, *index_width, packing=index_packing))
        csa_state = iter(self._slot_pool("sparse_state", sparse, 2 * ratio, 4 * dim))
        index_state = iter(self._slot_pool("index_state", sparse, 2 * ratio, 4 * index_dim))
        heavy_rows = self.block_size // attention.heavy_ratio
        hca = iter(self._block_pool("heavy_entries", heavy, heavy_rows, *width, packing=packing))
        hca_state = iter(self._slot_pool("heavy_state", heavy, attention.heavy_ratio, 2 * dim))
        layers = []
        for kind in kinds:
            if kind == "sparse":
                parts = (next(csa), next(csa_state), next(keys), next(index_state))
            elif kind == "heavy":
                parts = (next(hca), next(hca_state), None, None)
            else:
                parts = (None, None, None, None)
            entries, state, index_keys, last = parts
            layers.append(LayerCache(next(window), entries, packing, index_packing, state, index_keys, last))
        return layers

    def _block_pool(
        self, name: str, layers: int, *shape: int, dtype: torch.dtype | None = None, packing: Packing | None = None
    ) -> Tensor:
        pool = self._pool(name, packing, (layers, self.num_blocks, *shape), dtype or self.dtype)
        if pool.shape[0]:
            self._blocks[name] = pool
        return pool

    def _slot_pool(
        self,
        name: str,
        layers: int,
        *shape: int,
        dtype: torch.dtype = torch.float32,
        packing: Packing | None = None,
    ) -> Tensor:
        pool = self._pool(name, packing, (layers, self.num_slots, *shape), dtype)
        if pool.shape[0]:
            self._slots[name] = pool
        return pool

    def _pool(self, name: str, packing: Packing | None, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if packing is None:
            return torch.zeros(shape, device=self.device, dtype=dtype)
        self._packings[name] = packing
        return torch.zeros(*shape, packing.num_bytes, device=self.device, dtype=torch.uint8)


def _as_bytes(values: Tensor) -> Tensor:
    return values.view(torch.uint8) if values.dtype == torch.float8_e4m3fn else values

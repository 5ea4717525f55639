"""Attention, indexer and compressor: cases whose inputs are a paged cache."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.kernels.case import (
    BLOCK,
    CONTEXT,
    CSA_RATIO,
    GQA_DIM,
    GQA_HEADS,
    GQA_KV_HEADS,
    HCA_RATIO,
    HEAD_DIM,
    HEADS,
    INDEX_DIM,
    INDEX_HEADS,
    INDEX_TOP_K,
    MLA_DIM,
    MLA_HEADS,
    MLA_LATENT,
    MLA_ROPE,
    ROPE_PAIRS,
    WINDOW,
    Case,
    codes,
    integers,
    normal,
    positive,
)
from runtime.kernels.attention_decode import paged_attention_decode, window_attention_decode
from runtime.kernels.attention_prefill import paged_attention_prefill, window_attention_prefill
from runtime.kernels.compressor import compress
from runtime.kernels.indexer import indexer_scores
from runtime.kernels.packed_rows import round_rows, store_packed
from runtime.reference.packed_rows import Packing, index_key, latent, pack, shared_kv


def table(device: torch.device, sequences: int, tokens: int) -> Tensor:
    """Block table of `sequences` that hold `tokens` each, blocks in order."""
    blocks = tokens // BLOCK
    return torch.arange(sequences * blocks, dtype=torch.int32, device=device).view(sequences, blocks)


def constant(device: torch.device, count: int, value: int) -> Tensor:
    return torch.full((count,), value, dtype=torch.int32, device=device)


KV_ROW, LATENT_ROW, INDEX_ROW = shared_kv(HEAD_DIM, 2 * ROPE_PAIRS), latent(MLA_LATENT, MLA_ROPE), index_key(INDEX_DIM)


def packed_rows(device: torch.device, packing: Packing, *shape: int) -> Tensor:
    """Random rows as the cache keeps them; made in slices, since they go through float32."""
    if device.type == "meta":
        return torch.empty(*shape, packing.num_bytes, dtype=torch.uint8, device=device)
    rows = torch.empty(*shape, packing.num_bytes, dtype=torch.uint8, device=device)
    for part in rows.flatten(0, -2).split(1 << 16):
        part.copy_(pack(torch.randn(len(part), packing.dim, device=device), packing))
    return rows


def key_rows_of(device: torch.device, packed: bool, packing: Packing, *shape: int) -> Tensor:
    return packed_rows(device, packing, *shape) if packed else normal(device, *shape, packing.dim)


def window_case(kind: str, ratio: int, tokens: int, decode: bool, packed: bool = False) -> Case:
    """V4 attention at CONTEXT: one chunk of one sequence, or one token of each of `tokens` sequences."""
    packing = KV_ROW if packed else None
    sequences = tokens if decode else 1
    past = CONTEXT - (1 if decode else tokens)
    entries = CONTEXT // ratio if ratio else 0
    attended = min(entries, INDEX_TOP_K) if kind == "csa" else entries

    def build(device: torch.device) -> Callable[[], object]:
        q, sinks = normal(device, tokens, HEADS, HEAD_DIM), positive(device, HEADS)
        window = key_rows_of(device, packed, KV_ROW, sequences, WINDOW)
        slots = torch.arange(sequences, dtype=torch.int32, device=device)
        far: tuple[Tensor | None, ...] = (None, None, None, None)
        if ratio:
            per_block = BLOCK // ratio
            cache = key_rows_of(device, packed, KV_ROW, sequences * CONTEXT // BLOCK, per_block)
            visible = constant(device, tokens, entries)
            chosen = integers(device, 0, entries, tokens, attended) if kind == "csa" else None
            far = (cache, table(device, sequences, CONTEXT), visible, chosen)
        scale = HEAD_DIM**-0.5
        if decode:
            lengths = constant(device, sequences, CONTEXT)
            return lambda: window_attention_decode(q, window, slots, lengths, sinks, scale, *far, packing)
        kv = normal(device, tokens, HEAD_DIM)
        seq, before = constant(device, tokens, 0), constant(device, 1, past)
        positions = torch.arange(past, past + tokens, dtype=torch.int32, device=device)
        return lambda: window_attention_prefill(
            q, kv, window, sinks, scale, seq, positions, before, slots, *far, packing
        )

    keys = WINDOW + attended
    # Decode: every sequence reads its own keys. Prefill: the keys of the whole context, once.
    key_rows = tokens * keys if decode else tokens + WINDOW + entries
    traffic = key_rows * (KV_ROW.num_bytes if packed else HEAD_DIM * 2) + 2 * tokens * HEADS * HEAD_DIM * 2
    name = f"window_{'decode' if decode else 'prefill'}_{kind}{'_packed' if packed else ''}_{tokens}"
    return Case(name, build, 4 * tokens * HEADS * HEAD_DIM * keys, traffic, packed)


def paged_case(kind: str, tokens: int, decode: bool, packed: bool = False) -> Case:
    """Grouped-query or latent attention at CONTEXT (decode) or over one chunk of `tokens` from empty (prefill)."""
    heads, kv_heads = (GQA_HEADS, GQA_KV_HEADS) if kind == "gqa" else (MLA_HEADS, 1)
    k_dim, v_dim = (GQA_DIM, GQA_DIM) if kind == "gqa" else (MLA_DIM, MLA_LATENT)
    sequences, held = (tokens, CONTEXT) if decode else (1, tokens)

    def build(device: torch.device) -> Callable[[], object]:
        q = normal(device, tokens, heads, k_dim)
        pool = (sequences * held // BLOCK, BLOCK, kv_heads)
        packing = LATENT_ROW if packed and kind == "mla" else None
        if packing is not None:
            keys = values = packed_rows(device, packing, *pool)
        elif kind == "mla":
            keys = normal(device, *pool, k_dim)
            values = keys[..., :v_dim]
        else:
            keys, values = (codes(device, *pool, k_dim) if packed else normal(device, *pool, k_dim) for _ in range(2))
        blocks = table(device, sequences, held)
        if decode:
            lengths = constant(device, tokens, CONTEXT)
            return lambda: paged_attention_decode(q, keys, values, blocks, lengths, k_dim**-0.5, packing, v_dim)
        bounds = torch.arange(2, dtype=torch.int32, device=device) * tokens
        before = constant(device, 1, 0)
        return lambda: paged_attention_prefill(
            q, keys, values, blocks, bounds, before, tokens, k_dim**-0.5, packing, v_dim
        )

    pairs = tokens * CONTEXT if decode else tokens * (tokens + 1) / 2
    cached = (k_dim + (v_dim if kind == "gqa" else 0)) * 2  # values of MLA lie within its keys
    if packed:
        cached = LATENT_ROW.num_bytes if kind == "mla" else cached // 2
    traffic = sequences * held * kv_heads * cached + tokens * heads * (k_dim + v_dim) * 2
    name = f"paged_{'decode' if decode else 'prefill'}_{kind}{'_packed' if packed else ''}_{tokens}"
    return Case(name, build, 2 * pairs * heads * (k_dim + v_dim), traffic, packed)


def indexer_case(tokens: int, decode: bool, packed: bool = False) -> Case:
    entries, per_block = CONTEXT // CSA_RATIO, BLOCK // CSA_RATIO
    sequences = tokens if decode else 1

    def build(device: torch.device) -> Callable[[], object]:
        q, weights = normal(device, tokens, INDEX_HEADS, INDEX_DIM), positive(device, tokens, INDEX_HEADS)
        keys = key_rows_of(device, packed, INDEX_ROW, sequences * CONTEXT // BLOCK, per_block)
        blocks = table(device, sequences, CONTEXT)
        seq = torch.arange(tokens, dtype=torch.int32, device=device) if decode else constant(device, tokens, 0)
        visible = constant(device, tokens, entries)
        return lambda: indexer_scores(q, weights, keys, blocks, seq, visible, entries, INDEX_ROW if packed else None)

    flops = 2 * tokens * INDEX_HEADS * INDEX_DIM * entries
    key_bytes = INDEX_ROW.num_bytes if packed else INDEX_DIM * 2
    traffic = sequences * entries * key_bytes + tokens * INDEX_HEADS * INDEX_DIM * 2 + tokens * entries * 4
    return Case(f"indexer_scores{'_packed' if packed else ''}_{tokens}", build, flops, traffic)


def packing_cases(tokens: int) -> list[Case]:
    """Rows on their way into a packed cache, and a chunk's keys as they will be read."""

    def build_store(packing: Packing) -> Callable[[torch.device], Callable[[], object]]:
        def build(device: torch.device) -> Callable[[], object]:
            values, rows = normal(device, tokens, packing.dim), torch.arange(tokens, dtype=torch.int32, device=device)
            cache = torch.zeros(tokens, packing.num_bytes, dtype=torch.uint8, device=device)
            return lambda: store_packed(values, cache, rows, packing)

        return build

    def build_round(device: torch.device) -> Callable[[], object]:
        values = normal(device, tokens, HEAD_DIM)
        return lambda: round_rows(values, KV_ROW)

    def moved(packing: Packing) -> int:
        return tokens * (packing.dim * 2 + packing.num_bytes)

    return [
        Case(f"store_packed_kv_{tokens}", build_store(KV_ROW), 0, moved(KV_ROW), True),
        Case(f"store_packed_latent_{tokens}", build_store(LATENT_ROW), 0, moved(LATENT_ROW), True),
        Case(f"store_packed_index_{tokens}", build_store(INDEX_ROW), 0, moved(INDEX_ROW)),
        Case(f"round_rows_{tokens}", build_round, 0, moved(KV_ROW) * 2, True),
    ]


def compressor_case(kind: str, tokens: int) -> Case:
    """One chunk of one sequence, at a window boundary."""
    ratio, windows = (CSA_RATIO, 2) if kind == "csa" else (HCA_RATIO, 1)
    width, entries = windows * HEAD_DIM, tokens // ratio

    def build(device: torch.device) -> Callable[[], object]:
        new = normal(device, tokens, 2 * width)
        state = positive(device, 1, windows * ratio, 2 * width)
        bounds = torch.arange(2, dtype=torch.int32, device=device) * tokens
        none = constant(device, 1, 0)
        seq, index = constant(device, entries, 0), torch.arange(entries, dtype=torch.int32, device=device)
        angles, norm = positive(device, entries, ROPE_PAIRS), positive(device, HEAD_DIM)
        bias = positive(device, ratio, width)
        return lambda: compress(new, state, bias, bounds, none, none, seq, index, norm, 1e-6, angles, angles, ratio)

    return Case(f"compress_{kind}_{tokens}", build, 0, tokens * 2 * width * 2 + entries * HEAD_DIM * 2)


def attention_cases(tokens: int, decode: bool) -> list[Case]:
    kinds = (("swa", 0), ("csa", CSA_RATIO), ("hca", HCA_RATIO))
    return [
        *(window_case(kind, ratio, tokens, decode) for kind, ratio in kinds),
        *(paged_case(kind, tokens, decode) for kind in ("gqa", "mla")),
        indexer_case(tokens, decode),
        window_case("csa", CSA_RATIO, tokens, decode, packed=True),
        *(paged_case(kind, tokens, decode, packed=True) for kind in ("gqa", "mla")),
        indexer_case(tokens, decode, packed=True),
        *packing_cases(tokens),
    ]

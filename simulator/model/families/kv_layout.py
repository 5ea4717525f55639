"""Stored bytes of one KV entry and one index key, by layout. [B]

Sources: FlashMLA (584 B and 656 B rows), DeepGEMM and SGLang indexer caches (68 B, 132 B keys).
"""

from __future__ import annotations

from typing import cast

from simulator.model.architecture import WeightDtype
from simulator.model.families.reader import ModelError

KV_DTYPES: tuple[WeightDtype, ...] = ("bf16", "fp8")
INDEX_DTYPES: tuple[WeightDtype, ...] = ("fp4", "fp8", "bf16")


def check_kv_dtype(dtype: str) -> WeightDtype:
    """`dtype` if KV can be stored in it."""
    if dtype not in KV_DTYPES:
        raise ModelError(f"kv_dtype={dtype!r} is not supported; use bf16 or fp8")
    return cast(WeightDtype, dtype)


def check_index_dtype(dtype: str) -> WeightDtype:
    """`dtype` if index keys can be stored in it."""
    if dtype not in INDEX_DTYPES:
        raise ModelError(f"index_dtype={dtype!r} is not supported; use fp4, fp8 or bf16")
    return cast(WeightDtype, dtype)


def gqa_entry_bytes(kv_heads: int, qk_dim: int, v_dim: int, dtype: WeightDtype) -> float:
    """Keys and values of every KV head; fp8 with per-tensor scales, which take no room.

    >>> gqa_entry_bytes(8, 128, 128, "bf16")
    4096.0
    """
    return kv_heads * (qk_dim + v_dim) * (1.0 if dtype == "fp8" else 2.0)


def mla_entry_bytes(latent: int, rope: int, dtype: WeightDtype) -> float:
    """Latent and rotated key: fp8 keeps an f32 scale per 128 of the latent and the rotated part in bf16.

    >>> mla_entry_bytes(512, 64, "fp8"), mla_entry_bytes(512, 64, "bf16")
    (656.0, 1152.0)
    """
    if dtype == "fp8":
        return latent + 4.0 * -(-latent // 128) + 2.0 * rope
    return 2.0 * (latent + rope)


def shared_kv_entry_bytes(head_dim: int, rope: int, dtype: WeightDtype) -> float:
    """One vector that is both key and value (DeepSeek V4): fp8 with a ue8m0 scale per 64, padded to 8 B,
    and the rotated part in bf16.

    >>> shared_kv_entry_bytes(512, 64, "fp8"), shared_kv_entry_bytes(512, 64, "bf16")
    (584.0, 1024.0)
    """
    if dtype == "fp8":
        scales = -(-(head_dim - rope) // 64)
        return float(-(-(head_dim - rope + 2 * rope + scales) // 8) * 8)
    return 2.0 * head_dim


def index_key_bytes(head_dim: int, dtype: WeightDtype) -> float:
    """Indexer key: fp4 with a ue8m0 scale per 32, fp8 with one f32 scale, or bf16.

    >>> [index_key_bytes(128, dtype) for dtype in ("fp4", "fp8", "bf16")]
    [68.0, 132.0, 256.0]
    """
    if dtype == "fp4":
        return head_dim / 2 + head_dim / 32
    return head_dim + 4.0 if dtype == "fp8" else 2.0 * head_dim

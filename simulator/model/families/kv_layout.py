"""Stored bytes of one KV entry and one index key, by layout. [B]

Sources: FlashMLA (584 B and 656 B rows), DeepGEMM and SGLang indexer caches (68 B, 132 B keys).
"""

from __future__ import annotations

from typing import cast

from simulator.model.architecture import BF16_BYTES, BYTE, F32_BYTES, NIBBLE, WeightDtype
from simulator.model.families.reader import ModelError

KV_DTYPES: tuple[WeightDtype, ...] = ("bf16", "fp8")
INDEX_DTYPES: tuple[WeightDtype, ...] = ("fp4", "fp8", "bf16")
# Elements under one scale: of an MLA latent (f32 scale) and of a shared KV vector (ue8m0 byte) in fp8, as FlashMLA lays
# them out; of an index key in fp4 (ue8m0 byte).
LATENT_GROUP, SHARED_KV_GROUP, INDEX_GROUP = 128, 64, 32
SHARED_KV_ALIGNMENT = 8  # to which a shared KV vector is padded (FlashMLA) [B]


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
    return kv_heads * (qk_dim + v_dim) * (BYTE if dtype == "fp8" else BF16_BYTES)


def mla_entry_bytes(latent: int, rope: int, dtype: WeightDtype) -> float:
    """Latent and rotated key: fp8 keeps an f32 scale per 128 of the latent and the rotated part in bf16.

    >>> mla_entry_bytes(512, 64, "fp8"), mla_entry_bytes(512, 64, "bf16")
    (656.0, 1152.0)
    """
    if dtype == "fp8":
        return latent + F32_BYTES * -(-latent // LATENT_GROUP) + BF16_BYTES * rope
    return BF16_BYTES * (latent + rope)


def shared_kv_entry_bytes(head_dim: int, rope: int, dtype: WeightDtype) -> float:
    """One vector that is both key and value (DeepSeek V4): fp8 with a ue8m0 scale per 64, padded to 8 B,
    and the rotated part in bf16.

    >>> shared_kv_entry_bytes(512, 64, "fp8"), shared_kv_entry_bytes(512, 64, "bf16")
    (584.0, 1024.0)
    """
    if dtype == "fp8":
        scales = -(-(head_dim - rope) // SHARED_KV_GROUP)
        used = head_dim - rope + BF16_BYTES * rope + scales
        return -(-used // SHARED_KV_ALIGNMENT) * SHARED_KV_ALIGNMENT
    return BF16_BYTES * head_dim


def index_key_bytes(head_dim: int, dtype: WeightDtype) -> float:
    """Indexer key: fp4 with a ue8m0 scale per 32, fp8 with one f32 scale, or bf16.

    >>> [index_key_bytes(128, dtype) for dtype in ("fp4", "fp8", "bf16")]
    [68.0, 132.0, 256.0]
    """
    if dtype == "fp4":
        return head_dim * NIBBLE + head_dim / INDEX_GROUP
    return head_dim + F32_BYTES if dtype == "fp8" else BF16_BYTES * head_dim

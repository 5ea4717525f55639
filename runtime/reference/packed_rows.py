"""Cache rows packed into bytes: fp8 codes with the rotated part in bfloat16, or fp4 codes.

Layouts are those that FlashMLA (fp8 rows of 584 and 656 bytes) and DeepGEMM (fp4 index keys of 68 bytes) were priced
by; within a row, codes come first, then the rotated part, then the scales.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.reference.quantize import (
    FP4_GROUP,
    FP8_MAX,
    SCALE_BLOCK,
    TINY,
    decode_ue8m0,
    dequantize_fp4,
    power_of_two_ceiling,
    quantize_fp4,
)

SHARED_KV_GROUP = 64  # values of a DeepSeek V4 key under one exponent byte (FlashMLA)
SHARED_KV_ALIGNMENT = 8  # bytes to which such a row is padded (FlashMLA)


@dataclass(frozen=True)
class Packing:
    """How a row of `dim` values becomes `num_bytes` bytes."""

    dim: int
    rope: int  # trailing values kept in bfloat16
    group: int  # values that share a scale
    fp4: bool = False  # e2m1 codes with exponent bytes; else e4m3
    wide_scale: bool = False  # float32 scales; else exponent bytes
    alignment: int = 1  # of num_bytes

    @property
    def coded(self) -> int:
        return self.dim - self.rope

    @property
    def rope_at(self) -> int:
        return self.coded // 2 if self.fp4 else self.coded

    @property
    def scales_at(self) -> int:
        return self.rope_at + 2 * self.rope

    @property
    def num_groups(self) -> int:
        return -(-self.coded // self.group)

    @property
    def num_bytes(self) -> int:
        used = self.scales_at + self.num_groups * (4 if self.wide_scale else 1)
        return -(-used // self.alignment) * self.alignment


def shared_kv(dim: int, rope: int) -> Packing:
    """A vector that is both key and value (DeepSeek V4)."""
    return Packing(dim, rope, SHARED_KV_GROUP, alignment=SHARED_KV_ALIGNMENT)


def latent(rank: int, rope: int) -> Packing:
    """MLA's latent and rotated key (DeepSeek V3), float32 scales."""
    return Packing(rank + rope, rope, SCALE_BLOCK, wide_scale=True, alignment=4)


def index_key(dim: int) -> Packing:
    """A key of the lightning indexer in fp4."""
    return Packing(dim, 0, min(FP4_GROUP, dim), fp4=True)


def pack(values: Tensor, packing: Packing) -> Tensor:
    """[..., dim] to bytes [..., num_bytes]."""
    coded, rope = values[..., : packing.coded].float(), values[..., packing.coded :]
    if packing.fp4:
        codes, scales = quantize_fp4(coded, packing.group)
    else:
        padded = torch.nn.functional.pad(coded, (0, packing.num_groups * packing.group - packing.coded))
        grouped = padded.unflatten(-1, (packing.num_groups, packing.group))
        scale = grouped.abs().amax(-1).clamp_min(TINY) / FP8_MAX
        if not packing.wide_scale:
            scale = power_of_two_ceiling(scale)
        wide = (grouped / scale[..., None]).clamp(-FP8_MAX, FP8_MAX).flatten(-2)[..., : packing.coded]
        codes = wide.to(torch.float8_e4m3fn).view(torch.uint8)
        scales = scale.view(torch.uint8) if packing.wide_scale else _exponents(scale)
    parts = [codes, rope.to(torch.bfloat16).contiguous().view(torch.uint8), scales]
    used = sum(part.shape[-1] for part in parts)
    return torch.nn.functional.pad(torch.cat(parts, -1), (0, packing.num_bytes - used))


def unpack(rows: Tensor, packing: Packing) -> Tensor:
    """Bytes [..., num_bytes] to float32 [..., dim]."""
    codes = rows[..., : packing.rope_at]
    width = packing.num_groups * (4 if packing.wide_scale else 1)
    scales = rows[..., packing.scales_at : packing.scales_at + width].contiguous()
    if packing.fp4:
        coded = dequantize_fp4(codes, scales)
    else:
        scale = scales.view(torch.float32) if packing.wide_scale else decode_ue8m0(scales)
        spread = scale.repeat_interleave(packing.group, -1)[..., : packing.coded]
        coded = codes.contiguous().view(torch.float8_e4m3fn).float() * spread
    if not packing.rope:
        return coded
    rope = rows[..., packing.rope_at : packing.scales_at].contiguous().view(torch.bfloat16)
    return torch.cat([coded, rope.float()], -1)


def read_rows(rows: Tensor, packing: Packing | None) -> Tensor:
    """Cache rows to float32, packed or not."""
    return rows.float() if packing is None else unpack(rows, packing)


def round_rows(values: Tensor, packing: Packing) -> Tensor:
    """[T, dim] as they will be read from the cache, in the dtype given: a chunk's own keys must not differ from those
    that later steps see."""
    return unpack(pack(values, packing), packing).to(values.dtype)


def _exponents(scale: Tensor) -> Tensor:
    """Exponent bytes of powers of two, from the bits of a float32."""
    return (scale.view(torch.int32) >> 23).to(torch.uint8)

"""One tensor of a checkpoint as it is stored, in any of the formats that quantisers write.

Dtypes, shapes and names of the tensors tell the format; what config.json says of it is not needed.

| weight | scale | written by |
|---|---|---|
| e4m3 [N, K] | [N / 128, K / 128], float or exponent bytes | DeepSeek, compressed-tensors, modelopt FP8_PB_WO |
| e4m3 [N, K] | one number, or [N, 1] | modelopt FP8, compressed-tensors, fbgemm |
| e4m3 [N, K] | exponent bytes [N, K / 32] | modelopt MXFP8: expanded when loaded |
| bytes [N, K / 2] | exponent bytes [N, K / 32] | DeepSeek V4, compressed-tensors MXFP4, Quark |
| bytes [N, K / 2] | e4m3 [N, K / 16], and one number of the whole | compressed-tensors and modelopt NVFP4 |
| int32 [N, K / 8] | [N, K / group] | compressed-tensors int4: expanded when loaded |
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from runtime.checkpoint import CheckpointError
from runtime.layers.tensor_parallel import Shard
from runtime.reference.quantize import FP4_GROUP, NVFP4_GROUP, SCALE_BLOCK, decode_ue8m0, dequantize_weight

_BYTES = (torch.uint8, torch.int8)  # two e2m1 codes a byte, the even column in the low bits
_NIBBLES = 8  # of an int32
_INT4_ZERO = 8  # the code of 0


@dataclass(frozen=True)
class Stored:
    """Values with the scales that belong to them (see runtime.reference.quantize.dequantize_weight)."""

    values: Tensor
    scale: Tensor | None = None
    row_scale: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the numbers it stands for."""
        *lead, columns = self.values.shape
        return (*lead, 2 * columns) if self.values.dtype == torch.uint8 else (*lead, columns)

    @property
    def is_coded(self) -> bool:
        return self.scale is not None or self.row_scale is not None

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        if not self.is_coded:
            return self.values.to(dtype)
        return dequantize_weight(self.values, self.scale, self.row_scale).to(dtype)

    def part(self, shard: Shard | None) -> Stored:
        """One rank's rows or columns; expanded where a cut would go through a scale."""
        if shard is None or shard.size == 1:
            return self
        share = self.shape[shard.dim] // shard.size
        group = self._group(shard.dim)
        if share % group or self.shape[shard.dim] % group:
            return Stored(shard.of(self.dequantized(torch.float32)))
        rows = self.row_scale if self.row_scale is None or shard.dim else shard.of(self.row_scale)
        scale = None if self.scale is None else shard.of(self.scale).contiguous()
        return Stored(shard.of(self.values).contiguous(), scale, rows)

    def _group(self, dim: int) -> int:
        """Rows or columns that share a scale."""
        if self.scale is None:
            return 1
        if self.values.dtype == torch.float8_e4m3fn:
            return SCALE_BLOCK
        return 1 if dim == 0 else self.shape[1] // self.scale.shape[1]


@dataclass(frozen=True)
class Sides:
    """Tensors beside a weight: its scales, a number that multiplies the whole, one that divides it."""

    scale: Tensor | None = None
    whole: Tensor | None = None
    divisor: Tensor | None = None


def read_stored(name: str, values: Tensor, sides: Sides) -> Stored:
    """The tensor `name` with what lies beside it; CheckpointError if they do not fit together."""
    if values.dtype not in (torch.float8_e4m3fn, torch.int32, *_BYTES) or values.ndim != 2:
        return Stored(values)
    if sides.scale is None:
        if values.dtype == torch.int32:
            return Stored(values)  # a table of ids
        raise CheckpointError(f"{name!r} is {values.dtype} but the checkpoint has no scale for it; fetch it again")
    if values.dtype == torch.float8_e4m3fn:
        return _fp8(name, values, sides.scale)
    if values.dtype == torch.int32:
        return _int4(name, values, sides.scale)
    return _fp4(name, values.view(torch.uint8), sides)


def _fp8(name: str, values: Tensor, scale: Tensor) -> Stored:
    rows, columns = values.shape
    blocks = (-(-rows // SCALE_BLOCK), -(-columns // SCALE_BLOCK))
    if scale.ndim == 4:  # modelopt keeps the axes of the blocks' insides
        scale = scale.flatten(0, 1).flatten(1)
    if _is_exponent(scale) and tuple(scale.shape) == (rows, columns // FP4_GROUP):
        spread = decode_ue8m0(scale.view(torch.uint8)).repeat_interleave(FP4_GROUP, 1)
        return Stored(values.float() * spread)
    number = decode_ue8m0(scale) if scale.dtype == torch.uint8 else scale.float()
    if scale.numel() == 1 or tuple(scale.shape) in ((rows, 1), (rows,)):
        return Stored(values, None, number.reshape(-1).expand(rows).contiguous())
    if tuple(scale.shape) == blocks:
        return Stored(values, number)
    raise _misfit(name, scale, f"{list(blocks)} (128 x 128 blocks), {[rows, 1]} (a row each) or one number")


def _fp4(name: str, values: Tensor, sides: Sides) -> Stored:
    assert sides.scale is not None
    rows, columns = values.shape[0], 2 * values.shape[1]
    scale = sides.scale
    if scale.dtype == torch.float8_e4m3fn:
        if tuple(scale.shape) != (rows, columns // NVFP4_GROUP):
            raise _misfit(name, scale, f"{[rows, columns // NVFP4_GROUP]}")
        if sides.whole is None and sides.divisor is None:
            raise CheckpointError(f"{name!r} is NVFP4 but the checkpoint has no scale of the whole; fetch it again")
        whole = sides.whole.float() if sides.whole is not None else 1.0 / sides.divisor.float()  # type: ignore[union-attr]
        return Stored(values, scale, whole.reshape(1).expand(rows).contiguous())
    if not _is_exponent(scale) or tuple(scale.shape) != (rows, columns // FP4_GROUP):
        raise _misfit(name, scale, f"{[rows, columns // FP4_GROUP]}")
    return Stored(values, scale.view(torch.uint8))


def _int4(name: str, values: Tensor, scale: Tensor) -> Stored:
    """Codes from 0 to 15 stand for -8 to 7, the first column in the lowest bits."""
    shifts = torch.arange(0, 4 * _NIBBLES, 4, device=values.device, dtype=torch.int32)
    codes = (values[..., None] >> shifts & 15).flatten(-2) - _INT4_ZERO
    rows, columns = codes.shape
    if scale.ndim != 2 or scale.shape[0] != rows or columns % scale.shape[1]:
        raise _misfit(name, scale, f"{rows} rows and a divisor of {columns} columns")
    return Stored(codes.float() * scale.float().repeat_interleave(columns // scale.shape[1], 1))


def _is_exponent(scale: Tensor) -> bool:
    return scale.dtype in (torch.uint8, torch.float8_e8m0fnu)


def _misfit(name: str, scale: Tensor, expected: str) -> CheckpointError:
    return CheckpointError(f"the scale of {name!r} has shape {list(scale.shape)}; its weight needs {expected}")


def join(pieces: list[Stored], stacked: int) -> Stored:
    """Pieces below each other, in stacks of equal size if `stacked`; expanded to float32 where formats do not agree."""
    formats = {(p.values.dtype, None if p.scale is None else p.scale.dtype) for p in pieces}
    if len(formats) > 1 or not _meet(pieces):
        pieces = [Stored(p.dequantized(torch.float32)) for p in pieces]
    if any(p.row_scale is not None for p in pieces):
        pieces = [p if p.row_scale is not None else replace(p, row_scale=_ones(p)) for p in pieces]
    values = _stack([p.values for p in pieces], stacked)
    assert values is not None
    scale, rows = (_stack([getattr(p, name) for p in pieces], stacked) for name in ("scale", "row_scale"))
    if rows is not None and scale is None:  # kernels know fp8 with scales of blocks alone
        scale = values.new_ones(
            *values.shape[:-2], *(-(-n // SCALE_BLOCK) for n in values.shape[-2:]), dtype=torch.float32
        )
    return Stored(values, scale, rows)


def _meet(pieces: list[Stored]) -> bool:
    """Whether fp8 pieces with scales of blocks meet at the edge of one."""
    blocks = pieces[0].values.dtype == torch.float8_e4m3fn and pieces[0].scale is not None
    return not blocks or len(pieces) == 1 or not pieces[0].shape[0] % SCALE_BLOCK


def _ones(piece: Stored) -> Tensor:
    return torch.ones(piece.shape[0], device=piece.values.device)


def _stack(tensors: list[Tensor | None], stacked: int) -> Tensor | None:
    present = [t for t in tensors if t is not None]
    if not present:
        return None
    joined = present[0] if len(present) == 1 else torch.cat(present)
    return joined.unflatten(0, (stacked, -1)) if stacked else joined

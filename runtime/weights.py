"""Load a checkpoint: floating point, fp8 in 128 x 128 blocks, or fp4 experts, dequantised or kept as stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from runtime import models
from runtime.checkpoint import Checkpoint, CheckpointError
from runtime.config.spec import ModelConfig
from runtime.layers.expert_parallel import ExpertGroup
from runtime.layers.linear import Linear
from runtime.layers.moe import Experts
from runtime.models import Model
from runtime.reference.quantize import FP4_GROUP, SCALE_BLOCK, dequantize_weight
from runtime.weight_names import WeightPlace, place_of

_PACKED = (torch.uint8, torch.int8)  # two e2m1 codes a byte, the even column in the low bits


@dataclass(frozen=True)
class Stored:
    """A tensor as the file has it; `scale` is float32 per block (fp8) or exponent bytes per group (fp4)."""

    values: Tensor
    scale: Tensor | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the numbers it stands for."""
        *lead, columns = self.values.shape
        return (*lead, 2 * columns) if self.values.dtype == torch.uint8 else (*lead, columns)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        return self.values.to(dtype) if self.scale is None else dequantize_weight(self.values, self.scale).to(dtype)


def load(
    config: ModelConfig,
    directory: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    dequantize: bool = True,
    experts: ExpertGroup | None = None,
) -> Model:
    """The model with a checkpoint's weights.

    dtype: of linears and embeddings that are not kept quantised (norms, router and mHC are float32).
    dequantize: False keeps fp8 linears and fp8 or fp4 experts as stored, to be decoded inside the kernels.
    experts: with expert parallelism, only this rank's experts are read.
    """
    group = experts or ExpertGroup()
    checkpoint = Checkpoint(directory, torch.device(device))
    names: dict[WeightPlace, str] = {}
    for name in checkpoint.names:
        if (place := place_of(name, config)) is not None:
            names[place] = name
    model = models.empty(config, "meta", dtype, group)
    loader = _Loader(checkpoint, names, dtype, dequantize)
    loader.check_complete(model)
    for prefix, module in model.named_modules():
        loader.fill(prefix, module)
    return model


def _pieces(prefix: str, module: nn.Module, leaf: str) -> list[WeightPlace]:
    """Tensors of a checkpoint that make up one parameter, in the order in which they are joined."""
    name = f"{prefix}.{leaf}" if prefix else leaf
    if isinstance(module, Experts):
        parts = (0, 1) if leaf.startswith("w13") else (None,)
        return [WeightPlace(name, expert, part) for expert in module.local for part in parts]
    count = module.pieces if isinstance(module, Linear) and leaf == "weight" else 1
    return [WeightPlace(name, None, part) for part in (range(count) if count > 1 else (None,))]


class _Loader:
    def __init__(
        self, checkpoint: Checkpoint, names: dict[WeightPlace, str], dtype: torch.dtype, dequantize: bool
    ) -> None:
        self.checkpoint, self.names, self.dtype, self.dequantize = checkpoint, names, dtype, dequantize

    def check_complete(self, model: Model) -> None:
        missing = [place for place in _all_pieces(model) if place not in self.names]
        if missing:
            first = missing[0]
            expert = "" if first.expert is None else f" of expert {first.expert}"
            raise CheckpointError(
                f"{self.checkpoint.directory} lacks {len(missing)} tensors of this model, first {first.parameter!r}"
                f"{expert}; is it complete, and is this its config.json? (MTP needs num_nextn_predict_layers=0 "
                "where the checkpoint has none)"
            )

    def fill(self, prefix: str, module: nn.Module) -> None:
        """Give every parameter of this module (not of those inside it) its values."""
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            places = _pieces(prefix, module, leaf)
            pieces = [self._read(place) for place in places]
            stacked = len(module.local) if isinstance(module, Experts) else 0
            self._check_shape(places, pieces, parameter.shape, stacked)
            kept = None
            if isinstance(module, Linear | Experts) and leaf != "bias" and not self.dequantize:
                kept = _keep(pieces, stacked)
            if kept is None:
                rows = [piece.dequantized(parameter.dtype) for piece in pieces]
                values = _join(rows, stacked).reshape(parameter.shape)
            else:
                values, scale = kept
                name = "scale" if isinstance(module, Linear) else f"{leaf}_scale"
                setattr(module, name, nn.Parameter(scale, requires_grad=False))
            setattr(module, leaf, nn.Parameter(values, requires_grad=False))

    def _read(self, place: WeightPlace) -> Stored:
        values = self.checkpoint.tensor(self.names[place])
        if values.dtype not in (torch.float8_e4m3fn, *_PACKED):
            return Stored(values, None)
        name = self.names.get(_scale_place(place))
        if name is None:
            raise CheckpointError(
                f"{self.names[place]!r} is {values.dtype} but the checkpoint has no scale for it; fetch it again"
            )
        scale = self.checkpoint.tensor(name)
        if values.dtype == torch.float8_e4m3fn:
            expected = (-(-values.shape[-2] // SCALE_BLOCK), -(-values.shape[-1] // SCALE_BLOCK))
            stored = Stored(values, scale.float())
        else:
            expected = (values.shape[-2], values.shape[-1] * 2 // FP4_GROUP)
            stored = Stored(values.view(torch.uint8), scale.view(torch.uint8))
        if tuple(scale.shape) != expected:
            raise CheckpointError(f"{name!r} has shape {list(scale.shape)}; its weight needs {list(expected)}")
        return stored

    def _check_shape(self, places: list[WeightPlace], pieces: list[Stored], shape: torch.Size, stacked: int) -> None:
        """Each piece is an equal share of the rows; parameters kept as [groups, rows, K] are flat in files."""
        lead = shape[1:] if stacked else shape
        share = len(pieces) // max(stacked, 1)
        columns = lead[-1]
        for place, piece in zip(places, pieces, strict=True):
            rows = lead[:-1].numel() // share
            expected = (rows, columns) if len(lead) > 1 else (columns,)
            if piece.shape != expected:
                raise CheckpointError(
                    f"{self.names[place]!r} has shape {list(piece.shape)}, but the configuration gives "
                    f"{list(expected)}; is this its config.json?"
                )


def _scale_place(place: WeightPlace) -> WeightPlace:
    if place.parameter.endswith(".weight"):
        return WeightPlace(place.parameter.removesuffix("weight") + "scale", place.expert, place.part)
    return WeightPlace(f"{place.parameter}_scale", place.expert, place.part)


def _all_pieces(model: Model) -> Iterator[WeightPlace]:
    for prefix, module in model.named_modules():
        for leaf, _ in module.named_parameters(recurse=False):
            yield from _pieces(prefix, module, leaf)


def _join(rows: list[Tensor], stacked: int) -> Tensor:
    joined = rows[0] if len(rows) == 1 else torch.cat(rows)
    return joined.unflatten(0, (stacked, -1)) if stacked else joined


def _keep(pieces: list[Stored], stacked: int) -> tuple[Tensor, Tensor] | None:
    """Values and scales as stored; None if there are none, or if fp8 pieces do not meet at a block's edge."""
    scales = [piece.scale for piece in pieces if piece.scale is not None]
    if len(scales) < len(pieces):
        return None
    if pieces[0].values.dtype == torch.float8_e4m3fn and len(pieces) > 1 and pieces[0].shape[0] % SCALE_BLOCK:
        return None
    return _join([piece.values for piece in pieces], stacked), _join(scales, stacked)

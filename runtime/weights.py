"""Load a checkpoint: what it keeps in fp8 or fp4 is served as stored, unless asked otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from runtime import models
from runtime.checkpoint import Checkpoint, CheckpointError
from runtime.config.spec import ModelConfig
from runtime.layers.linear import Linear
from runtime.layers.moe import Experts
from runtime.layers.ranks import Ranks
from runtime.layers.tensor_parallel import Shard
from runtime.models import Model
from runtime.stored_weight import Sides, Stored, join, read_stored
from runtime.weight_names import WeightPlace, place_of

# Endings of tensors whose formats are not read, and what writes them.
_FOREIGN = {".qweight": "AWQ or GPTQ", ".quant_map": "bitsandbytes", ".absmax": "bitsandbytes", ".SCB": "bitsandbytes"}


def load(
    config: ModelConfig,
    directory: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    dequantize: bool = False,
    ranks: Ranks | None = None,
) -> Model:
    """The model with a checkpoint's weights.

    dtype: of linears and embeddings that are not kept quantised (norms, router and mHC are float32).
    dequantize: True expands fp8 and fp4 weights to dtype; else the kernels decode them (see runtime.stored_weight).
    ranks: with several, only this rank's share is kept.
    """
    checkpoint = Checkpoint(directory, torch.device(device))
    names: dict[WeightPlace, str] = {}
    for name in checkpoint.names:
        if (place := place_of(name, config)) is not None:
            names[place] = name
    model = models.empty(config, "meta", dtype, ranks)
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
            for name in self.checkpoint.names:
                if (ending := next((e for e in _FOREIGN if name.endswith(e)), None)) is not None:
                    raise CheckpointError(
                        f"{self.checkpoint.directory} is quantised by {_FOREIGN[ending]} ({name!r}), which is not "
                        "read; take it in bf16, fp8, MXFP4 or NVFP4"
                    )
            first = missing[0]
            expert = "" if first.expert is None else f" of expert {first.expert}"
            raise CheckpointError(
                f"{self.checkpoint.directory} lacks {len(missing)} tensors of this model, first {first.parameter!r}"
                f"{expert}; is it complete, and is this its config.json? (MTP needs num_nextn_predict_layers=0 "
                "where the checkpoint has none)"
            )

    def fill(self, prefix: str, module: nn.Module) -> None:
        """Give every parameter of this module (not of those inside it) its values."""
        shards: dict[str, Shard] = getattr(module, "shards", {})
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            places = _pieces(prefix, module, leaf)
            pieces = [self._read(place) for place in places]
            stacked = len(module.local) if isinstance(module, Experts) else 0
            shard = shards.get(leaf)
            self._check_shape(places, pieces, parameter.shape, stacked, shard)
            whole = join([piece.part(shard) for piece in pieces], stacked)
            keeps = isinstance(module, Linear | Experts) and leaf != "bias" and not self.dequantize
            values = whole.values if keeps and whole.scale is not None else whole.dequantized(parameter.dtype)
            if keeps and whole.scale is not None:
                stem = "" if isinstance(module, Linear) else f"{leaf}_"
                for name, tensor in (("scale", whole.scale), ("row_scale", whole.row_scale)):
                    if tensor is not None:
                        setattr(module, stem + name, nn.Parameter(tensor, requires_grad=False))
            else:
                values = values.reshape(parameter.shape)
            setattr(module, leaf, nn.Parameter(values.contiguous(), requires_grad=False))

    def _read(self, place: WeightPlace) -> Stored:
        name = self.names[place]
        beside = (self.names.get(_side(place, kind)) for kind in ("scale", "whole", "divisor"))
        sides = Sides(*(None if other is None else self.checkpoint.tensor(other) for other in beside))
        return read_stored(name, self.checkpoint.tensor(name), sides)

    def _check_shape(
        self, places: list[WeightPlace], pieces: list[Stored], shape: torch.Size, stacked: int, shard: Shard | None
    ) -> None:
        """Each piece is an equal share of the rows; parameters kept as [groups, rows, K] are flat in files."""
        lead = shape[1:] if stacked else shape
        share = len(pieces) // max(stacked, 1)
        over = [shard.size if shard is not None and shard.dim == dim else 1 for dim in (0, 1)]
        columns = lead[-1] * over[1 if len(lead) > 1 else 0]
        for place, piece in zip(places, pieces, strict=True):
            rows = lead[:-1].numel() // share * over[0]
            expected = (rows, columns) if len(lead) > 1 else (columns,)
            if piece.shape != expected:
                raise CheckpointError(
                    f"{self.names[place]!r} has shape {list(piece.shape)}, but the configuration gives "
                    f"{list(expected)}; is this its config.json?"
                )


def _side(place: WeightPlace, kind: str) -> WeightPlace:
    if place.parameter.endswith(".weight"):
        return WeightPlace(place.parameter.removesuffix("weight") + kind, place.expert, place.part)
    return WeightPlace(f"{place.parameter}_{kind}", place.expert, place.part)


def _all_pieces(model: Model) -> Iterator[WeightPlace]:
    for prefix, module in model.named_modules():
        for leaf, _ in module.named_parameters(recurse=False):
            yield from _pieces(prefix, module, leaf)

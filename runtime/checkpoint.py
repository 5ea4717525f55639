"""Safetensors files of one checkpoint: one file, or shards listed by an index."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

INDEX = "model.safetensors.index.json"


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded; the message names the file or tensor and the way out."""


class Checkpoint:
    """Tensors by name, read from disk when asked for."""

    def __init__(self, directory: str | Path, device: torch.device) -> None:
        self.directory, self._device = Path(directory), device
        self._file_of = self._find()
        self._open: dict[Path, safe_open] = {}

    @property
    def names(self) -> list[str]:
        return list(self._file_of)

    def tensor(self, name: str) -> Tensor:
        path = self._file_of[name]
        try:
            if path not in self._open:
                self._open[path] = safe_open(path, framework="pt", device=str(self._device))
            return self._open[path].get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"cannot read {name!r} from {path} ({error}); fetch the file again") from None

    def _find(self) -> dict[str, Path]:
        index = self.directory / INDEX
        if index.is_file():
            try:
                weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
            except (json.JSONDecodeError, KeyError) as error:
                raise CheckpointError(f"{index} is no index of shards ({error!r}); fetch it again") from None
            missing = sorted({f for f in weight_map.values() if not (self.directory / f).is_file()})
            if missing:
                raise CheckpointError(
                    f"{self.directory} lacks {len(missing)} of the shards in its index, first {missing[0]}; fetch them"
                )
            return {name: self.directory / file for name, file in weight_map.items()}
        files = sorted(self.directory.glob("*.safetensors"))
        if not files:
            raise CheckpointError(f"no .safetensors files in {self.directory}; give a checkpoint directory")
        found: dict[str, Path] = {}
        for path in files:
            try:
                with safe_open(path, framework="pt") as opened:
                    found |= dict.fromkeys(opened.keys(), path)
            except SafetensorError as error:
                raise CheckpointError(f"cannot read {path} ({error}); fetch the file again") from None
        return found

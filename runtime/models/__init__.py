"""Models by family, and their seeded random weights."""

from __future__ import annotations

import torch

from runtime.config.spec import ModelConfig
from runtime.layers.linear import Factory
from runtime.layers.ranks import Ranks
from runtime.models.base import Model
from runtime.models.deepseek_v4 import DeepseekV4
from runtime.models.initialise import initialise
from runtime.models.plain_residual import PlainResidual

__all__ = ["Model", "build", "empty"]


def empty(
    config: ModelConfig,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    ranks: Ranks | None = None,
) -> Model:
    """The model with uninitialised weights."""
    make = Factory(torch.device(device), dtype, ranks or Ranks())
    family = DeepseekV4 if config.family == "deepseek_v4" else PlainResidual
    return family(config, make).eval()


def build(
    config: ModelConfig,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    ranks: Ranks | None = None,
) -> Model:
    """Random weights: the same for the same seed and kind of device, however they are spread over ranks."""
    model = empty(config, device, dtype, ranks)
    initialise(model, seed)
    return model

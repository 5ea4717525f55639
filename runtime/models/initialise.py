"""Seeded random weights, each tensor from a stream of its own, so that they do not depend on build order."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from runtime.layers.moe import Experts, Router
from runtime.models.base import Model

STD = 0.02  # initializer_range of the supported families


def _generator(seed: int, name: str, device: torch.device) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=7).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest))


def _fill(name: str, values: Tensor, seed: int) -> None:
    leaf = name.rsplit(".", 1)[-1]
    parent = name.split(".")[-2] if "." in name else ""
    if "norm" in parent or leaf == "scale":
        values.fill_(1.0)
    elif leaf == "base":
        values.zero_()
    else:
        values.normal_(0.0, STD, generator=_generator(seed, name, values.device))


def initialise(model: Model, seed: int) -> None:
    """Fill every parameter: normal with STD; norms and mHC scales 1, mHC bases 0; hash tables uniform."""
    with torch.no_grad():
        for prefix, module in model.named_modules():
            if isinstance(module, Experts):
                for name in ("w13", "w2"):
                    weight: Tensor = getattr(module, name)
                    for row, expert in enumerate(module.local):
                        _fill(f"{prefix}.{expert}.{name}", weight[row], seed)
                continue
            for leaf, values in module.named_parameters(recurse=False):
                name = f"{prefix}.{leaf}"
                if isinstance(module, Router) and leaf == "table":
                    generator = _generator(seed, name, values.device)
                    ties = torch.rand(len(values), module.config.num_experts, generator=generator, device=values.device)
                    values.copy_(ties.argsort(-1)[:, : values.shape[1]])
                else:
                    _fill(name, values, seed)

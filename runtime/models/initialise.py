"""Seeded random weights, each tensor from a stream of its own, so that they do not depend on build order."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from runtime.layers.linear import Linear
from runtime.layers.moe import Experts, Router
from runtime.layers.tensor_parallel import Shard
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


def _fill_share(name: str, values: Tensor, seed: int, shard: Shard | None, pieces: int) -> None:
    """One rank's part of the tensor that a rank alone would draw."""
    if shard is None or shard.size == 1:
        _fill(name, values, seed)
        return
    axis = 0 if shard.dim == 0 else values.ndim - 1
    shape = list(values.shape)
    shape[axis] *= shard.size
    whole = values.new_empty(shape)
    _fill(name, whole, seed)
    parts = whole.chunk(pieces) if shard.dim == 0 else (whole,)
    share = [part.narrow(axis, shard.rank * (n := part.shape[axis] // shard.size), n) for part in parts]
    values.copy_(torch.cat(share))


def initialise(model: Model, seed: int) -> None:
    """Fill every parameter: normal with STD; norms and mHC scales 1, mHC bases 0; hash tables uniform."""
    with torch.no_grad():
        for prefix, module in model.named_modules():
            if isinstance(module, Experts):
                for name in ("w13", "w2"):
                    weight: Tensor = getattr(module, name)
                    for row, expert in enumerate(module.local):
                        pieces = 2 if name == "w13" else 1
                        _fill_share(f"{prefix}.{expert}.{name}", weight[row], seed, module.shards.get(name), pieces)
                continue
            for leaf, values in module.named_parameters(recurse=False):
                name = f"{prefix}.{leaf}"
                if isinstance(module, Router) and leaf == "table":
                    generator = _generator(seed, name, values.device)
                    ties = torch.rand(len(values), module.config.num_experts, generator=generator, device=values.device)
                    values.copy_(ties.argsort(-1)[:, : values.shape[1]])
                else:
                    shards: dict[str, Shard] = getattr(module, "shards", {})
                    pieces = module.pieces if isinstance(module, Linear) else 1
                    _fill_share(name, values, seed, shards.get(leaf), pieces)

"""Weights and how they are made: plain and block-scaled fp8 linears, norms."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from runtime import ops
from runtime.layers.ranks import Ranks
from runtime.layers.tensor_parallel import Shard, TensorGroup


@dataclass(frozen=True)
class Factory:
    """Where parameters live: passed down while a model is built."""

    device: torch.device
    dtype: torch.dtype
    ranks: Ranks = field(default_factory=Ranks)

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> nn.Parameter:
        values = torch.empty(*shape, device=self.device, dtype=dtype or self.dtype)
        return nn.Parameter(values, requires_grad=False)

    def empty_float32(self, *shape: int) -> nn.Parameter:
        """Norms, router, mHC and sinks stay float32 whatever the model's dtype, as checkpoints keep them."""
        return self.empty(*shape, dtype=torch.float32)


class Linear(nn.Module):
    """y = x W^T (+ b). `scale` and `row_scale` are set when the weight is kept in fp8 or fp4 (see runtime.ops.linear).

    pieces: how many equal tensors a checkpoint keeps the rows in. inputs, outputs: of this rank.
    shard: which part of each of those tensors this rank holds; with columns, y is a partial sum unless `summed` over
    the ranks that hold the others.
    """

    scale: Tensor | None
    row_scale: Tensor | None

    def __init__(
        self,
        inputs: int,
        outputs: int,
        make: Factory,
        bias: bool = False,
        pieces: int = 1,
        shard: Shard | None = None,
        summed: TensorGroup | None = None,
    ) -> None:
        super().__init__()
        self.pieces, self.summed = pieces, summed
        self.shards = {} if shard is None else {"weight": shard} | ({"bias": shard} if shard.dim == 0 else {})
        self.weight = make.empty(outputs, inputs)
        self.bias = make.empty(outputs) if bias else None
        self.register_parameter("scale", None)
        self.register_parameter("row_scale", None)

    def forward(self, x: Tensor) -> Tensor:
        y = ops.linear(x, self.weight, self.scale, self.row_scale)
        if self.summed is not None:
            y = self.summed.sum(y)
        return y if self.bias is None else y + self.bias


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float, make: Factory) -> None:
        super().__init__()
        self.weight = make.empty_float32(dim)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps)

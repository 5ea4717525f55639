"""Ranks that hold each a share of every layer's heads and inner columns, and add up what they find."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Shard:
    """Which equal part of each stored tensor of a parameter this rank holds."""

    dim: int  # 0: rows, 1: columns
    rank: int
    size: int

    def of(self, values: Tensor) -> Tensor:
        share = values.shape[self.dim] // self.size
        return values.narrow(self.dim, self.rank * share, share)


@dataclass(frozen=True)
class TensorGroup:
    """This rank's place among the ranks that share every layer; alone by default."""

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None  # None: the default group

    def share(self, name: str, whole: int) -> int:
        if whole % self.size:
            raise ValueError(f"{self.size} ranks cannot share {name}={whole} equally; use a divisor")
        return whole // self.size

    def shard(self, dim: int) -> Shard:
        return Shard(dim, self.rank, self.size)

    def sum(self, partial: Tensor) -> Tensor:
        """Sum over the ranks, the same on each."""
        if self.size > 1:
            partial = partial.contiguous()
            dist.all_reduce(partial, group=self.group)
        return partial

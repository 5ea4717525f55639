"""This process's place among the ranks of one instance."""

from __future__ import annotations

from dataclasses import dataclass, field

from runtime.layers.expert_parallel import ExpertGroup
from runtime.layers.tensor_parallel import TensorGroup


@dataclass(frozen=True)
class Ranks:
    """tensor: ranks that hold a share of each layer; experts: ranks that share the routed experts. Alone by default."""

    tensor: TensorGroup = field(default_factory=TensorGroup)
    experts: ExpertGroup = field(default_factory=ExpertGroup)

"""How one instance is cut over its accelerators."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.model.architecture import ModelSpec


class ParallelismError(ValueError):
    """A cut that the model or the group does not allow."""


MOST_GPUS = 1024  # accelerators of one instance that messages offer; assumed: larger ones are not built
MOST_TENSOR_RANKS = 128  # that messages offer; assumed


def _divisors(n: int, limit: int = MOST_GPUS) -> list[int]:
    return [d for d in range(1, min(n, limit) + 1) if n % d == 0]


@dataclass(frozen=True)
class Parallelism:
    """Sizes of the groups of one instance.

    tp: tensor parallel ranks of attention and dense parts.
    dp: data-parallel attention ranks (each holds its own sequences and KV); the experts span all of them.
    ep: ranks over which the routed experts are spread; 1 means experts are cut by tensor parallelism.
    pp: pipeline stages.
    cp: context-parallel ranks of prefill.
    One instance has tp * dp * cp * pp accelerators; ep divides tp * dp * cp.
    """

    tp: int = 1
    dp: int = 1
    ep: int = 1
    pp: int = 1
    cp: int = 1

    def __post_init__(self) -> None:
        for field in ("tp", "dp", "ep", "pp", "cp"):
            value = getattr(self, field)
            if not isinstance(value, int) or value < 1:
                raise ParallelismError(f"{field}={value} is not a whole number of at least 1")
        if self.stage_size % self.ep:
            raise ParallelismError(
                f"ep={self.ep} does not divide tp*dp*cp={self.stage_size}; use one of {_divisors(self.stage_size)}"
            )

    @property
    def stage_size(self) -> int:
        """Accelerators of one pipeline stage."""
        return self.tp * self.dp * self.cp

    @property
    def gpus(self) -> int:
        """Accelerators of the instance."""
        return self.stage_size * self.pp

    def check(self, model: ModelSpec) -> None:
        """Refuse a cut that `model` does not allow. Raises ParallelismError naming what would work."""
        heads = sorted({layer.attention.heads for layer, _ in model.kinds})
        for h in heads:
            if h % self.tp:
                raise ParallelismError(
                    f"tp={self.tp} does not divide {h} attention heads; use one of {_divisors(h, MOST_TENSOR_RANKS)}"
                )
        for experts in sorted({layer.ffn.experts for layer, _ in model.kinds if layer.ffn.experts}):
            if experts % self.ep:
                raise ParallelismError(
                    f"ep={self.ep} does not divide {experts} experts; use one of {_divisors(experts)}"
                )
        if self.pp > len(model.layers):
            raise ParallelismError(f"pp={self.pp} exceeds {len(model.layers)} layers; use at most {len(model.layers)}")

    def __str__(self) -> str:
        return (
            " ".join(f"{k.upper()}{getattr(self, k)}" for k in ("tp", "dp", "ep", "pp", "cp") if getattr(self, k) > 1)
            or "TP1"
        )

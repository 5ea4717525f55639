"""How the ranks of one instance share a model."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.config.spec import CompressedAttention, ConfigError, GroupedAttention, ModelConfig


@dataclass(frozen=True)
class Parallelism:
    """tensor: ranks that hold each a share of every layer. data: replicas of those, each with requests and a KV cache
    of its own. expert: ranks that share the routed experts: 1 (they are cut with the layer) or all of the instance.
    """

    tensor: int = 1
    data: int = 1
    expert: int = 1

    @property
    def num_ranks(self) -> int:
        return self.tensor * self.data

    def check(self, config: ModelConfig) -> None:
        """ConfigError where the model cannot be shared so."""
        for flag, value in (("--tp", self.tensor), ("--dp", self.data), ("--ep", self.expert)):
            if value < 1:
                raise ConfigError(f"{flag} {value} cannot serve; use 1 or more")
        if self.expert not in (1, self.num_ranks):
            raise ConfigError(
                f"--ep {self.expert} is neither 1 nor --tp x --dp = {self.num_ranks}; experts are spread over all "
                "ranks of an instance or over none"
            )
        _divides("--tp", self.tensor, "num_attention_heads", config.attention.num_heads)
        if isinstance(config.attention, CompressedAttention):
            _divides("--tp", self.tensor, "o_groups", config.attention.o_groups)
        if isinstance(config.attention, GroupedAttention):
            heads = config.attention.num_kv_heads
            if heads % self.tensor and self.tensor % heads:
                raise ConfigError(f"--tp {self.tensor} and num_key_value_heads={heads}: one must divide the other")
        if config.dense_intermediate_size is not None:
            _divides("--tp", self.tensor, "intermediate_size", config.dense_intermediate_size)
        inner = config.moe.intermediate_size
        if config.moe.num_shared:
            _divides("--tp", self.tensor, "the width of the shared experts", inner * config.moe.num_shared)
        if self.expert == 1:
            _divides("--tp", self.tensor, "moe_intermediate_size", inner)
        else:
            _divides("--ep", self.expert, "the routed experts", config.moe.num_experts)


def _divides(flag: str, ranks: int, name: str, whole: int) -> None:
    if whole % ranks:
        raise ConfigError(f"{flag} {ranks} does not divide {name}={whole}; use a divisor")

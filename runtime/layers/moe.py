"""Feed-forward layers: dense SwiGLU, and routed experts with a shared one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from runtime import ops
from runtime.config.spec import MlpKind, ModelConfig, MoEConfig
from runtime.layers.expert_parallel import parallel_experts
from runtime.layers.linear import Factory, Linear


class SwiGLU(nn.Module):
    """down(silu(gate) * up); `limit` clamps gate from above and up on both sides (DeepSeek V4)."""

    def __init__(self, hidden: int, inner: int, make: Factory, limit: float | None = None) -> None:
        super().__init__()
        tensor = make.ranks.tensor
        inner = tensor.share("the inner width of a dense layer", inner)
        self.gate_up = Linear(hidden, 2 * inner, make, pieces=2, shard=tensor.shard(0))
        self.down = Linear(inner, hidden, make, shard=tensor.shard(1))
        self.limit, self.tensor = limit, tensor

    def forward(self, x: Tensor, token_ids: Tensor) -> Tensor:
        return self.tensor.sum(self.partial(x))

    def partial(self, x: Tensor) -> Tensor:
        """This rank's term of the sum over tensor-parallel ranks."""
        gate, up = self.gate_up(x).chunk(2, -1)
        if self.limit is not None:
            gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        return self.down(nn.functional.silu(gate) * up)


class Router(nn.Module):
    """Scores in float32, so that the choice does not depend on the model's dtype."""

    def __init__(self, config: MoEConfig, hidden: int, vocab: int, hashed: bool, make: Factory) -> None:
        super().__init__()
        self.config = config
        self.weight = make.empty_float32(config.num_experts, hidden)
        biased = config.has_bias and not hashed
        self.bias = make.empty_float32(config.num_experts) if biased else None
        # Experts of each token id, fixed before training.
        self.table = make.empty(vocab, config.top_k, dtype=torch.int32) if hashed else None

    def forward(self, x: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Weights [T, K] float32 and expert ids [T, K] int32."""
        c = self.config
        hash_ids = None if self.table is None else self.table[token_ids]
        logits = nn.functional.linear(x.float(), self.weight)
        return ops.router_gate(
            logits,
            c.top_k,
            c.scoring,
            self.bias,
            c.normalize,
            c.scale,
            c.num_groups,
            c.top_groups,
            hash_ids,
        )


class Experts(nn.Module):
    """This rank's routed experts, stored in floating point, fp8 or packed fp4 (see runtime.reference.grouped_gemm)."""

    w13_scale: Tensor | None
    w2_scale: Tensor | None
    w13_row_scale: Tensor | None
    w2_row_scale: Tensor | None

    def __init__(self, config: MoEConfig, hidden: int, make: Factory) -> None:
        super().__init__()
        self.num_experts, self.limit = config.num_experts, config.swiglu_limit
        self.group, self.tensor = make.ranks.experts, make.ranks.tensor
        self.local = self.group.local(config.num_experts)
        inner, self.shards = config.intermediate_size, {}
        if self.group.size == 1:  # experts that are not spread are cut
            inner = self.tensor.share("moe_intermediate_size", inner)
            self.shards = {"w13": self.tensor.shard(0), "w2": self.tensor.shard(1)}
        self.w13 = make.empty(len(self.local), 2 * inner, hidden)  # gate rows, then up rows
        self.w2 = make.empty(len(self.local), hidden, inner)
        for name in ("w13_scale", "w2_scale", "w13_row_scale", "w2_row_scale"):
            self.register_parameter(name, None)

    def _run(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        return ops.moe_experts(
            x,
            ids,
            weights,
            self.w13,
            self.w2,
            self.w13_scale,
            self.w2_scale,
            self.limit,
            self.w13_row_scale,
            self.w2_row_scale,
        )

    def forward(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """This rank's term of the sum over tensor-parallel ranks."""
        if self.group.size == 1:
            return self._run(x, ids, weights)
        if self.tensor.size == 1:
            return parallel_experts(x, ids, weights, self.num_experts, self.group, self._run)
        # Ranks that hold the same tokens send each every n-th of them.
        own = slice(self.tensor.rank, None, self.tensor.size)
        out = torch.zeros_like(x)
        out[own] = parallel_experts(x[own], ids[own], weights[own], self.num_experts, self.group, self._run)
        return out


class MoE(nn.Module):
    def __init__(self, config: ModelConfig, hashed: bool, make: Factory) -> None:
        super().__init__()
        moe, hidden = config.moe, config.hidden_size
        self.gate = Router(moe, hidden, config.vocab_size, hashed, make)
        self.experts = Experts(moe, hidden, make)
        inner = moe.intermediate_size * moe.num_shared
        self.shared = SwiGLU(hidden, inner, make, moe.swiglu_limit) if moe.num_shared else None
        self.tensor = make.ranks.tensor

    def forward(self, x: Tensor, token_ids: Tensor) -> Tensor:
        weights, ids = self.gate(x, token_ids)
        partial = self.experts(x, ids, weights)
        return self.tensor.sum(partial if self.shared is None else partial + self.shared.partial(x))


def feed_forward(config: ModelConfig, kind: MlpKind, make: Factory) -> SwiGLU | MoE:
    if kind != "dense":
        return MoE(config, kind == "hash_moe", make)
    assert config.dense_intermediate_size is not None
    return SwiGLU(config.hidden_size, config.dense_intermediate_size, make)

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
        self.gate_up = Linear(hidden, 2 * inner, make, pieces=2)
        self.down = Linear(inner, hidden, make)
        self.limit = limit

    def forward(self, x: Tensor, token_ids: Tensor) -> Tensor:
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
        self.num_experts, self.limit, self.group = config.num_experts, config.swiglu_limit, make.experts
        self.local = make.experts.local(config.num_experts)
        inner = config.intermediate_size
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
        if self.group.size == 1:
            return self._run(x, ids, weights)
        return parallel_experts(x, ids, weights, self.num_experts, self.group, self._run)


class MoE(nn.Module):
    def __init__(self, config: ModelConfig, hashed: bool, make: Factory) -> None:
        super().__init__()
        moe, hidden = config.moe, config.hidden_size
        self.gate = Router(moe, hidden, config.vocab_size, hashed, make)
        self.experts = Experts(moe, hidden, make)
        inner = moe.intermediate_size * moe.num_shared
        self.shared = SwiGLU(hidden, inner, make, moe.swiglu_limit) if moe.num_shared else None

    def forward(self, x: Tensor, token_ids: Tensor) -> Tensor:
        weights, ids = self.gate(x, token_ids)
        routed = self.experts(x, ids, weights)
        return routed if self.shared is None else routed + self.shared(x, token_ids)


def feed_forward(config: ModelConfig, kind: MlpKind, make: Factory) -> SwiGLU | MoE:
    if kind != "dense":
        return MoE(config, kind == "hash_moe", make)
    assert config.dense_intermediate_size is not None
    return SwiGLU(config.hidden_size, config.dense_intermediate_size, make)

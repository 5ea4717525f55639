"""What one accelerator holds and talks to under a parallelism: the shares that op counts and memory need."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hw_profiles.profile import HardwareProfile
from simulator.model.architecture import AttentionSpec, Linear, MoeSpec
from simulator.model.collectives import RankGroup
from simulator.model.ops import LinkName
from simulator.model.parallelism import Parallelism

KV_PROJECTIONS = ("k_proj", "v_proj")
# Storage types of experts for which a fused dispatch-GEMM-combine kernel exists, by NVIDIA generation.
# Source: DeepGEMM MegaMoE (sm100: fp8 x fp4 and bf16; sm90: fp8, #383).
FUSED_EXPERTS: dict[str, tuple[str, ...]] = {
    "hopper": ("fp8",),
    "blackwell": ("fp4", "bf16"),
    "rubin": ("fp4", "bf16"),
}
FUSED_ALIGNMENT = 128  # the kernel's tiles: hidden and intermediate width are multiples of it


@dataclass(frozen=True)
class Cut:
    """Shares of one accelerator. Ranks are laid out tp innermost, then cp, dp, pp."""

    parallelism: Parallelism
    domain: int
    vendor: str
    generation: str
    one_shot: bool = True  # see RankGroup

    @classmethod
    def of(cls, parallelism: Parallelism, hardware: HardwareProfile) -> Cut:
        part = hardware.accelerator
        return cls(parallelism, hardware.scale_up_domain, part.vendor, part.generation, hardware.one_shot)

    @property
    def tp(self) -> int:
        return self.parallelism.tp

    @property
    def tensor_group(self) -> RankGroup:
        return RankGroup(self.tp, self.domain, one_shot=self.one_shot)

    @property
    def context_group(self) -> RankGroup:
        return RankGroup(self.parallelism.cp, self.domain, self.tp, self.one_shot)

    @property
    def token_group(self) -> RankGroup:
        """Ranks that hold different tokens: data-parallel times context-parallel ones."""
        return RankGroup(self.parallelism.dp * self.parallelism.cp, self.domain, self.tp, self.one_shot)

    @property
    def expert_group(self) -> RankGroup:
        return RankGroup(self.parallelism.ep, self.domain, self.expert_tp, self.one_shot)

    @property
    def expert_tp(self) -> int:
        """Ranks that cut one expert among them."""
        return self.parallelism.stage_size // self.parallelism.ep

    @property
    def exchanges_tokens(self) -> bool:
        """Whether tokens travel to experts; false where every rank of the stage holds all tokens anyway."""
        return self.token_group.ranks > 1

    @property
    def stage_link(self) -> LinkName:
        """Between pipeline stages."""
        return "scale_up" if self.parallelism.gpus <= self.domain else "scale_out"

    def fused(self, ffn: MoeSpec) -> bool:
        """Whether a fused expert-parallel kernel runs this layer: one fabric domain, whole experts per rank."""
        stage = self.parallelism.stage_size
        return (
            self.exchanges_tokens
            and self.vendor == "NVIDIA"
            and ffn.expert_dtype in FUSED_EXPERTS.get(self.generation, ())
            and self.parallelism.ep == stage <= self.domain
            and ffn.expert_hidden % FUSED_ALIGNMENT == 0
            and ffn.expert_intermediate % FUSED_ALIGNMENT == 0
        )

    def linear_share(self, linear: Linear, attention: AttentionSpec | None = None) -> float:
        """Fraction of a projection on one rank. K and V of fewer heads than ranks are copied, not cut finer."""
        if linear.shard == "replicated":
            return 1.0
        if attention is not None and linear.name in KV_PROJECTIONS:
            return self.kv_share(attention)
        return 1.0 / self.tp

    def kv_share(self, attention: AttentionSpec) -> float:
        """Fraction of the stored entries on one rank: cut by KV head; a single head or latent is copied."""
        return 1.0 / min(self.tp, attention.kv_heads)

    def stored_bytes(self, attention: AttentionSpec) -> float:
        """Bytes that a token adds to the entries and index keys of a layer on one rank; keys are copied. [B/token]"""
        if not attention.ratio or attention.kv_source_layer is not None:
            return 0.0
        keys = attention.indexer.key_bytes if attention.indexer else 0.0
        return (attention.entry_bytes * self.kv_share(attention) + keys) / attention.ratio

    def layers_per_stage(self, layers: int) -> int:
        """Layers of the fullest pipeline stage."""
        return math.ceil(layers / self.parallelism.pp)

"""Models with one residual stream: DeepSeek V3 (MLA) and Qwen3-MoE (GQA). They differ in attention alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from runtime.batch import StepBatch
from runtime.cache import KVCache, LayerCache
from runtime.config.spec import GroupedAttention, LatentAttention, MlpKind, ModelConfig
from runtime.layers.attention_paged import GroupedSelfAttention, LatentSelfAttention
from runtime.layers.linear import Factory, Linear, RMSNorm
from runtime.layers.moe import feed_forward
from runtime.layers.rotary import Angles, Rotary
from runtime.models.base import Model, embed_rows


class ResidualLayer(nn.Module):
    def __init__(self, config: ModelConfig, mlp: MlpKind, make: Factory) -> None:
        super().__init__()
        hidden, eps, attention = config.hidden_size, config.rms_norm_eps, config.attention
        self.attn_norm = RMSNorm(hidden, eps, make)
        self.attn: LatentSelfAttention | GroupedSelfAttention
        if isinstance(attention, LatentAttention):
            self.attn = LatentSelfAttention(attention, hidden, eps, make)
        else:
            assert isinstance(attention, GroupedAttention)
            self.attn = GroupedSelfAttention(attention, hidden, eps, make)
        self.ffn_norm = RMSNorm(hidden, eps, make)
        self.ffn = feed_forward(config, mlp, make)

    def forward(self, x: Tensor, batch: StepBatch, token_ids: Tensor, angles: Angles, cache: LayerCache) -> Tensor:
        x = x + self.attn(self.attn_norm(x), batch, angles, cache)
        return x + self.ffn(self.ffn_norm(x), token_ids)


class ResidualMtpHead(nn.Module):
    """DeepSeek-V3, section 2.2: one more layer on the joined next token and hidden state."""

    def __init__(self, config: ModelConfig, make: Factory) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.enorm = RMSNorm(hidden, eps, make)
        self.hnorm = RMSNorm(hidden, eps, make)
        self.eh_proj = Linear(2 * hidden, hidden, make)
        self.layer = ResidualLayer(config, "moe", make)
        self.norm = RMSNorm(hidden, eps, make)


class PlainResidual(Model):
    """The carry is the hidden state [T, hidden] after the final norm, which is what MTP was trained on."""

    def __init__(self, config: ModelConfig, make: Factory) -> None:
        super().__init__(config, make)
        self.layers = nn.ModuleList(ResidualLayer(config, mlp, make) for mlp in config.mlp_kinds)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, make)
        self.mtp = ResidualMtpHead(config, make) if config.num_mtp_layers else None
        assert isinstance(config.attention, LatentAttention | GroupedAttention)
        self.rotary = Rotary(config.attention.rope)

    def forward(self, batch: StepBatch, cache: KVCache) -> Tensor:
        angles = self.rotary(batch.positions)
        x = embed_rows(self.embed, batch.token_ids)
        for layer, layer_cache in zip(self.layers, cache.layers, strict=False):
            x = layer(x, batch, batch.token_ids, angles, layer_cache)
        return self.norm(x)

    def logits(self, carry: Tensor) -> Tensor:
        return self.project(carry)

    def draft(self, carry: Tensor, next_tokens: Tensor, batch: StepBatch, cache: KVCache) -> Tensor:
        self._require_mtp()
        mtp = self.mtp
        assert mtp is not None
        embedded = mtp.enorm(embed_rows(self.embed, next_tokens))
        x = mtp.eh_proj(torch.cat([embedded, mtp.hnorm(carry)], -1))
        return mtp.norm(mtp.layer(x, batch, next_tokens, self.rotary(batch.positions), cache.layers[-1]))

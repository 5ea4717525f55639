"""DeepSeek V4: mHC streams around compressed attention and routed experts."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from runtime.batch import StepBatch
from runtime.cache import KVCache, LayerCache
from runtime.config.spec import AttentionKind, CompressedAttention, MlpKind, ModelConfig, StreamsConfig
from runtime.layers.attention_compressed import CompressedSelfAttention
from runtime.layers.compressor import CompressionStep
from runtime.layers.linear import Factory, Linear, RMSNorm
from runtime.layers.moe import feed_forward
from runtime.layers.rotary import Angles, Rotary
from runtime.layers.streams import HyperConnection, HyperHead
from runtime.models.base import Model, embed_rows


def _parts(config: ModelConfig) -> tuple[CompressedAttention, StreamsConfig]:
    assert isinstance(config.attention, CompressedAttention)
    assert config.streams is not None
    return config.attention, config.streams


class StreamsLayer(nn.Module):
    """Attention and MoE, each between mHC's `before` and `after`."""

    def __init__(self, config: ModelConfig, kind: AttentionKind, mlp: MlpKind, make: Factory) -> None:
        super().__init__()
        attention, streams = _parts(config)
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.kind = kind
        self.attn_hc = HyperConnection(streams, config, make)
        self.attn_norm = RMSNorm(hidden, eps, make)
        self.attn = CompressedSelfAttention(attention, kind, hidden, eps, make)
        self.ffn_hc = HyperConnection(streams, config, make)
        self.ffn_norm = RMSNorm(hidden, eps, make)
        self.ffn = feed_forward(config, mlp, make)

    def forward(
        self,
        streams: Tensor,
        batch: StepBatch,
        token_ids: Tensor,
        angles: Angles,
        compressions: Mapping[int, CompressionStep],
        cache: LayerCache,
    ) -> Tensor:
        x, post, comb = self.attn_hc.before(streams)
        y = self.attn(self.attn_norm(x), batch, angles, compressions, cache)
        streams = self.attn_hc.after(streams, y, post, comb)
        x, post, comb = self.ffn_hc.before(streams)
        y = self.ffn(self.ffn_norm(x), token_ids)
        return self.ffn_hc.after(streams, y, post, comb)


class StreamsMtpHead(nn.Module):
    """One more window-only layer on the streams joined with the next token's embedding."""

    def __init__(self, config: ModelConfig, make: Factory) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.enorm = RMSNorm(hidden, eps, make)
        self.hnorm = RMSNorm(hidden, eps, make)
        self.e_proj = Linear(hidden, hidden, make)
        self.h_proj = Linear(hidden, hidden, make)
        self.layer = StreamsLayer(config, "window", "moe", make)
        self.hc_head = HyperHead(_parts(config)[1], config, make)
        self.norm = RMSNorm(hidden, eps, make)

    def join(self, streams: Tensor, embedded: Tensor) -> Tensor:
        """[T, m, hidden] and [T, hidden] -> [T, m, hidden]."""
        from_streams = self.h_proj(self.hnorm(streams).flatten(0, 1)).view_as(streams)
        return from_streams + self.e_proj(self.enorm(embedded))[:, None]


class DeepseekV4(Model):
    """The carry is the streams [T, m, hidden] after the last layer."""

    def __init__(self, config: ModelConfig, make: Factory) -> None:
        super().__init__(config, make)
        attention, streams = _parts(config)
        self.num_streams = streams.mult
        kinds = zip(config.attention_kinds, config.mlp_kinds, strict=True)
        self.layers = nn.ModuleList(StreamsLayer(config, kind, mlp, make) for kind, mlp in kinds)
        self.hc_head = HyperHead(streams, config, make)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, make)
        self.mtp = StreamsMtpHead(config, make) if config.num_mtp_layers else None
        self.rotary = Rotary(attention.rope)
        self.compress_rotary = Rotary(attention.compress_rope)

    def forward(self, batch: StepBatch, cache: KVCache) -> Tensor:
        plain, compressed = self.rotary(batch.positions), self.compress_rotary(batch.positions)
        compressions = {
            plan.ratio: CompressionStep(plan, self.compress_rotary(plan.entry_positions)) for plan in batch.compressions
        }
        embedded = embed_rows(self.embed, batch.token_ids)
        streams = embedded[:, None].expand(-1, self.num_streams, -1).contiguous()
        for layer, layer_cache in zip(self.layers, cache.layers, strict=False):
            angles = plain if layer.kind == "window" else compressed
            streams = layer(streams, batch, batch.token_ids, angles, compressions, layer_cache)
        return streams

    def logits(self, carry: Tensor) -> Tensor:
        return self.project(self.norm(self.hc_head(carry)))

    def draft(self, carry: Tensor, next_tokens: Tensor, batch: StepBatch, cache: KVCache) -> Tensor:
        self._require_mtp()
        mtp = self.mtp
        assert mtp is not None
        streams = mtp.join(carry, embed_rows(self.embed, next_tokens))
        streams = mtp.layer(streams, batch, next_tokens, self.rotary(batch.positions), {}, cache.layers[-1])
        return mtp.norm(mtp.hc_head(streams))

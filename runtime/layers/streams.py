"""mHC: residual streams around a sub-layer, and their final collapse."""

from __future__ import annotations

from torch import Tensor, nn

from runtime import ops
from runtime.config.spec import ModelConfig, StreamsConfig
from runtime.layers.linear import Factory


class HyperConnection(nn.Module):
    """Mixing weights of one sub-layer. Streams are [T, m, hidden]."""

    def __init__(self, streams: StreamsConfig, config: ModelConfig, make: Factory) -> None:
        super().__init__()
        m = streams.mult
        self.streams, self.norm_eps = streams, config.rms_norm_eps
        self.fn = make.empty_float32((2 + m) * m, m * config.hidden_size)
        self.base = make.empty_float32((2 + m) * m)
        self.scale = make.empty_float32(3)

    def before(self, streams: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The sub-layer's input [T, hidden], and `post`, `comb` for `after`."""
        c = self.streams
        return ops.mhc_pre(streams, self.fn, self.base, self.scale, self.norm_eps, c.eps, c.iterations)

    @staticmethod
    def after(streams: Tensor, y: Tensor, post: Tensor, comb: Tensor) -> Tensor:
        return ops.mhc_post(streams, y, post, comb)


class HyperHead(nn.Module):
    """Streams [T, m, hidden] to one vector a token [T, hidden]."""

    def __init__(self, streams: StreamsConfig, config: ModelConfig, make: Factory) -> None:
        super().__init__()
        self.eps, self.norm_eps = streams.eps, config.rms_norm_eps
        self.fn = make.empty_float32(streams.mult, streams.mult * config.hidden_size)
        self.base = make.empty_float32(streams.mult)
        self.scale = make.empty_float32(1)

    def forward(self, streams: Tensor) -> Tensor:
        return ops.mhc_head(streams, self.fn, self.base, self.scale, self.norm_eps, self.eps)

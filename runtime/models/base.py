"""What every model offers the runner."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from runtime.batch import StepBatch
from runtime.cache import KVCache
from runtime.config.spec import ModelConfig
from runtime.layers.linear import Factory, Linear


class Model(nn.Module, ABC):
    """A causal language model over a paged cache.

    `forward` runs one step and returns a carry, one row a token; `logits` and `draft` continue from it.
    """

    lm_head: Linear | None

    def __init__(self, config: ModelConfig, make: Factory) -> None:
        super().__init__()
        self.config, self.ranks = config, make.ranks
        self.embed = make.empty(config.vocab_size, config.hidden_size)
        self.lm_head = None if config.tied_embeddings else Linear(config.hidden_size, config.vocab_size, make)

    @abstractmethod
    def forward(self, batch: StepBatch, cache: KVCache) -> Tensor:
        """Run all layers, writing the cache. Returns the carry [T, ...]."""

    @abstractmethod
    def logits(self, carry: Tensor) -> Tensor:
        """Rows of a carry to next-token logits [rows, vocab] float32."""

    @abstractmethod
    def draft(self, carry: Tensor, next_tokens: Tensor, batch: StepBatch, cache: KVCache) -> Tensor:
        """Hidden states [T, hidden] that predict the token after next (MTP), for `project`.

        carry: of `forward` on the same batch; next_tokens: [T] int32, the token that follows each position.
        """

    def project(self, hidden: Tensor) -> Tensor:
        """[rows, hidden] (normed) to logits [rows, vocab] float32."""
        if self.lm_head is None:
            return nn.functional.linear(hidden, self.embed).float()
        return self.lm_head(hidden).float()

    def _require_mtp(self) -> None:
        if self.config.num_mtp_layers == 0:
            raise ValueError("this model has no MTP layer (num_nextn_predict_layers=0); it cannot draft")


def embed_rows(table: Tensor, token_ids: Tensor) -> Tensor:
    """[V, hidden] and [T] int32 -> [T, hidden]."""
    return torch.nn.functional.embedding(token_ids, table)

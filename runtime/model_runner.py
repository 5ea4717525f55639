"""Runs steps: lays out the batch, calls the model, returns logits in the order of the inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from runtime.batch import StepBatch, build_batch
from runtime.cache import KVCache, SequenceInput
from runtime.models.base import Model


class ModelRunner:
    def __init__(self, model: Model, cache: KVCache) -> None:
        self.model, self.cache = model, cache
        self._last: tuple[StepBatch, Tensor] | None = None

    @torch.inference_mode()
    def step(self, inputs: Sequence[SequenceInput]) -> Tensor:
        """Logits [len(inputs), vocab] float32 of each sequence's last new token; writes the cache.

        An empty step runs a dummy token: with expert parallelism an idle rank must still take part.
        """
        batch = build_batch(inputs, self.model.config, self.cache.block_size, self.cache.device)
        carry = self.model(batch, self.cache)
        self._last = (batch, carry)
        return self.model.logits(carry[batch.last_rows])

    @torch.inference_mode()
    def draft(self, inputs: Sequence[SequenceInput], next_tokens: Sequence[int]) -> Tensor:
        """MTP logits [len(inputs), vocab] for the token after `next_tokens` (one a sequence: the token that
        follows its last new one). Belongs to the `step` just made on the same inputs.
        """
        assert self._last is not None, "draft follows a step"
        batch, carry = self._last
        following = torch.roll(batch.token_ids, -1)
        following[batch.last_rows.long()] = torch.tensor(next_tokens, dtype=following.dtype, device=following.device)
        hidden = self.model.draft(carry, following, batch, self.cache)
        return self.model.project(hidden[batch.last_rows])

"""Runs steps: lays out the batch, calls the model, returns logits in the order of the inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.batch import StepBatch, build_batch
from runtime.cache import KVCache, SequenceInput
from runtime.decode_graphs import MAX_SEQUENCES, DecodeGraphs
from runtime.models.base import Model


@dataclass(frozen=True)
class _LastStep:
    batch: StepBatch
    carry: Tensor
    rows: Tensor  # of each input's last token


class ModelRunner:
    def __init__(self, model: Model, cache: KVCache, cuda_graphs: bool = True) -> None:
        """cuda_graphs: replay decode steps as graphs where that is possible."""
        self.model, self.cache = model, cache
        self._graphs = DecodeGraphs(model, cache) if cuda_graphs and DecodeGraphs.usable(model, cache) else None
        self._last: _LastStep | None = None

    @torch.inference_mode()
    def step(self, inputs: Sequence[SequenceInput], earlier: Sequence[int] = ()) -> Tensor:
        """Logits [len(inputs) + len(earlier), vocab] float32: of each sequence's last new token, then of the token
        before it in the inputs `earlier`; writes the cache.

        An empty step runs a dummy token: with expert parallelism an idle rank must still take part.
        """
        count = len(inputs)
        decode_only = 0 < count <= MAX_SEQUENCES and all(len(i.token_ids) == 1 for i in inputs)
        if self._graphs is not None and decode_only and not earlier:
            batch, carry, logits = self._graphs.step(inputs)
            self._last = _LastStep(batch, carry, torch.arange(count, device=carry.device))
            return logits[:count].clone()  # the next replay overwrites them
        batch = build_batch(inputs, self.model.config, self.cache.block_size, self.cache.device)
        carry = self.model(batch, self.cache)
        self._last = _LastStep(batch, carry, batch.last_rows.long())
        rows = self._last.rows
        if earlier:
            rows = torch.cat([rows, rows[list(earlier)] - 1])
        return self.model.logits(carry[rows])

    @torch.inference_mode()
    def draft(self, next_tokens: Sequence[int], corrected: Mapping[int, int] | None = None) -> Tensor:
        """MTP logits [sequences, vocab] of the step just made, for the token after `next_tokens`.

        next_tokens: for each input of that step, the token that follows its last new one. corrected: inputs whose last
        new token was a wrong guess, and the token in its place; their logits are for the token after that. Call it
        after every step or not at all: the MTP layer keeps keys of its own.
        """
        assert self._last is not None, "draft follows a step"
        batch, rows = self._last.batch, self._last.rows
        following = torch.roll(batch.token_ids, -1)
        following[rows] = torch.tensor(next_tokens, dtype=following.dtype, device=following.device)
        if corrected:
            wrong = torch.tensor(list(corrected), device=rows.device)
            rows = rows.clone()
            rows[wrong] -= 1
            following[rows[wrong]] = torch.tensor(
                list(corrected.values()), dtype=following.dtype, device=following.device
            )
        hidden = self.model.draft(self._last.carry, following, batch, self.cache)
        return self.model.project(hidden[rows])

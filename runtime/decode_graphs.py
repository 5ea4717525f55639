"""Decode steps replayed as CUDA graphs: one capture a batch shape, so that launches cost nothing.

Shapes are rounded up (sequences, and blocks a sequence); rows beyond the inputs read block and slot 0 and write
nothing. Needs kernels that never wait for the device, so it is off on the CPU and with several ranks: the exchange of
expert parallelism asks for counts, and captured sums between ranks have not been tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.batch import FixedShape, StepBatch, build_batch
from runtime.cache import KVCache, SequenceInput
from runtime.models.base import Model

MAX_SEQUENCES = 256  # larger batches run as they are: launches no longer matter (assumed)
FINE = 16  # sequences up to which batches are rounded up to powers of two, beyond to multiples of it (assumed)
WARM_UPS = 2  # compile kernels and fill the allocator before capture


def fixed_shape(inputs: Sequence[SequenceInput]) -> FixedShape:
    """Round up: sequences to a power of two until FINE, then to a multiple of it; blocks to a power of two."""
    count, blocks = len(inputs), max(len(i.block_ids) for i in inputs)
    rounded = 1 << (count - 1).bit_length() if count <= FINE else -(-count // FINE) * FINE
    return FixedShape(rounded, 1 << (blocks - 1).bit_length())


def refill(target: StepBatch, source: StepBatch) -> None:
    """Overwrite a batch's tensors with those of another of the same fixed shape. Rows stay: row i is input i."""
    shared = min(target.buffer.shape[0], source.buffer.shape[0])
    target.buffer[:shared].copy_(source.buffer[:shared])


@dataclass
class _Capture:
    graph: torch.cuda.CUDAGraph
    batch: StepBatch  # what the graph reads
    carry: Tensor  # what it writes
    logits: Tensor


class DecodeGraphs:
    def __init__(self, model: Model, cache: KVCache) -> None:
        self.model, self.cache = model, cache
        self._captures: dict[FixedShape, _Capture] = {}
        self._pool = torch.cuda.graph_pool_handle()

    @staticmethod
    def usable(model: Model, cache: KVCache) -> bool:
        return cache.device.type == "cuda" and model.ranks.experts.size == 1 and model.ranks.tensor.size == 1

    def step(self, inputs: Sequence[SequenceInput]) -> tuple[StepBatch, Tensor, Tensor]:
        """Batch, carry and logits of a decode-only step; row i belongs to input i, further rows are padding."""
        shape = fixed_shape(inputs)
        with torch.cuda.device(self.cache.device):  # streams and graphs belong to the current device
            if shape not in self._captures:
                self._captures[shape] = self._capture(shape)
            capture = self._captures[shape]
            batch = build_batch(inputs, self.model.config, self.cache.block_size, self.cache.device, shape)
            refill(capture.batch, batch)
            capture.graph.replay()
        return capture.batch, capture.carry, capture.logits

    def _capture(self, shape: FixedShape) -> _Capture:
        batch = build_batch([], self.model.config, self.cache.block_size, self.cache.device, shape)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self.model.logits(self.model(batch, self.cache))
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            carry = self.model(batch, self.cache)
            logits = self.model.logits(carry)
        return _Capture(graph, batch, carry, logits)

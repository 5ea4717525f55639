"""Cache contents of one sequence in a shared memory segment, on their way from one process to another.

On a GPU the copies stage through host memory: device to segment, segment to device. The proxy names every
segment and removes it, so that a worker that dies leaves none behind.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import torch

_ALIGNMENT = 64  # bytes: a cache line, and any element size
_SHARED_MEMORY_ROOT = Path("/dev/shm")  # where Linux shows segments as files


@dataclass(frozen=True)
class TensorPlace:
    shape: tuple[int, ...]
    dtype: str
    offset: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * getattr(torch, self.dtype).itemsize


@dataclass(frozen=True)
class Handover:
    segment: str
    places: tuple[TensorPlace, ...]

    @property
    def num_bytes(self) -> int:
        return sum(place.num_bytes for place in self.places)


def write(segment: str, tensors: Sequence[torch.Tensor]) -> Handover:
    """Copy tensors into a new segment. Raises OSError when shared memory is full."""
    places, size = [], 0
    for tensor in tensors:
        places.append(TensorPlace(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), size))
        size += -(-places[-1].num_bytes // _ALIGNMENT) * _ALIGNMENT
    handover = Handover(segment, tuple(places))
    memory = SharedMemory(segment, create=True, size=max(size, 1))
    try:
        _reserve(segment, size)
        for tensor, target in zip(tensors, _views(memory, handover), strict=True):
            target.copy_(tensor)
        del target
    finally:
        memory.close()
    return handover


@contextmanager
def opened(handover: Handover) -> Iterator[list[torch.Tensor]]:
    """The tensors, in place; they must not outlive the `with` block."""
    memory = SharedMemory(handover.segment)
    tensors = list(_views(memory, handover))
    try:
        yield tensors
    finally:
        tensors.clear()
        memory.close()


def remove(segment: str) -> None:
    """Remove a segment if it exists; a process that has it open keeps its view."""
    try:
        memory = SharedMemory(segment)
    except FileNotFoundError:
        return
    except ValueError:  # its writer died between creating and sizing it
        (_SHARED_MEMORY_ROOT / segment).unlink(missing_ok=True)
        return
    memory.close()
    memory.unlink()


def _reserve(segment: str, size: int) -> None:
    """Claim the memory now: writing to a segment that cannot grow kills the process instead of raising."""
    path = _SHARED_MEMORY_ROOT / segment
    if size == 0 or not path.exists():
        return
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.posix_fallocate(descriptor, 0, size)
    finally:
        os.close(descriptor)


def _views(memory: SharedMemory, handover: Handover) -> Iterator[torch.Tensor]:
    for place in handover.places:
        dtype = getattr(torch, place.dtype)
        if place.num_bytes == 0:
            yield torch.empty(place.shape, dtype=dtype)
            continue
        raw = torch.frombuffer(memory.buf, dtype=torch.uint8, count=place.num_bytes, offset=place.offset)
        yield raw.view(dtype).view(place.shape)

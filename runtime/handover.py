"""Cache contents of one sequence in a shared memory segment, on their way from one process to another.

On a GPU the copies stage through host memory: device to segment, segment to device. The proxy names every
segment and removes it, so that a worker that dies leaves none behind. Where the proxy itself is killed with all its
processes, the next one removes what it left: names tell whose segments they are.
"""

from __future__ import annotations

import math
import os
import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import torch

_ALIGNMENT = 64  # bytes: a cache line, and any element size
_SHARED_MEMORY_ROOT = Path("/dev/shm")  # where Linux shows segments as files
_OWNER = re.compile(r"moeplan-[a-z]+-(?P<namespace>[0-9a-f]+)-(?P<pid>\d+)(-|$)")


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


def segment_prefix(kind: str) -> str:
    """Start of the names of this process's segments: kind, PID namespace, PID."""
    return f"moeplan-{kind}-{_namespace():x}-{os.getpid()}"


def remove_orphans() -> int:
    """Remove segments of processes of this machine that are no more; says how many there were."""
    found = 0
    for path in _SHARED_MEMORY_ROOT.glob("moeplan-*"):
        name = _OWNER.match(path.name)
        # Another container's processes cannot be seen from here: their segments are left alone.
        if name is None or int(name["namespace"], 16) != _namespace() or Path(f"/proc/{name['pid']}").exists():
            continue
        try:
            path.unlink()
        except OSError:  # another's, or gone by now
            continue
        found += 1
    return found


def _namespace() -> int:
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0


def write(segment: str, tensors: Sequence[torch.Tensor]) -> Handover:
    """Copy tensors into a new segment. Raises OSError when shared memory is full; on any error there is no segment."""
    places, size = [], 0
    for tensor in tensors:
        places.append(TensorPlace(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), size))
        size += -(-places[-1].num_bytes // _ALIGNMENT) * _ALIGNMENT
    handover = Handover(segment, tuple(places))
    memory = SharedMemory(segment, create=True, size=max(size, 1))
    try:
        _reserve(segment, size)
        _fill(_views(memory, handover), tensors)
    except BaseException as error:
        memory.unlink()
        traceback.clear_frames(error.__traceback__)  # they hold views, which would keep the segment open
        raise
    finally:
        memory.close()
    return handover


def _fill(views: Iterator[torch.Tensor], tensors: Sequence[torch.Tensor]) -> None:
    """A function of its own, so that no view outlives it, nor its frame in an error."""
    for tensor, target in zip(tensors, views, strict=True):
        target.copy_(tensor)


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

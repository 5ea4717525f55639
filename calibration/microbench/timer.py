"""Times of one call: warmed up, caches cold, repeated until the spread is small or the limit is reached.

A call that alone takes longer than the limit is warmed up once and timed a few times at most, so that a slow op
does not take the time of the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

Call = Callable[[], object]

FLUSH_BYTES = {"cpu": 64 << 20, "cuda": 256 << 20}  # beyond the last-level caches of the catalogue's parts
FLUSH_VALUES = 251  # that the flushed bytes take in turn, so that no write repeats the one before
FEWEST = 5  # repeats, unless these alone take PATIENCE times the limit (assumed)
PATIENCE = 3.0  # times the limit (assumed)
SMALL_SPREAD = 0.05  # (p80 - p20) / median (assumed)


@dataclass(frozen=True)
class TimeSample:
    """Seconds of one call: median, 20th and 80th percentile."""

    median_s: float
    p20_s: float
    p80_s: float
    repeats: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> TimeSample:
        low, middle, high = np.percentile(seconds, (20, 50, 80)).tolist()
        return cls(middle, low, high, len(seconds))

    @property
    def spread(self) -> float:
        return (self.p80_s - self.p20_s) / self.median_s


@dataclass(frozen=True)
class TimingLimits:
    """limit_s: time for one sample, and for its warm-up. most: repeats at most."""

    limit_s: float = 0.3
    most: int = 50

    def enough(self, seconds: Sequence[float], spent_s: float) -> bool:
        """Whether these repeats, which took `spent_s` with flushes between them, will do."""
        if not seconds:
            return False
        if len(seconds) >= self.most or sum(seconds) > PATIENCE * self.limit_s:
            return True
        return len(seconds) >= FEWEST and (spent_s > self.limit_s or TimeSample.of(seconds).spread < SMALL_SPREAD)


def clock_of(device: torch.device) -> Callable[[], float]:
    """Seconds. Where a CPU computes with one thread, those that it computed: other processes on its core do not
    count. Caches and memory bandwidth that they take still do. With more threads, or on a GPU, the wall clock."""
    import torch

    return time.thread_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


class CallTimer:
    """Times calls on one device: by events of the device on CUDA, by `clock_of` on a CPU.

    calls: the same work on different data, taken in turn, so that no repeat finds its inputs in a cache.
    """

    def __init__(self, device: torch.device, limits: TimingLimits) -> None:
        import torch

        self.device, self.limits = device, limits
        self._torch, self._clock = torch, clock_of(device)
        with torch.inference_mode(False):  # a resumed sweep may come here in that mode, and leave it afterwards
            self._flush = torch.empty(FLUSH_BYTES[device.type], dtype=torch.uint8, device=device)

    def sample(self, calls: Sequence[Call], flush: bool = True) -> TimeSample:
        once = self._on_cuda if self.device.type == "cuda" else self._on_cpu
        begin_s = time.perf_counter()
        for call in calls:
            once(call)
            if time.perf_counter() - begin_s > self.limits.limit_s:
                break
        seconds: list[float] = []
        begin_s = time.perf_counter()
        while not self.limits.enough(seconds, time.perf_counter() - begin_s):
            if flush:
                self._flush.fill_(len(seconds) % FLUSH_VALUES)
            seconds.append(once(calls[len(seconds) % len(calls)]))
        return TimeSample.of(seconds)

    def _on_cpu(self, call: Call) -> float:
        begin_s = self._clock()
        call()
        return self._clock() - begin_s

    def _on_cuda(self, call: Call) -> float:
        cuda = self._torch.cuda
        begin, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e-3

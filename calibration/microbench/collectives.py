"""Collectives between ranks of this machine, one process each: gloo on a CPU, NCCL between GPUs.

Every rank times the same calls between barriers, each by what the slowest rank took.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from calibration.microbench.bench import Bench, Item
from calibration.microbench.measurement import Measurement
from calibration.microbench.timer import TimeSample, TimingLimits
from simulator.model.collectives import RankGroup, all_gather, all_reduce, all_to_all, point_to_point
from simulator.model.ops import Op

if TYPE_CHECKING:
    import torch

CPU_RANKS = 2  # processes: the fewest that talk
WEIGHT = 4  # of progress, in ops of one step: starting the ranks (assumed)
PATIENCE = timedelta(seconds=60)  # with a rank that does not answer (assumed)
BF16_BYTES = 2  # of an element
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "point-to-point")


class CollectiveError(RuntimeError):
    """Ranks that could not talk to each other."""


def items(bench: Bench) -> list[Item]:
    """One item for all: starting the ranks takes longer than their calls."""
    ranks = rank_count(bench.machine.device)
    return [_collectives(bench, ranks)] if ranks > 1 else []


def rank_count(device: str) -> int:
    """GPUs of this machine, or CPU_RANKS processes where there are that many cores; 1: nobody to talk to."""
    if device == "cuda":
        import torch

        return torch.cuda.device_count()
    return CPU_RANKS if len(os.sched_getaffinity(0)) >= CPU_RANKS else 1


def op_of(kind: str, size: int, ranks: int) -> Op:
    """What the simulator prices for it. size: bytes that each rank ends with."""
    group = RankGroup(ranks, ranks)
    if kind == "all-reduce":
        return all_reduce(kind, size, group)[0]
    if kind in ("all-gather", "reduce-scatter"):
        return all_gather(kind, size, group)[0]
    if kind == "all-to-all":
        return all_to_all(kind, size * (ranks - 1) / ranks, 0.0, group)
    return point_to_point(kind, size, "scale_up", 1)


def _collectives(bench: Bench, ranks: int) -> Item:
    key = f"collectives of {ranks} ranks"

    def run() -> Iterator[Measurement]:
        preset = bench.preset
        calls = [(kind, size) for kind in KINDS for size in preset.message_bytes]
        samples = time_calls(bench.machine.device, ranks, calls, preset.limits)
        for (kind, size), sample in zip(calls, samples, strict=True):
            op = op_of(kind, size, ranks)
            yield Measurement(f"{kind} of {size} bytes, {ranks} ranks", kind, sample=sample, ops=(op,), ranks=ranks)
        yield Measurement(key, "collectives")

    return Item(key, run, weight=WEIGHT)


def time_calls(device: str, ranks: int, calls: Sequence[tuple[str, int]], limits: TimingLimits) -> list[TimeSample]:
    """Start `ranks` processes and time each (kind, bytes) in turn."""
    import torch.multiprocessing as multiprocessing
    from torch.multiprocessing.spawn import ProcessException

    results = multiprocessing.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        try:
            arguments = (device, ranks, f"{folder}/store", tuple(calls), limits, results)
            with _interrupts_ignored():  # by the ranks: Ctrl-C reaches the whole group, and they end with their parent
                started = multiprocessing.spawn(_rank, arguments, nprocs=ranks, join=False, daemon=True)
            while not started.join():
                pass
        except ProcessException as error:
            raise CollectiveError(str(error).strip().splitlines()[-1]) from None
    return [results.get() for _ in calls]


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Processes that start meanwhile inherit it. Signals are the main thread's to set."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _rank(
    rank: int, device: str, ranks: int, store: str, calls: Sequence[tuple[str, int]], limits: TimingLimits, results: Any
) -> None:
    """What each process runs; the first one tells."""
    import torch
    import torch.distributed as dist

    warnings.simplefilter("ignore", FutureWarning)  # two calls have other names from torch 2.13 on
    torch.set_num_threads(1)
    where = torch.device(device, rank) if device == "cuda" else torch.device(device)
    if device == "cuda":
        torch.cuda.set_device(where)
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=ranks,
        timeout=PATIENCE,
    )
    try:
        for kind, size in calls:
            sample = _sample(_call(kind, size, rank, ranks, where), where, limits)
            if rank == 0:
                results.put(sample)
    finally:
        dist.destroy_process_group()


def _call(kind: str, size: int, rank: int, ranks: int, device: torch.device) -> Callable[[], object]:
    """One collective on random data of its own. `size`: bytes that each rank ends with (bfloat16)."""
    import torch
    import torch.distributed as dist

    elements = size // BF16_BYTES
    whole, part = (torch.randn(n, device=device, dtype=torch.bfloat16) for n in (elements, elements // ranks))
    if kind == "all-reduce":
        return lambda: dist.all_reduce(whole)
    if kind == "all-gather":
        return lambda: dist.all_gather_into_tensor(whole, part)
    if kind == "reduce-scatter":
        return lambda: dist.reduce_scatter_tensor(part, whole)
    if kind == "all-to-all":
        other = torch.empty_like(whole)
        return lambda: dist.all_to_all_single(other, whole)
    if rank % 2 == 0 and rank + 1 < ranks:
        return lambda: dist.send(whole, rank + 1)
    return (lambda: dist.recv(whole, rank - 1)) if rank % 2 else lambda: None


def _sample(call: Callable[[], object], device: torch.device, limits: TimingLimits) -> TimeSample:
    """Seconds of one call, of the slowest rank. All ranks stop after the same repeat: they see the same seconds."""
    import torch
    import torch.distributed as dist

    def once() -> float:
        dist.barrier()
        begin_s = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took = torch.tensor(time.perf_counter() - begin_s, dtype=torch.float64, device=device)
        dist.all_reduce(took, dist.ReduceOp.MAX)
        return float(took)

    once()
    seconds: list[float] = []
    while not limits.enough(seconds, sum(seconds)):
        seconds.append(once())
    return TimeSample.of(seconds)

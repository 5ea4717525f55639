"""The ranks of one instance: processes that hold each a share of a model and make every step together.

The engine's process schedules for all replicas and tells each rank its part over a pipe; ranks exchange tensors among
themselves by torch.distributed (gloo on CPUs, nccl on GPUs). A replica's first rank answers for it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from runtime.block_manager import SlotOp
from runtime.config.parallel import Parallelism
from runtime.engine import EngineConfig, ModelSource, build_executor
from runtime.executor import IDLE, LocalExecutor, StepPlan, StepResult
from runtime.handover import Handover
from runtime.layers.expert_parallel import FEW_ROWS, ExpertGroup
from runtime.layers.ranks import Ranks
from runtime.layers.tensor_parallel import TensorGroup

START_TIMEOUT_S = 300.0  # loading a model may take minutes (assumed)
STOP_TIMEOUT_S = 10.0  # of a rank that has been told to leave (assumed)


@dataclass(frozen=True)
class RankSpec:
    """devices: one a rank; ranks of one replica follow each other."""

    source: ModelSource
    engine_config: EngineConfig
    parallel: Parallelism
    devices: tuple[str, ...]
    num_threads: int = 1


@dataclass(frozen=True)
class _Run:
    plan: StepPlan


@dataclass(frozen=True)
class _Apply:
    ops: tuple[SlotOp, ...]


@dataclass(frozen=True)
class _WriteOut:
    segment: str
    block_ids: tuple[int, ...]
    slot: int


@dataclass(frozen=True)
class _Import:
    source: Handover
    block_ids: tuple[int, ...]
    slot: int


class RankError(RuntimeError):
    """A rank that is gone, and with it its instance."""


class RankProcesses:
    def __init__(self, spec: RankSpec) -> None:
        self.spec = spec
        self._directory = tempfile.TemporaryDirectory(prefix="moeplan-ranks-")
        self._connections: list[Connection] = []
        self._processes: list[Any] = []
        context = multiprocessing.get_context("spawn")
        rendezvous = f"file://{Path(self._directory.name) / 'rendezvous'}"
        try:
            for rank in range(spec.parallel.num_ranks):
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=rank_main, args=(theirs, spec, rank, rendezvous), daemon=True, name=f"rank {rank}"
                )
                process.start()
                theirs.close()
                self._connections.append(ours)
                self._processes.append(process)
            for rank, connection in enumerate(self._connections):
                if not connection.poll(START_TIMEOUT_S):
                    raise RankError(f"rank {rank} was not ready after {START_TIMEOUT_S:g} s")
                self._receive(rank)
        except BaseException:
            self.close()
            raise

    def replica(self, index: int) -> RankedExecutor:
        return RankedExecutor(self, index)

    def run(self, plans: Sequence[StepPlan | None]) -> list[StepResult]:
        """One step of all replicas: their next tokens. Those without a plan idle along where ranks share experts."""
        parallel = self.spec.parallel
        rows = self._expert_rows(plans)
        answering = []
        for index, plan in enumerate(plans):
            if plan is None and parallel.expert == 1:
                continue
            answering.append(index)
            self.tell(index, _Run(replace(plan or IDLE, expert_rows=rows)))
        results = [StepResult(()) for _ in plans]
        for index in answering:
            results[index] = self._receive(index * parallel.tensor)
        return results

    def _expert_rows(self, plans: Sequence[StepPlan | None]) -> int | None:
        """Tokens that a rank sends to experts at most, if few. An idle replica sends a dummy token."""
        parallel = self.spec.parallel
        if parallel.expert == 1:
            return None
        most = max(sum(len(i.token_ids) for i in plan.inputs) if plan else 1 for plan in plans)
        rows = -(-most // parallel.tensor)
        return rows if rows <= FEW_ROWS else None

    def tell(self, replica: int, message: object) -> None:
        for rank in self._ranks(replica):
            try:
                self._connections[rank].send(message)
            except OSError:
                raise RankError(f"rank {rank} ended (its error is on stderr); restart the server") from None

    def ask(self, replica: int, message: object) -> list[Any]:
        """Tell all ranks of a replica; their answers."""
        self.tell(replica, message)
        return [self._receive(rank) for rank in self._ranks(replica)]

    def close(self) -> None:
        """Let all ranks go; they have nothing to save."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.join(STOP_TIMEOUT_S)
            if process.is_alive():
                process.kill()
                process.join()
        self._connections.clear()
        self._processes.clear()
        self._directory.cleanup()

    def _ranks(self, replica: int) -> range:
        size = self.spec.parallel.tensor
        return range(replica * size, (replica + 1) * size)

    def _receive(self, rank: int) -> Any:
        try:
            answer = self._connections[rank].recv()
        except (EOFError, OSError):
            raise RankError(f"rank {rank} ended (its error is on stderr); restart the server") from None
        if isinstance(answer, OSError):
            raise answer
        return answer


class RankedExecutor:
    """One replica of a rank group, as an engine sees it. Its steps go through `RankProcesses.run`."""

    exports_aside = False  # ranks take their orders one after another

    def __init__(self, group: RankProcesses, index: int) -> None:
        self._group, self._index = group, index
        self.device = torch.device(group.spec.devices[0])

    def run(self, plan: StepPlan) -> StepResult:
        plans: list[StepPlan | None] = [None] * self._group.spec.parallel.data
        plans[self._index] = plan
        return self._group.run(plans)[self._index]

    def apply(self, ops: Sequence[SlotOp]) -> None:
        if ops:
            self._group.tell(self._index, _Apply(tuple(ops)))

    def write_out(self, segment: str, block_ids: Sequence[int], slot: int) -> Handover:
        answers = self._group.ask(self._index, _WriteOut(segment, tuple(block_ids), slot))
        written: Handover = answers[0]
        return written

    def import_from(self, source: Handover, block_ids: Sequence[int], slot: int) -> int:
        self._group.ask(self._index, _Import(source, tuple(block_ids), slot))
        return source.num_bytes

    def close(self) -> None:
        """Nothing: the group is closed by its owner."""


def _join(spec: RankSpec, rank: int, rendezvous: str) -> Ranks:
    """Meet the other ranks and take a place among them."""
    parallel = spec.parallel
    backend = "nccl" if spec.devices[rank].startswith("cuda") else "gloo"
    dist.init_process_group(backend, init_method=rendezvous, rank=rank, world_size=parallel.num_ranks)
    replicas = [range(first, first + parallel.tensor) for first in range(0, parallel.num_ranks, parallel.tensor)]
    groups = [dist.new_group(list(ranks)) for ranks in replicas]  # every rank takes part in making each
    own = rank // parallel.tensor
    tensor = TensorGroup(rank % parallel.tensor, parallel.tensor, groups[own])
    return Ranks(tensor, ExpertGroup(rank, parallel.expert) if parallel.expert > 1 else ExpertGroup())


def _answer(executor: LocalExecutor, message: object, first: bool) -> Any:
    """What a rank says to an order; None for orders that nobody waits for."""
    if isinstance(message, _Run):
        plan = message.plan
        # Only the first rank's draw counts; the others need not make one.
        result = executor.run(plan if first else StepPlan(plan.inputs, (), (), (), expert_rows=plan.expert_rows))
        return result if first else None
    if isinstance(message, _Apply):
        executor.apply(message.ops)
        return None
    try:
        if isinstance(message, _WriteOut):
            tensors = executor.exported(message.block_ids, message.slot)
            return executor.written(message.segment, tensors) if first else True
        assert isinstance(message, _Import)
        return executor.import_from(message.source, message.block_ids, message.slot)
    except OSError as error:
        return error


def rank_main(connection: Connection, spec: RankSpec, rank: int, rendezvous: str) -> None:
    """Entry point of a rank. Ends with the engine's process: a closed connection is the order to leave."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(spec.num_threads)
    if spec.devices[rank].startswith("cuda"):
        torch.cuda.set_device(spec.devices[rank])
    ranks = _join(spec, rank, rendezvous)
    executor = build_executor(spec.source, spec.engine_config, spec.devices[rank], ranks)
    connection.send(True)
    try:
        while True:
            answer = _answer(executor, connection.recv(), ranks.tensor.rank == 0)
            if answer is not None:
                connection.send(answer)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # the others may be gone already: no farewell between process groups

"""One engine in a process of its own, and the messages it exchanges with the proxy."""

from __future__ import annotations

import queue
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch

from runtime.config.parallel import Parallelism
from runtime.config.spec import ModelConfig
from runtime.engine import Engine, EngineConfig, Importer, ModelSource, StepRecord, build_executor
from runtime.executor import Executor
from runtime.handover import Handover
from runtime.rank_processes import RankSpec
from runtime.ranked_engine import RankedEngine
from runtime.sequence import Request, RequestError, TokenEvent, failed

Role = Literal["prefill", "decode"]


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker builds. Every worker of a deployment holds the same weights.

    devices: of its ranks in turn, or one for all of them.
    """

    model_config: ModelConfig
    engine_config: EngineConfig
    weights_directory: Path | None = None
    seed: int = 0
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    num_threads: int = 1
    parallel: Parallelism = field(default_factory=Parallelism)
    devices: tuple[str, ...] = ()
    dequantize: bool = False

    def of_instance(self, index: int) -> WorkerSpec:
        """For the index-th of several workers, each on devices of its own."""
        count = self.parallel.num_ranks
        own = self.devices[index * count : (index + 1) * count]
        return replace(self, devices=own, device=own[0]) if own else self

    @property
    def source(self) -> ModelSource:
        return ModelSource(self.model_config, self.weights_directory, self.seed, self.dtype, self.dequantize)

    def build(self) -> Engine | RankedEngine:
        torch.set_num_threads(self.num_threads)
        if self.parallel.num_ranks == 1:
            executor = build_executor(self.source, self.engine_config, self.device)
            return Engine(executor, self.model_config, self.engine_config)
        devices = self.devices or (self.device,) * self.parallel.num_ranks
        ranks = RankSpec(self.source, self.engine_config, self.parallel, devices, self.num_threads)
        return RankedEngine(ranks)


# To a worker.
@dataclass(frozen=True)
class Submit:
    """Prefill this request, tell its next token, keep its cache."""

    request: Request


@dataclass(frozen=True)
class Export:
    """Write the cache of a prefilled request into a segment and let go of it."""

    request_id: str
    segment: str


@dataclass(frozen=True)
class Receive:
    """Continue a request whose cache lies in a segment."""

    request: Request
    handover: Handover


@dataclass(frozen=True)
class Abort:
    request_id: str


@dataclass(frozen=True)
class Stop:
    pass


# From a worker.
@dataclass(frozen=True)
class Ready:
    vocab_size: int
    max_model_len: int
    capacity_tokens: int
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Prefilled:
    request_id: str
    scheduled_s: float
    num_cached: int


@dataclass(frozen=True)
class Imported:
    """A cache is in this worker's blocks since `time_s`; its segment is no longer needed."""

    request_id: str
    time_s: float
    import_s: float
    num_bytes: int


@dataclass(frozen=True)
class Progress:
    """What one step brought."""

    events: tuple[TokenEvent, ...]
    prefilled: tuple[Prefilled, ...] = ()
    imported: tuple[Imported, ...] = ()


@dataclass(frozen=True)
class Exported:
    request_id: str
    handover: Handover
    export_s: float


@dataclass(frozen=True)
class ExportFailed:
    request_id: str
    segment: str
    error: str


@dataclass(frozen=True)
class Stopped:
    """The worker's last words, once it has made sure that no block or slot leaked."""

    step_records: tuple[StepRecord, ...]


@dataclass(frozen=True)
class _Release:
    """The cache of a held request has been written out."""

    request_id: str


Message = Submit | Receive | Export | Abort | Stop | _Release


class Worker:
    """The loop of a worker process: take messages, make a step, tell what came of it.

    A second thread receives. It exports at once, beside a running step: the blocks of a held sequence change no
    more, and a hand-over that waited for a long prefill step would delay the tokens of its request.
    """

    def __init__(self, connection: Connection, role: Role, engine: Engine | RankedEngine) -> None:
        self.connection = connection
        self.role = role
        self.engine = engine
        self._imported: list[Imported] = []
        self._inbox: queue.SimpleQueue[Message | Exception] = queue.SimpleQueue()
        self._sending = threading.Lock()

    def run(self) -> None:
        engine = self.engine
        self._send(Ready(engine.vocab_size, engine.max_model_len, engine.capacity_tokens, engine.eos_token_ids))
        threading.Thread(target=self._receive, args=(torch.get_num_threads(),), daemon=True).start()
        while True:
            # Held sequences may have taken all blocks: then, too, only a message can bring work.
            while engine.blocked or not self._inbox.empty():
                message = self._inbox.get()
                if isinstance(message, Exception):
                    raise message
                if isinstance(message, Stop):
                    engine.close()
                    self._send(Stopped(tuple(engine.step_records)))
                    return
                self._handle(message)
                if self._inbox.empty():
                    break
            events = engine.step()
            if events or self._imported:
                self._send(self._progress(events))

    def _receive(self, num_threads: int) -> None:
        torch.set_num_threads(num_threads)  # the setting belongs to a thread
        message: Any = None
        try:
            while not isinstance(message, Stop):
                message = self.connection.recv()
                if isinstance(message, Export) and self.engine.exports_aside:
                    self._export(message.request_id, message.segment)
                else:
                    self._inbox.put(message)
        except Exception as error:
            self._inbox.put(error)

    def _send(self, message: object) -> None:
        with self._sending:
            self.connection.send(message)

    def _progress(self, events: list[TokenEvent]) -> Progress:
        prefilled = tuple(
            Prefilled(event.request_id, held.timing.scheduled_s or event.time_s, held.num_cached)
            for event in events
            if (held := self.engine.held(event.request_id)) is not None
        )
        imported, self._imported = tuple(self._imported), []
        return Progress(tuple(events), prefilled, imported)

    def _handle(self, message: Submit | Receive | Export | Abort | _Release) -> None:
        if isinstance(message, Submit):
            self._add(message.request)
        elif isinstance(message, Receive):
            self._add(message.request, self._importer(message.request.request_id, message.handover))
        elif isinstance(message, Export):
            self._export(message.request_id, message.segment)
        else:
            self.engine.abort(message.request_id)

    def _add(self, request: Request, importer: Importer | None = None) -> None:
        try:
            self.engine.add_request(request, prefill_only=self.role == "prefill", importer=importer)
        except RequestError as error:
            self._send(Progress((failed(request, str(error), time.monotonic()),)))

    def _export(self, request_id: str, segment: str) -> None:
        begin_s = time.monotonic()
        try:
            written = self.engine.write_out(request_id, segment)
        except OSError as error:
            self._send(ExportFailed(request_id, segment, str(error)))
        else:
            self._send(Exported(request_id, written, time.monotonic() - begin_s))
        self._inbox.put(_Release(request_id))

    def _importer(self, request_id: str, source: Handover) -> Importer:
        def fill(target: Executor, block_ids: Sequence[int], slot: int) -> int:
            begin_s = time.monotonic()
            moved = target.import_from(source, block_ids, slot)
            end_s = time.monotonic()
            self._imported.append(Imported(request_id, end_s, end_s - begin_s, moved))
            return moved

        return fill


def worker_main(connection: Connection, role: Role, spec: WorkerSpec) -> None:
    """Entry point of a worker process. Ends with the proxy: a closed connection is the order to leave."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the proxy stops its workers
    try:
        Worker(connection, role, spec.build()).run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        sys.exit(0)

"""One engine in a process of its own, and the messages it exchanges with the proxy."""

from __future__ import annotations

import queue
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch

from runtime import handover
from runtime.cache import KVCache
from runtime.config.spec import ModelConfig
from runtime.engine import Engine, EngineConfig, Importer, StepRecord
from runtime.handover import Handover
from runtime.sequence import Request, RequestError, TokenEvent, failed

Role = Literal["prefill", "decode"]


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker builds. Every worker of a deployment holds the same weights."""

    model_config: ModelConfig
    engine_config: EngineConfig
    weights_directory: Path | None = None
    seed: int = 0
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    num_threads: int = 1

    def build(self) -> Engine:
        torch.set_num_threads(self.num_threads)
        return Engine.build(
            self.model_config,
            self.engine_config,
            weights_directory=self.weights_directory,
            seed=self.seed,
            device=self.device,
            dtype=self.dtype,
        )


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


class Worker:
    """The loop of a worker process: take messages, make a step, tell what came of it.

    A second thread receives. It exports at once, beside a running step: the blocks of a held sequence change no
    more, and a hand-over that waited for a long prefill step would delay the tokens of its request.
    """

    def __init__(self, connection: Connection, role: Role, engine: Engine) -> None:
        self.connection = connection
        self.role = role
        self.engine = engine
        self._imported: list[Imported] = []
        self._inbox: queue.SimpleQueue[Submit | Receive | Abort | Stop | _Release | Exception] = queue.SimpleQueue()
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
                if isinstance(message, Export):
                    self._export(message.request_id, message.segment)
                else:
                    self._inbox.put(message)
        except Exception as error:
            self._inbox.put(error)

    def _send(self, message: object) -> None:
        with self._sending:
            self.connection.send(message)

    def _progress(self, events: list[TokenEvent]) -> Progress:
        held = self.engine.scheduler.held
        prefilled = tuple(
            Prefilled(event.request_id, held[event.request_id].timing.scheduled_s or event.time_s,
                      held[event.request_id].num_cached)
            for event in events
            if event.request_id in held
        )  # fmt: skip
        imported, self._imported = tuple(self._imported), []
        return Progress(tuple(events), prefilled, imported)

    def _handle(self, message: Submit | Receive | Abort | _Release) -> None:
        if isinstance(message, Submit):
            self._add(message.request)
        elif isinstance(message, Receive):
            self._add(message.request, self._importer(message.request.request_id, message.handover))
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
            written = handover.write(segment, self.engine.export(request_id))
        except OSError as error:
            self._send(ExportFailed(request_id, segment, str(error)))
        else:
            self._send(Exported(request_id, written, time.monotonic() - begin_s))
        self._inbox.put(_Release(request_id))

    def _importer(self, request_id: str, source: Handover) -> Importer:
        def fill(cache: KVCache, block_ids: Sequence[int], slot: int) -> int:
            begin_s = time.monotonic()
            with handover.opened(source) as tensors:
                cache.import_blocks(block_ids, slot, tensors)
            end_s = time.monotonic()
            self._imported.append(Imported(request_id, end_s, end_s - begin_s, source.num_bytes))
            return source.num_bytes

        return fill


def worker_main(connection: Connection, role: Role, spec: WorkerSpec) -> None:
    """Entry point of a worker process. Ends with the proxy: a closed connection is the order to leave."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the proxy stops its workers
    try:
        Worker(connection, role, spec.build()).run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        sys.exit(0)

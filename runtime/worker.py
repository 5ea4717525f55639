"""One engine in a process of its own, and the messages it exchanges with the proxy."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import torch

from runtime import handover
from runtime.cache import KVCache
from runtime.config import ModelConfig
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


class Worker:
    """The loop of a worker process: take messages, make a step, tell what came of it."""

    def __init__(self, connection: Connection, role: Role, engine: Engine) -> None:
        self.connection = connection
        self.role = role
        self.engine = engine
        self._imported: list[Imported] = []

    def run(self) -> None:
        engine = self.engine
        self.connection.send(
            Ready(engine.vocab_size, engine.max_model_len, engine.capacity_tokens, engine.eos_token_ids)
        )
        waiting = True
        while True:
            # Held sequences may have taken all blocks: then, too, only a message can bring work.
            while self.connection.poll(None if waiting else 0):
                waiting = False
                message = self.connection.recv()
                if isinstance(message, Stop):
                    engine.close()
                    self.connection.send(Stopped(tuple(engine.step_records)))
                    return
                self._handle(message)
            events = engine.step()
            waiting = engine.blocked
            if events or self._imported:
                self.connection.send(self._progress(events))

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

    def _handle(self, message: Submit | Export | Receive | Abort) -> None:
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
            self.connection.send(Progress((failed(request, str(error), time.monotonic()),)))

    def _export(self, request_id: str, segment: str) -> None:
        if request_id not in self.engine.scheduler.held:
            return  # aborted while the message was under way
        begin_s = time.monotonic()
        try:
            written = handover.write(segment, self.engine.export(request_id))
        except OSError as error:
            self.connection.send(ExportFailed(request_id, segment, str(error)))
        else:
            self.connection.send(Exported(request_id, written, time.monotonic() - begin_s))
        self.engine.release(request_id)

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

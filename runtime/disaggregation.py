"""Prefill and decode in separate processes: a proxy routes requests and sees to the hand-over of their cache.

A request goes: proxy -> prefill worker, which keeps the blocks when done -> proxy picks a decode worker that
has room -> prefill worker writes blocks and state into a shared memory segment -> decode worker reads it and
goes on. At most `max_staged` segments wait for one decode worker; beyond that prefilled requests keep their
blocks, so a full decode side stops the prefill side instead of filling shared memory.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Literal

from runtime import handover
from runtime.backend import Load
from runtime.engine import StepRecord
from runtime.flight import Flight
from runtime.sequence import (
    FinishReason,
    Request,
    RequestError,
    RequestOutput,
    RequestTiming,
    SettingError,
    TokenEvent,
    UnavailableError,
    validate_request,
)
from runtime.worker import (
    Abort,
    Export,
    Exported,
    ExportFailed,
    Imported,
    Progress,
    Receive,
    Role,
    Submit,
    WorkerSpec,
)
from runtime.worker_handle import WorkerHandle

MAX_RETRIES = 1  # a request that has been on two workers that died may be what kills them
_instances = itertools.count()


@dataclass(frozen=True)
class DisaggregatedConfig:
    """num_prefill, num_decode: workers. max_staged: segments that wait for one decode worker. Timeouts are assumed:
    loading a model may take minutes, finishing a step does not."""

    num_prefill: int = 1
    num_decode: int = 1
    routing: Literal["least_loaded", "round_robin"] = "least_loaded"
    max_staged: int = 2
    start_timeout_s: float = 300.0
    stop_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        for name in ("num_prefill", "num_decode", "max_staged"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name}={getattr(self, name)} cannot serve; use 1 or more")


class DisaggregatedEngine:
    """Looks like an engine from outside. Use as a context manager, or call `close`."""

    def __init__(self, spec: WorkerSpec, config: DisaggregatedConfig) -> None:
        self.config = config
        self.workers: list[WorkerHandle] = []
        self.step_records: dict[str, tuple[StepRecord, ...]] = {}  # of each worker, known after `close`
        self._flights: dict[str, Flight] = {}
        self._held: deque[str] = deque()
        self._segments: set[str] = set()
        handover.remove_orphans()
        prefix = f"{handover.segment_prefix('serve')}-{next(_instances)}"
        self._segment_names = (f"{prefix}-{i}" for i in itertools.count())
        self._turn: dict[Role, int] = {"prefill": 0, "decode": 0}
        self._events: list[TokenEvent] = []
        prefill: list[Role] = ["prefill"] * config.num_prefill
        decode: list[Role] = ["decode"] * config.num_decode
        try:
            for place, (i, role) in enumerate([*enumerate(prefill), *enumerate(decode)]):
                self.workers.append(WorkerHandle(role, i, spec.of_instance(place)))
            ready = [worker.await_ready(config.start_timeout_s) for worker in self.workers]
        except BaseException:
            self._shut_down()
            raise
        self.vocab_size = ready[0].vocab_size
        self.max_model_len = ready[0].max_model_len
        self.capacity_tokens = ready[0].capacity_tokens
        self.eos_token_ids = ready[0].eos_token_ids

    def __enter__(self) -> DisaggregatedEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def has_work(self) -> bool:
        return bool(self._flights or self._events)

    @property
    def problem(self) -> str | None:
        missing = self._missing_role()
        return None if missing is None else f"no {missing} worker is left; restart the server"

    def add_request(self, request: Request) -> None:
        if request.request_id in self._flights:
            raise RequestError(f"request id {request.request_id!r} is already in use; choose another")
        validate_request(
            request,
            vocab_size=self.vocab_size,
            max_model_len=self.max_model_len,
            capacity_tokens=self.capacity_tokens,
        )
        if self.problem is not None:
            raise UnavailableError(self.problem)
        flight = Flight(request, RequestTiming(request.arrival_s), self._choose("prefill"))
        flight.tokens.extend(request.output_token_ids)
        self._flights[request.request_id] = flight
        self._submit(flight)

    def abort(self, request_id: str) -> None:
        flight = self._flights.get(request_id)
        if flight is not None:
            if flight.stage != "exporting":  # the export is under way: its answer will find nobody
                flight.worker.send(Abort(request_id))
            self._leave(flight)

    def step(self, timeout_s: float = 0.0) -> list[TokenEvent]:
        by_connection = {worker.connection: worker for worker in self.workers}
        for connection in wait(list(by_connection), 0.0 if self._events else timeout_s):
            self._drain(by_connection[connection])  # type: ignore[index]
        self._dispatch()
        events, self._events = self._events, []
        return events

    def load(self) -> Load:
        """Requests with a first token run, others wait; workers do not tell the use of their blocks."""
        running = sum(bool(flight.tokens) for flight in self._flights.values())
        return Load(running, len(self._flights) - running, None)

    def close(self) -> None:
        """Stop all workers. Raises if one of them found that it had leaked blocks or slots."""
        unclean = self._shut_down()
        if unclean:
            raise RuntimeError(f"{', '.join(unclean)} did not stop cleanly; its error is on stderr")

    def _shut_down(self) -> list[str]:
        unclean = [
            f"{worker.name} (exit code {worker.process.exitcode})"
            for worker in self.workers
            if not worker.stop(self.config.stop_timeout_s)
        ]
        self.step_records.update({worker.name: worker.step_records for worker in self.workers})
        self.workers.clear()
        self._flights.clear()
        self._held.clear()
        for segment in list(self._segments):
            self._remove(segment)
        return unclean

    def _choose(self, role: Role) -> WorkerHandle:
        """A worker for the next request; for decode, among those with room for one more segment."""
        able = [
            worker
            for worker in self.workers
            if worker.role == role and (role == "prefill" or len(worker.staged) < self.config.max_staged)
        ]
        if self.config.routing == "least_loaded":
            return min(able, key=lambda worker: worker.load_tokens)
        self._turn[role] += 1
        return able[self._turn[role] % len(able)]

    def _missing_role(self) -> Role | None:
        present = {worker.role for worker in self.workers}
        roles: tuple[Role, ...] = ("prefill", "decode")
        return next((role for role in roles if role not in present), None)

    def _submit(self, flight: Flight) -> None:
        request = flight.request_so_far()
        flight.stage = "prefill"
        flight.prefill.load_tokens += self._size(flight)
        flight.prefill.send(Submit(request))

    @staticmethod
    def _size(flight: Flight) -> int:
        return len(flight.request.prompt_token_ids)

    def _dispatch(self) -> None:
        """Send prefilled requests on, first come first served, while a decode worker has room."""
        if self._missing_role() == "decode":
            for flight in [self._flights[request_id] for request_id in self._held]:
                flight.prefill.send(Abort(flight.request.request_id))
                self._end(flight, "error", "no decode worker is left for this prefilled request")
        while self._held and any(
            worker.role == "decode" and len(worker.staged) < self.config.max_staged for worker in self.workers
        ):
            flight = self._flights[self._held.popleft()]
            flight.stage = "exporting"
            flight.decode = self._choose("decode")
            flight.decode.staged.add(flight.request.request_id)
            flight.decode.load_tokens += self._size(flight)
            flight.segment = next(self._segment_names)
            self._segments.add(flight.segment)
            flight.prefill.send(Export(flight.request.request_id, flight.segment))

    def _drain(self, worker: WorkerHandle) -> None:
        try:
            while worker.connection.poll():
                message = worker.connection.recv()
                if isinstance(message, Progress):
                    self._on_progress(worker, message)
                elif isinstance(message, Exported):
                    self._on_exported(message)
                elif isinstance(message, ExportFailed):
                    self._on_export_failed(message)
        except (EOFError, OSError):
            self._on_death(worker)

    def _on_progress(self, worker: WorkerHandle, progress: Progress) -> None:
        for imported in progress.imported:
            flight = self._flights.get(imported.request_id)
            if flight is not None and flight.decode is worker:
                self._on_imported(flight, imported)
        for news in progress.prefilled:
            flight = self._flights.get(news.request_id)
            if flight is not None and flight.worker is worker and flight.timing.scheduled_s is None:
                flight.timing.scheduled_s, flight.num_cached = news.scheduled_s, news.num_cached
        for event in progress.events:
            flight = self._flights.get(event.request_id)
            if flight is not None and flight.worker is worker:
                self._on_event(flight, event)

    def _on_event(self, flight: Flight, event: TokenEvent) -> None:
        if event.token_id is not None:
            flight.tokens.append(event.token_id)
            flight.timing.token_times_s.append(event.time_s)
        if event.output is not None:
            if flight.timing.scheduled_s is None:
                flight.timing.scheduled_s = event.output.timing.scheduled_s
            self._end(flight, event.output.finish_reason, event.output.error, event)
            return
        if flight.stage == "prefill":
            flight.stage = "held"
            flight.prefill.load_tokens -= self._size(flight)
            self._held.append(event.request_id)
        self._events.append(event)

    def _on_exported(self, message: Exported) -> None:
        flight = self._flights.get(message.request_id)
        if flight is None or flight.segment != message.handover.segment or flight.decode is None:
            self._remove(message.handover.segment)
            return
        flight.stage = "staged"
        flight.timing.export_s = message.export_s
        flight.decode.send(Receive(flight.request_so_far(), message.handover))

    def _on_export_failed(self, message: ExportFailed) -> None:
        flight = self._flights.get(message.request_id)
        if flight is not None and flight.segment == message.segment:
            self._end(flight, "error", f"hand-over failed: {message.error}")
        self._remove(message.segment)

    def _on_imported(self, flight: Flight, imported: Imported) -> None:
        assert flight.decode is not None
        flight.stage = "decode"
        flight.timing.import_s = imported.import_s
        flight.timing.transfer_bytes = imported.num_bytes
        flight.timing.handover_s = imported.time_s - flight.timing.token_times_s[-1]
        self._unstage(flight)

    def _unstage(self, flight: Flight) -> None:
        if flight.decode is not None:
            flight.decode.staged.discard(flight.request.request_id)
        if flight.segment is not None and not (flight.stage == "exporting" and flight.prefill in self.workers):
            self._remove(flight.segment)  # else the export is under way, and its answer removes it
        flight.segment = None

    def _remove(self, segment: str) -> None:
        handover.remove(segment)
        self._segments.discard(segment)

    def _on_death(self, worker: WorkerHandle) -> None:
        """Its requests go on elsewhere, from their prompt and the tokens they have, or end with an error."""
        self.workers.remove(worker)
        exit_code = worker.finish()
        reason = f"{worker.name} ended (exit code {exit_code}) while it held this request"
        for flight in [f for f in self._flights.values() if f.worker is worker or f.decode is worker]:
            missing = self._missing_role()
            if missing is not None or flight.num_retries >= MAX_RETRIES:
                why = f"no {missing} worker is left" if missing else "it had been retried before"
                self._end(flight, "error", f"{reason}, and {why}")
            else:
                self._retry(flight)

    def _retry(self, flight: Flight) -> None:
        self._leave(flight)
        flight.num_retries += 1
        flight.prefill, flight.decode = self._choose("prefill"), None
        self._flights[flight.request.request_id] = flight
        self._submit(flight)

    def _end(self, flight: Flight, reason: FinishReason, error: str | None, event: TokenEvent | None = None) -> None:
        self._leave(flight)
        request_id = flight.request.request_id
        output = RequestOutput(
            request_id,
            tuple(flight.tokens),
            reason,
            error,
            flight.timing,
            len(flight.request.prompt_token_ids),
            flight.num_cached,
            event.output.num_preemptions if event and event.output else 0,
        )
        token_id = event.token_id if event else None
        self._events.append(TokenEvent(request_id, token_id, event.time_s if event else time.monotonic(), output))

    def _leave(self, flight: Flight) -> None:
        """Undo what the flight holds in the proxy's books."""
        request_id = flight.request.request_id
        if flight.stage == "prefill":
            flight.prefill.load_tokens -= self._size(flight)
        elif flight.stage == "held":
            self._held.remove(request_id)
        if flight.decode is not None:
            flight.decode.load_tokens -= self._size(flight)
        self._unstage(flight)
        del self._flights[request_id]

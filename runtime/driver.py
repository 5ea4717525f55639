"""A backend run by a thread of its own, for callers in an event loop."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable

from runtime.backend import Backend
from runtime.metrics import Metrics
from runtime.sequence import Request, RequestError, TokenEvent, UnavailableError, failed

_WAIT_S = 0.005  # longest time a new request waits while workers of the backend are silent (assumed)
_IDLE_LOOK_S = 1.0  # between looks of an idle backend whether its workers live (assumed)


class _RequestEvents:
    """Events of one request, from the backend's thread to the caller's event loop."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[TokenEvent] = asyncio.Queue()
        self._accepted: asyncio.Future[None] = self._loop.create_future()

    def put(self, event: TokenEvent) -> None:
        self._call(lambda: self._events.put_nowait(event))

    def accept(self, error: Exception | None = None) -> None:
        def settle() -> None:
            if self._accepted.done():
                return
            if error is None:
                self._accepted.set_result(None)
            else:
                self._accepted.set_exception(error)

        self._call(settle)

    def _call(self, function: Callable[[], None]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function)

    async def wait_accepted(self) -> None:
        await self._accepted

    async def get(self) -> TokenEvent:
        return await self._events.get()


class Driver:
    """`submit` and `abort` from event loops; the thread alone touches the backend."""

    def __init__(self, backend: Backend, metrics: Metrics) -> None:
        self.backend, self.metrics = backend, metrics
        self.failure: str | None = None
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._streams: dict[str, _RequestEvents] = {}
        self._thread = threading.Thread(target=self._run, name="backend", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Drop what is still running and close the backend."""
        self._commands.put(None)
        self._thread.join()
        self.backend.close()

    async def submit(self, request: Request) -> AsyncIterator[TokenEvent]:
        """Events until the one that carries the output. Raises RequestError at once for a bad request."""
        stream = _RequestEvents(request)
        self._commands.put(lambda: self._add(stream))
        await stream.wait_accepted()
        return self._events(stream)

    async def _events(self, stream: _RequestEvents) -> AsyncIterator[TokenEvent]:
        ended = False
        try:
            while not ended:
                event = await stream.get()
                ended = event.output is not None
                yield event
        finally:
            if not ended:
                self.abort(stream.request.request_id)

    def abort(self, request_id: str) -> None:
        def forget() -> None:
            if self._streams.pop(request_id, None) is not None:
                self.metrics.aborted()
                self.backend.abort(request_id)

        self._commands.put(forget)

    def _add(self, stream: _RequestEvents) -> None:
        if self.failure is not None:
            stream.accept(UnavailableError(self.failure))
            return
        try:
            self.backend.add_request(stream.request)
        except RequestError as error:
            stream.accept(error)
            return
        self._streams[stream.request.request_id] = stream
        stream.accept()

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:
            traceback.print_exc()
            self.failure = f"the engine broke: {type(error).__name__}: {error}"
            for stream in self._streams.values():
                stream.put(failed(stream.request, self.failure, time.monotonic()))
            while (command := self._commands.get()) is not None:
                command()

    def _serve(self) -> None:
        while True:
            while not self._commands.empty() or not self.backend.has_work:
                try:
                    command = self._commands.get(timeout=_IDLE_LOOK_S)
                except queue.Empty:
                    break
                if command is None:
                    for request_id in list(self._streams):
                        self.backend.abort(request_id)
                    return
                command()
            for event in self.backend.step(timeout_s=_WAIT_S):
                if event.output is not None:
                    self.metrics.finished(event.output)
                stream = self._streams.get(event.request_id)
                if stream is not None:
                    stream.put(event)
                    if event.output is not None:
                        del self._streams[event.request_id]

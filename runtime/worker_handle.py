"""The proxy's end of one worker process."""

from __future__ import annotations

import atexit
import multiprocessing
import queue
import threading
import time
from typing import Any

from runtime.engine import StepRecord
from runtime.worker import Ready, Role, Stop, Stopped, WorkerSpec, worker_main


class WorkerHandle:
    """Sending never blocks the proxy: a thread waits for the pipe instead."""

    def __init__(self, role: Role, index: int, spec: WorkerSpec) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = f"{role} worker {index}"
        self.role = role
        self.connection, theirs = context.Pipe()
        alone = spec.parallel.num_ranks == 1
        self.process = context.Process(target=worker_main, args=(theirs, role, spec), daemon=alone, name=self.name)
        self.process.start()
        if not alone:  # a daemon may have no ranks; others must be let go before Python waits for them
            atexit.register(self.connection.close)
        theirs.close()  # or its death would not close the pipe
        self.load_tokens = 0
        self.staged: set[str] = set()
        self.step_records: tuple[StepRecord, ...] = ()
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._sender = threading.Thread(target=self._send_all, daemon=True, name=f"to {self.name}")
        self._sender.start()

    def send(self, message: object) -> None:
        self._outbox.put(message)

    def _send_all(self) -> None:
        while (message := self._outbox.get()) is not None:
            try:
                self.connection.send(message)
            except OSError:
                return  # dead: the receiving side notices

    def finish(self) -> int | None:
        """Make sure the process is gone; its exit code."""
        self._outbox.put(None)
        self.process.join(1.0)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self._sender.join()
        self.connection.close()
        atexit.unregister(self.connection.close)
        return self.process.exitcode

    def await_ready(self, timeout_s: float) -> Ready:
        if not self.connection.poll(timeout_s):
            raise RuntimeError(f"{self.name} was not ready after {timeout_s:g} s")
        try:
            message = self.connection.recv()
        except EOFError:
            raise RuntimeError(f"{self.name} ended while it started; its error is on stderr") from None
        assert isinstance(message, Ready)
        return message

    def stop(self, timeout_s: float) -> bool:
        """Ask the worker to leave; True if it did, and had leaked nothing."""
        self.send(Stop())
        deadline_s = time.monotonic() + timeout_s
        stopped = False
        try:
            while not stopped and self.connection.poll(max(0.0, deadline_s - time.monotonic())):
                message = self.connection.recv()
                if isinstance(message, Stopped):
                    self.step_records = message.step_records
                    stopped = True
        except (EOFError, OSError):
            pass
        self.finish()
        return stopped

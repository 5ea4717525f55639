"""What serves requests: one engine in this process, or workers behind a proxy. Callers see no difference."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from runtime.sequence import Request, RequestError, RequestOutput, TokenEvent, failed


@dataclass(frozen=True)
class Load:
    """Requests inside, the used share of the KV blocks (None where it is not known), draft tokens checked so far."""

    running: int
    waiting: int
    kv_usage: float | None
    num_drafts: int = 0
    num_accepted: int = 0


class Backend(Protocol):
    vocab_size: int
    max_model_len: int
    capacity_tokens: int  # tokens one KV pool holds
    eos_token_ids: tuple[int, ...]

    @property
    def problem(self) -> str | None:
        """Why no request can be served any more, as far as the last `step` noticed."""

    @property
    def has_work(self) -> bool: ...

    def add_request(self, request: Request) -> None:
        """Raises RequestError when the request can never be served."""

    def abort(self, request_id: str) -> None:
        """Forget a request; no event follows. An unknown id is ignored."""

    def step(self, timeout_s: float = 0.0) -> list[TokenEvent]:
        """Make progress; wait at most `timeout_s` for news from elsewhere."""

    def load(self) -> Load: ...

    def close(self) -> None: ...


def run_requests(backend: Backend, requests: Iterable[Request]) -> list[RequestOutput]:
    """Serve all requests at once; outputs in their order. A bad request ends with its own error."""
    order, outputs = [], {}
    for request in requests:
        order.append(request.request_id)
        try:
            backend.add_request(request)
        except RequestError as error:
            outputs[request.request_id] = failed(request, str(error), time.monotonic()).output
    while backend.has_work:
        for event in backend.step(timeout_s=1.0):
            if event.output is not None:
                outputs[event.request_id] = event.output
    return [output for name in order if (output := outputs[name]) is not None]

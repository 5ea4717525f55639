"""A request on its way through prefill and decode workers, as the proxy knows it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from runtime.sequence import Request, RequestTiming
from runtime.worker_handle import WorkerHandle

Stage = Literal["prefill", "held", "exporting", "staged", "decode"]


@dataclass
class Flight:
    """A request on its way."""

    request: Request
    timing: RequestTiming
    prefill: WorkerHandle
    stage: Stage = "prefill"
    decode: WorkerHandle | None = None
    segment: str | None = None
    tokens: list[int] = field(default_factory=list)
    num_cached: int = 0
    num_retries: int = 0

    @property
    def worker(self) -> WorkerHandle:
        """Who computes the next token."""
        return self.decode if self.stage in ("staged", "decode") and self.decode else self.prefill

    def request_so_far(self) -> Request:
        return replace(self.request, output_token_ids=tuple(self.tokens))

"""What happened to every request, as columns: one entry a request."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from simulator.des.workload.requests import Requests

NAN = float("nan")


class Status(IntEnum):
    """How a request stands; every request ends as one of the last three."""

    WAITING = 0
    FINISHED = 1
    FAILED = 2
    REJECTED = 3


class RequestLog:
    """Columns that whoever serves a request writes as it happens. Times are seconds of the simulated clock.

    pace: of each request, the index of its rate of decoding, where instances have several.
    first_from_decode: the client sees no token before the end of the first decode step.
    prompt_end_s: of the prompt's first computation, which emits a token; first_token_s: as the client sees it.
    Times are in arrays: a list of a million floats is one of a million objects, which Python's garbage collector walks.
    """

    def __init__(self, streams: Sequence[Requests], pace: Sequence[int] = (), first_from_decode: bool = False) -> None:
        self.pace = pace
        self.first_from_decode = first_from_decode
        self.prompt_tokens = _joined(stream.prompt_tokens for stream in streams)
        self.output_tokens = _joined(stream.output_tokens for stream in streams)
        count = len(self.prompt_tokens)
        self.arrival_s = _unknown(count)
        self.priority = _priorities(streams)  # of each request; None where all are equal
        self.offline = range(0)  # requests that fill gaps, and the share of an instance that they leave free
        self.headroom = 0.0
        first = 0
        for stream in streams:
            if stream.headroom is not None:
                self.offline, self.headroom = range(first, first + len(stream)), stream.headroom
            if stream.arrival_s is not None:
                self.arrival_s[first : first + len(stream)] = array("d", stream.arrival_s)
            first += len(stream)
        self.prefill_start_s = _unknown(count)
        self.prompt_end_s = _unknown(count)
        self.first_token_s = _unknown(count) if first_from_decode else self.prompt_end_s
        self.delivered_s = _unknown(count)  # KV has reached the decode instance
        self.finish_s = _unknown(count)
        self.status = bytearray(count)  # one Status a request; all WAITING
        self.blocks = _blocks(streams)  # prefix block ids of each prompt; None where no prompt has any
        self.kept_blocks = _kept_blocks(streams)  # blocks of prompt and answer, which a session's next turn begins with
        self.session = _sessions(streams)  # of each request, -1 for one outside sessions; None where there are none
        self.cached_tokens = [0] * count  # prompt tokens that a prefix cache spared, summed over recomputations
        self.emitted = [0] * count  # output tokens out so far, kept at prefill ends, preemptions and the end
        self.preemptions = [0] * count
        self.retries = [0] * count  # times that a fault took the request's KV or place in a queue
        self.prefill_instance = [-1] * count
        self.decode_instance = [-1] * count

    def debut(self, requests: list[int], now: float) -> None:
        """Clients see the first tokens of `requests`, which are struck off."""
        for request in requests:
            self.first_token_s[request] = now
        requests.clear()


def _unknown(count: int) -> array[float]:
    return array("d", [NAN]) * count


def _joined(columns: Iterable[NDArray[np.int64]]) -> list[int]:
    joined: list[int] = np.concatenate(list(columns)).tolist()
    return joined


def _priorities(streams: Sequence[Requests]) -> list[int] | None:
    """Of each request; offline work comes after all others. None where nothing sets requests apart."""
    lowest = min(stream.priority for stream in streams) - 1
    levels = [lowest if stream.offline else stream.priority for stream in streams]
    if len(set(levels)) == 1:
        return None
    return [level for level, stream in zip(levels, streams, strict=True) for _ in range(len(stream))]


def _blocks(streams: Sequence[Requests]) -> list[tuple[int, ...]] | None:
    if all(stream.blocks is None for stream in streams):
        return None
    return [chain for stream in streams for chain in stream.blocks or [()] * len(stream)]


def _kept_blocks(streams: Sequence[Requests]) -> list[tuple[int, ...]] | None:
    if all(stream.sessions is None for stream in streams):
        return None
    return [
        chain
        for stream in streams
        for chain in (stream.sessions.kept_blocks if stream.sessions is not None else [()] * len(stream))
    ]


def _sessions(streams: Sequence[Requests]) -> list[int] | None:
    """Numbers of sessions, no two tenants with the same."""
    if all(stream.sessions is None for stream in streams):
        return None
    numbers: list[int] = []
    begun = 0
    for stream in streams:
        if stream.sessions is None:
            numbers += [-1] * len(stream)
        else:
            numbers += [begun + session for session in stream.sessions.session_of()]
            begun += len(stream.sessions.first) - 1
    return numbers

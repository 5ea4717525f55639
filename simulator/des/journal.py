"""What happened to every request, as columns (one list entry a request), and how busy the instances were."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from simulator.des.workload import Requests

NAN = float("nan")


class Status(IntEnum):
    """How a request stands; every request ends as one of the last three."""

    WAITING = 0
    FINISHED = 1
    FAILED = 2
    REJECTED = 3


class Journal:
    """Columns that the cluster writes while it runs. Times are seconds of the simulated clock."""

    def __init__(self, requests: Requests, rng: np.random.Generator | None = None) -> None:
        count = len(requests)
        self.rng = rng or np.random.default_rng(0)  # of what instances draw while they run
        self.prompt_tokens: list[int] = requests.prompt_tokens.tolist()
        self.output_tokens: list[int] = requests.output_tokens.tolist()
        self.arrival_s = [NAN] * count if requests.arrival_s is None else requests.arrival_s.tolist()
        self.prefill_start_s = [NAN] * count
        self.first_token_s = [NAN] * count
        self.delivered_s = [NAN] * count  # KV has reached the decode instance
        self.finish_s = [NAN] * count
        self.status = bytearray(count)  # one Status a request; all WAITING
        self.blocks = requests.blocks
        self.cached_tokens = [0] * count  # prompt tokens that a prefix cache spared, summed over recomputations
        self.emitted = [0] * count  # output tokens out so far, kept at prefill ends, preemptions and the end
        self.preemptions = [0] * count
        self.pace: list[int] = []  # index of the request's rate of decoding, where an instance has several
        self.retries = [0] * count  # times that a fault took the request's KV or place in a queue
        self.prefill_instance = [-1] * count
        self.decode_instance = [-1] * count


@dataclass(frozen=True)
class Usage:
    """Integrals over the life of one instance up to a moment."""

    busy_s: float  # inside a step
    prefill_s: float  # the part of busy_s that prefill is charged with
    steps: int
    sequence_s: float  # running sequences, integrated over time
    kv_byte_s: float  # KV held, integrated over time (as it stood at the last step end)
    link_s: float  # KV arriving or leaving, as seconds at the full rate of the links; mean over the instance's ranks

    def since(self, earlier: Usage) -> Usage:
        return Usage(
            self.busy_s - earlier.busy_s,
            self.prefill_s - earlier.prefill_s,
            self.steps - earlier.steps,
            self.sequence_s - earlier.sequence_s,
            self.kv_byte_s - earlier.kv_byte_s,
            self.link_s - earlier.link_s,
        )


NO_USAGE = Usage(0.0, 0.0, 0, 0.0, 0.0, 0.0)

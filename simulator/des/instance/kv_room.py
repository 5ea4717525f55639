"""Room for KV on one attention rank, and how long KV fills it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

# A sequence is admitted only while this share of the rank's KV room stays free for the running ones to grow
# (vLLM's block manager keeps 1%); an empty rank takes any sequence that fits at all.
ADMISSION_WATERMARK = 0.01


@dataclass(frozen=True)
class KvSpace:
    """KV memory of one attention rank, and what a sequence takes of it.

    A sequence with n tokens in context takes bytes_per_sequence + n * bytes_per_token.
    """

    capacity_bytes: float
    bytes_per_token: float
    bytes_per_sequence: float = 0.0

    def used_bytes(self, sequences: int, tokens: int) -> float:
        """Bytes of `sequences` that hold `tokens` in all."""
        return sequences * self.bytes_per_sequence + tokens * self.bytes_per_token

    def room(self, headroom: float = 0.0) -> float:
        """Bytes that newcomers may fill beside others, who keep a share of `headroom`, or the watermark if more."""
        return self.capacity_bytes * (1.0 - max(headroom, ADMISSION_WATERMARK))

    def fits(self, sequences: int, tokens: int) -> bool:
        return sequences * self.bytes_per_sequence + tokens * self.bytes_per_token <= self.capacity_bytes


class Clock(Protocol):
    @property
    def now(self) -> float: ...


class KvBooks:
    """KV of one instance, held or reserved on any rank, integrated over time.

    A byte that comes at t1 and goes at t2 fills its place for t2 - t1: -t1 is booked as it comes, t2 as it goes. What
    is there now is counted in `byte_s` only when it has gone; until then, times `now`, it is missing.
    """

    __slots__ = ("byte_s", "clock", "per_sequence", "per_token")

    def __init__(self, clock: Clock, kv: KvSpace) -> None:
        self.clock = clock
        self.per_token, self.per_sequence = kv.bytes_per_token, kv.bytes_per_sequence
        self.byte_s = 0.0

    def until(self, now: float, held_bytes: float) -> float:
        """The integral up to now, when `held_bytes` are there."""
        return max(0.0, self.byte_s + held_bytes * now)  # a long sum rounds

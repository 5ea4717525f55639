"""Room for KV on one attention rank, and how long KV fills it."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.des.primitives.clock import Clock

# A sequence is admitted only while this share of the rank's KV room stays free for the running ones to grow
# (vLLM's block manager keeps 1%); an empty rank takes any sequence that fits at all.
ADMISSION_WATERMARK = 0.01


@dataclass(frozen=True)
class KvRoom:
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


class KvOccupancy:
    """KV of one instance, held or reserved on any rank, integrated over time.

    A byte that comes at t1 and goes at t2 fills its place for t2 - t1: -t1 is counted as it comes, t2 as it goes. What
    is there now is counted in `byte_s` only when it has gone; until then, times `now`, it is missing.
    """

    __slots__ = ("_bytes_per_sequence", "_bytes_per_token", "_clock", "byte_s")

    def __init__(self, clock: Clock, kv: KvRoom) -> None:
        self._clock = clock
        self._bytes_per_token, self._bytes_per_sequence = kv.bytes_per_token, kv.bytes_per_sequence
        self.byte_s = 0.0

    def come(self, tokens: int) -> None:
        """A sequence of so many tokens takes room."""
        self.byte_s -= (self._bytes_per_sequence + self._bytes_per_token * tokens) * self._clock.now

    def go(self, tokens: int) -> None:
        """A sequence of so many tokens leaves."""
        self.byte_s += (self._bytes_per_sequence + self._bytes_per_token * tokens) * self._clock.now

    def grow(self, tokens: int) -> None:
        """Sequences that are there become longer, by so many tokens in all."""
        self.byte_s -= tokens * self._bytes_per_token * self._clock.now

    def clear(self, held_bytes: float) -> None:
        """All that is there leaves."""
        self.byte_s += held_bytes * self._clock.now

    def until_now(self, held_bytes: float) -> float:
        """The integral up to now, when `held_bytes` are there."""
        return max(0.0, self.byte_s + held_bytes * self._clock.now)  # a long sum rounds

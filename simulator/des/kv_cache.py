"""Room for KV on one attention rank."""

from __future__ import annotations

from dataclasses import dataclass

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

    def fits(self, sequences: int, tokens: int) -> bool:
        return sequences * self.bytes_per_sequence + tokens * self.bytes_per_token <= self.capacity_bytes

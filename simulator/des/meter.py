"""How busy one instance is: integrals over its life."""

from __future__ import annotations

from simulator.des.journal import Usage
from simulator.des.links import Link

INFINITE = float("inf")


class Meter:
    """The books of one instance. A step is booked as it ends; `usage` adds what the one under way has run.

    begun_s: when the step under way began; infinite between steps.
    kv_bytes: KV held or reserved over all ranks, without what the step under way adds. [B of one accelerator]
    links: of each rank, over which KV is handed over.
    """

    __slots__ = ("_busy_s", "_kv_byte_s", "_kv_mark_s", "_prefill_s", "_sequence_s", "_steps", "begun_s", "kv_bytes",
                 "links")  # fmt: skip

    def __init__(self) -> None:
        self.begun_s = INFINITE
        self.kv_bytes = 0.0
        self.links: tuple[Link, ...] = ()
        self._busy_s = self._prefill_s = self._sequence_s = self._kv_byte_s = self._kv_mark_s = 0.0
        self._steps = 0

    @property
    def in_step(self) -> bool:
        return self.begun_s < INFINITE

    def step(self, duration: float, prefill_s: float, sequences: int) -> None:
        """Book a step that has ended: how long it took, prefill's part of that, and the sequences that ran."""
        self.begun_s = INFINITE
        self._steps += 1
        self._busy_s += duration
        self._sequence_s += sequences * duration
        if prefill_s:
            self._prefill_s += prefill_s

    def cancel(self, now: float, sequences: int, prefills: bool) -> None:
        """Book what a step has run that will not end; `sequences` ran in it; prefills: it was prefill's alone."""
        ran = now - self.begun_s
        self.begun_s = INFINITE
        self._busy_s += ran
        self._prefill_s += ran if prefills else 0.0
        self._sequence_s += sequences * ran

    def hold(self, now: float, kv_bytes: float) -> None:
        """From now on `kv_bytes` are held."""
        self._kv_byte_s += self.kv_bytes * (now - self._kv_mark_s)
        self._kv_mark_s = now
        self.kv_bytes = kv_bytes

    def usage(self, now: float, sequences: int, prefills: bool) -> Usage:
        """Integrals up to now, where `sequences` run; prefills: the step under way is prefill's alone."""
        running = max(0.0, now - self.begun_s)
        return Usage(
            self._busy_s + running,
            self._prefill_s + (running if prefills else 0.0),
            self._steps,
            self._sequence_s + running * sequences,
            self._kv_byte_s + self.kv_bytes * (now - self._kv_mark_s),
            sum(link.busy_s(now) for link in self.links) / len(self.links) if self.links else 0.0,
        )

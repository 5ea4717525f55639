"""How busy one instance is: integrals over its life."""

from __future__ import annotations

from simulator.des.primitives.links import Link
from simulator.des.records.request_log import Usage

INFINITE = float("inf")


class Meter:
    """The books of one instance, which books its steps as they end; `usage` adds what the one under way has run.

    begun_s: when the step under way began, or the steps that decode the same sequences; infinite between steps.
    links: of each rank, over which KV is handed over.
    """

    __slots__ = ("begun_s", "busy_s", "links", "prefill_s", "prefill_steps", "sequence_s")

    def __init__(self) -> None:
        self.begun_s = INFINITE
        self.links: tuple[Link, ...] = ()
        self.busy_s = 0.0  # in steps
        self.prefill_s = 0.0  # of that, prefill's part
        self.sequence_s = 0.0  # sequences that ran, times how long
        self.prefill_steps = 0  # without decode; the batch counts those that decode

    @property
    def in_step(self) -> bool:
        return self.begun_s < INFINITE

    def cancel(self, now: float, sequences: int, prefills: bool) -> None:
        """Book what a step has run that will not end; `sequences` ran in it; prefills: it was prefill's alone."""
        ran = now - self.begun_s
        self.begun_s = INFINITE
        self.busy_s += ran
        self.prefill_s += ran if prefills else 0.0
        self.sequence_s += sequences * ran

    def usage(self, now: float, sequences: int, prefills: bool, decode_steps: int, kv_byte_s: float) -> Usage:
        """Integrals up to now, where `sequences` run; prefills: the step under way is prefill's alone; decode_steps,
        kv_byte_s: what others count."""
        running = max(0.0, now - self.begun_s)
        return Usage(
            self.busy_s + running,
            self.prefill_s + (running if prefills else 0.0),
            self.prefill_steps + decode_steps,
            self.sequence_s + running * sequences,
            kv_byte_s,
            sum(link.busy_s(now) for link in self.links) / len(self.links) if self.links else 0.0,
        )

"""How busy one instance is: integrals over its life."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass

from simulator.des.primitives.clock import Clock

INFINITE = float("inf")


@dataclass(frozen=True)
class Usage:
    """Integrals over the life of one instance up to a moment."""

    busy_s: float  # inside a step
    prefill_s: float  # the part of busy_s that prefill is charged with
    steps: int
    sequence_s: float  # running sequences, integrated over time
    kv_byte_s: float  # KV held or reserved, integrated over time; what a step adds counts from its end
    link_s: float  # KV arriving or leaving, as seconds at the full rate of the links; mean over the instance's ranks

    @classmethod
    def total(cls, of: Iterable[Usage]) -> Usage:
        """Sums over instances, of which there is at least one."""
        return cls(*(sum(column) for column in zip(*map(astuple, of), strict=True)))

    def since(self, earlier: Usage) -> Usage:
        return Usage(
            self.busy_s - earlier.busy_s,
            self.prefill_s - earlier.prefill_s,
            self.steps - earlier.steps,
            self.sequence_s - earlier.sequence_s,
            self.kv_byte_s - earlier.kv_byte_s,
            self.link_s - earlier.link_s,
        )


class UsageCounter:
    """Counts the steps of one instance as they end; `until` adds what the one under way has run.

    begun_s: when the step under way began, or the steps that decode the same sequences; infinite between steps.
    """

    __slots__ = ("_clock", "_decodes", "begun_s", "busy_s", "prefill_s", "prefill_steps", "sequence_s")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._decodes = False  # the step under way
        self.begun_s = INFINITE
        self.busy_s = 0.0  # in steps
        self.prefill_s = 0.0  # of that, prefill's part
        self.sequence_s = 0.0  # sequences that ran, times how long
        self.prefill_steps = 0  # without decode; the batch counts those that decode

    @property
    def in_step(self) -> bool:
        return self.begun_s < INFINITE

    def begin(self, decodes: bool) -> float:
        """A step begins, which decodes or is prefill's alone; when. [s]"""
        self._decodes = decodes
        self.begun_s = now = self._clock.now
        return now

    def end(self, duration_s: float, prefill_s: float, sequences: int) -> None:
        """The step is over: prefill is charged with a part of its time, and `sequences` ran in it."""
        self.begun_s = INFINITE
        self.busy_s += duration_s
        self.sequence_s += sequences * duration_s
        self.prefill_s += prefill_s
        if not self._decodes:
            self.prefill_steps += 1

    def end_decoding(self, sequences: int) -> None:
        """Steps that decoded the same `sequences` end now; others may follow at once."""
        now = self._clock.now
        ran = now - self.begun_s
        self.begun_s = now
        self.busy_s += ran
        self.sequence_s += sequences * ran

    def stop(self) -> None:
        """No step is under way any more."""
        self.begun_s = INFINITE

    def cancel(self, sequences: int) -> None:
        """Count what a step has run that will not end; `sequences` ran in it."""
        ran = self._clock.now - self.begun_s
        self.begun_s = INFINITE
        self.busy_s += ran
        self.prefill_s += 0.0 if self._decodes else ran
        self.sequence_s += sequences * ran

    def until_now(self, sequences: int, decode_steps: int, kv_byte_s: float, link_s: float) -> Usage:
        """Integrals up to now, where `sequences` run; decode_steps, kv_byte_s, link_s: what others count."""
        running = max(0.0, self._clock.now - self.begun_s)
        return Usage(
            self.busy_s + running,
            self.prefill_s + (0.0 if self._decodes else running),
            self.prefill_steps + decode_steps,
            self.sequence_s + running * sequences,
            kv_byte_s,
            link_s,
        )

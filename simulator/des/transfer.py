"""KV hand-over between instances: each attention rank's NICs are one link that transfers share in order."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import simpy

from simulator.des.batching import Rank
from simulator.des.instance import Handover, Instance
from simulator.des.journal import Journal


class Interconnect:
    """Moves the KV of one sequence from the NICs of a prefill rank to those of a decode rank.

    A transfer shakes hands, waits until both ends are free, and then holds both for bytes / rate, where
    rate = efficiency * min over both ends of (NIC rate of one accelerator * accelerators of the rank).
    First come first served, by the time the room was reserved.
    """

    def __init__(
        self,
        env: simpy.Environment,
        journal: Journal,
        transfer_bytes: Callable[[int], float],
        efficiency: float,
        handshake_s: float,
    ) -> None:
        self.env = env
        self.journal = journal
        self.transfer_bytes = lru_cache(maxsize=1 << 17)(transfer_bytes)
        self.efficiency = efficiency
        self.handshake_s = handshake_s

    def fetch(self, handover: Handover, destination: Instance, rank: Rank) -> None:
        """Start a transfer; on arrival frees the KV at the source and delivers the sequence."""
        env = self.env
        source = handover.source
        slower = min(source.spec.rank_bandwidth, destination.spec.rank_bandwidth)
        wire_s = self.transfer_bytes(handover.tokens - 1) / (self.efficiency * slower)
        start = max(env.now + self.handshake_s, handover.rank.link_free_s, rank.link_free_s)
        handover.rank.link_free_s = rank.link_free_s = start + wire_s
        source.take_wire(handover.request, start, wire_s)
        destination.take_wire(handover.request, start, wire_s)
        arrival = env.timeout(start + wire_s - env.now)

        def deliver(_: simpy.Event) -> None:
            source.free_wire(handover.request)
            destination.free_wire(handover.request)
            self.journal.delivered_s[handover.request] = env.now
            handover.rank.release(handover.tokens)
            if source.waiting:
                source.kick()
            destination.deliver(handover, rank)

        assert arrival.callbacks is not None
        arrival.callbacks.append(deliver)

"""KV hand-over between instances: each attention rank's NICs are one link that transfers share in order."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import simpy

from simulator.des.batching import Rank
from simulator.des.instance import Handover, Instance
from simulator.des.journal import Journal
from simulator.des.scenario import Transfer


class Interconnect:
    """Moves the KV of one sequence from the NICs of a prefill rank to those of a decode rank.

    A transfer shakes hands, waits until both ends are free, and then holds both for bytes / rate, where
    rate = efficiency * min over both ends of (NIC rate of one accelerator * accelerators of the rank).
    First come first served, by the time the room was reserved.
    Messages of m bytes (the transfer, or a layer's part) reach m / (m + half_rate_bytes) of the rate.
    Layerwise: the wire may be taken from the end of the first layer's prefill on, and the last layer's part goes
    after the end of prefill; only where room was found as prefill ended, for nothing is sent without room.
    An over-subscribed spine serves all transfers in the same order, each for bytes / (nic_total * efficiency /
    oversubscription); a transfer ends when both its NICs and the spine are done with it.
    """

    def __init__(
        self,
        env: simpy.Environment,
        journal: Journal,
        transfer_bytes: Callable[[int], float],
        keys: Transfer,
        layers: int = 1,
        nic_total: float = float("inf"),
    ) -> None:
        self.env = env
        self.journal = journal
        self.transfer_bytes = lru_cache(maxsize=1 << 17)(transfer_bytes)
        self.efficiency = keys.efficiency
        self.handshake_s = keys.handshake_s
        self._half_rate_bytes = keys.half_rate_bytes
        self._layers = layers if keys.overlap == "layerwise" else 1
        self._spine_rate = nic_total * keys.efficiency / keys.oversubscription if keys.oversubscription > 1 else None
        self._spine_free_s = 0.0

    def fetch(self, handover: Handover, destination: Instance, rank: Rank) -> None:
        """Start a transfer that ends in `destination.deliver`."""
        env = self.env
        source = handover.source
        slower = min(source.spec.rank_bandwidth, destination.spec.rank_bandwidth)
        size = self.transfer_bytes(handover.tokens - 1)
        layers = self._layers
        wire_s = (size + layers * self._half_rate_bytes) / (self.efficiency * slower) if size else 0.0
        now = env.now
        if (
            layers > 1
            and self.journal.first_token_s[handover.request] == now
            and not self.journal.preemptions[handover.request]
        ):
            begun = self.journal.prefill_start_s[handover.request]
            first_end = begun + (now - begun) / layers
            last_sent = now + wire_s / layers
        else:
            first_end, last_sent = now, 0.0
        start = max(first_end + self.handshake_s, handover.rank.link_free_s, rank.link_free_s)
        end = max(start + wire_s, last_sent)
        if self._spine_rate is not None:
            self._spine_free_s = max(start, self._spine_free_s) + size / self._spine_rate
            end = max(end, self._spine_free_s)
        handover.rank.link_free_s = rank.link_free_s = end
        sent = source.meter.take_wire(start, wire_s)
        received = destination.meter.take_wire(start, wire_s)
        arrival = env.timeout(end - now)

        def deliver(_: simpy.Event) -> None:
            source.meter.free_wire(sent)
            destination.meter.free_wire(received)
            destination.deliver(handover, rank)

        assert arrival.callbacks is not None
        arrival.callbacks.append(deliver)

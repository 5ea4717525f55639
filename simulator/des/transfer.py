"""KV hand-over between instances: the links of attention ranks, and the spine between them, are shared fairly."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import simpy

from simulator.des.batching import Rank
from simulator.des.instance import Instance
from simulator.des.intake import Handover
from simulator.des.links import Fabric, Flow, Link
from simulator.des.scenario import Transfer
from simulator.des.spines import Spines


class _Move(Flow):
    """KV on its way to the room that a decode instance has reserved for it."""

    __slots__ = ("body", "destination", "earliest_s", "handover", "interconnect", "rank")

    def __init__(
        self,
        interconnect: Interconnect,
        handover: Handover,
        destination: Instance,
        rank: Rank,
        links: tuple[Link, ...],
        size: float,
        earliest_s: float,
    ) -> None:
        Flow.__init__(self, links, size)
        self.interconnect = interconnect
        self.handover = handover
        self.destination = destination
        self.rank = rank
        self.earliest_s = earliest_s  # hands are shaken then
        self.body: _Body | None = None

    def ended(self) -> None:
        """All of the KV is there."""
        del self.interconnect.moves[self]
        self.destination.deliver(self.handover, self.rank)


class _Body(Flow):
    """The part of a move that leaves while its prompt is still being computed."""

    __slots__ = ("move",)

    def __init__(self, move: _Move, links: tuple[Link, ...], size: float) -> None:
        Flow.__init__(self, links, size)
        self.move = move

    def ended(self) -> None:
        self.move.body = None
        self.move.interconnect.body_arrived(self.move)


class _Stream:
    """A prompt whose last chunk is being computed from `begun_s` to `ready_s`."""

    __slots__ = ("begun_s", "last_part", "move", "ready_s")

    def __init__(self, begun_s: float, ready_s: float, last_part: float) -> None:
        self.begun_s = begun_s
        self.ready_s = ready_s
        self.last_part = last_part  # of the prompt's KV that the last chunk makes
        self.move: _Move | None = None  # once a decode instance has room


class Interconnect:
    """Moves the KV of sequences from prefill ranks to decode ranks.

    A transfer shakes hands and is then a flow over the link of the source rank, that of the destination rank and,
    where the network is over-subscribed, the spine of the source's rails. A rank's link has
    achieved share * (rate of one accelerator's link) * (accelerators of the rank), each way.
    Messages of m bytes (the transfer, or a layer's part) take as long as m + half_rate_bytes at that rate.
    Layerwise: the decode instance is chosen as the prompt's last chunk starts. Once there is room, all but the last
    layer of that chunk leaves while it is computed, no faster than layers are done; the last layer's part follows.
    """

    def __init__(
        self,
        env: simpy.Environment,
        transfer_bytes: Callable[[int], float],
        keys: Transfer,
        layers: int = 1,
    ) -> None:
        self.env = env
        self.fabric = Fabric(env)
        self.streams = keys.overlap == "layerwise" and layers > 1
        self._transfer_bytes = lru_cache(maxsize=1 << 17)(transfer_bytes)
        self._efficiency = keys.achieved
        self._handshake_s = keys.handshake_s
        self._layers = layers
        self._overhead_bytes = keys.half_rate_bytes * (layers if self.streams else 1)
        self._links: dict[Instance, tuple[Link, ...]] = {}
        self.spines = Spines()
        self._paths: dict[tuple[Instance, int, Instance, int], tuple[Link, ...]] = {}
        self.moves: dict[_Move, None] = {}  # under way
        self._streaming: dict[int, _Stream] = {}  # by request

    def links(self, instance: Instance) -> tuple[Link, ...]:
        """The link of each rank; none where links are infinitely fast."""
        links = self._links.get(instance)
        if links is None:
            rate = self._efficiency * instance.spec.rank_bandwidth
            links = tuple([Link(rate) for _ in range(instance.spec.ranks)]) if rate < math.inf else ()
            self._links[instance] = instance.meter.links = links
        return links

    def _path(self, source: Instance, out_rank: int, destination: Instance, into_rank: int) -> tuple[Link, ...]:
        """The links between two ranks."""
        out, into = self.links(source), self.links(destination)
        ends = (*out[out_rank : out_rank + 1], *into[into_rank : into_rank + 1])
        path = self._paths[source, out_rank, destination, into_rank] = (*ends, *self.spines.of(source, out_rank))
        return path

    def fetch(self, destination: Instance, handover: Handover, rank: Rank) -> None:
        """Start a transfer into reserved room; it ends in `destination.deliver`."""
        size = self._transfer_bytes(handover.tokens - 1)
        if size:
            size += self._overhead_bytes
        ends = (handover.source, handover.rank.index, destination, rank.index)
        path = self._paths.get(ends) or self._path(*ends)
        earliest_s = self.env.now + self._handshake_s
        move = _Move(self, handover, destination, rank, path, size, earliest_s)
        self.moves[move] = None
        stream = self._streaming.get(handover.request) if self.streams else None
        if stream is None:
            self.fabric.send(move, earliest_s)
        else:
            stream.move = move
            self._send_body(stream, move)

    # Layer by layer

    def announce(self, handover: Handover, ready_s: float, last_part: float) -> None:
        """The last chunk of a prompt, which makes `last_part` of its KV, is computed from now to `ready_s`."""
        self._streaming[handover.request] = _Stream(self.env.now, ready_s, last_part)

    def _send_body(self, stream: _Stream, move: _Move) -> None:
        """Send all but the last layer of the last chunk as it is computed, if hands are shaken by then."""
        first_layer_s = (stream.ready_s - stream.begun_s) / self._layers if stream.last_part == 1.0 else 0.0
        start_s = max(move.earliest_s, stream.begun_s + first_layer_s)
        size = move.left_bytes * (1.0 - stream.last_part / self._layers)
        if size and start_s < stream.ready_s:
            move.left_bytes -= size
            as_made = Link(size / (stream.ready_s - start_s))
            move.body = _Body(move, (*move.links, as_made), size)
            self.fabric.send(move.body, start_s)

    def body_arrived(self, move: _Move) -> None:
        """The rest follows once the prompt is computed."""
        if move.handover.request not in self._streaming:
            self._send_rest(move)

    def computed(self, handover: Handover) -> None:
        """The announced prompt is computed: the rest of its KV may leave when what is on the way has arrived."""
        move = self._streaming.pop(handover.request).move
        if move is not None and move.body is None:
            self._send_rest(move)

    def _send_rest(self, move: _Move) -> None:
        self.fabric.send(move, max(self.env.now, move.earliest_s))

    # Faults

    def set_speed(self, instance: Instance, share: float) -> None:
        """Leave the links of an instance `share` of their rate: 0 takes them down, 1 mends them."""
        for link in self.links(instance):
            self.fabric.set_rate(link, share)

    def drop(self, instance: Instance) -> None:
        """End all transfers from and to an instance that has just failed; room reserved elsewhere is freed."""
        for move in [m for m in self.moves if instance in (m.handover.source, m.destination)]:
            del self.moves[move]
            self.fabric.abort(move.body or move)
            stream = self._streaming.get(move.handover.request)
            if stream is not None and stream.move is move:
                stream.move = None
            move.destination.deliver(move.handover, move.rank)

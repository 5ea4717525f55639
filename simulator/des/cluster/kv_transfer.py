"""KV hand-over between instances: the links of attention ranks, and the spine between them, are shared fairly."""

from __future__ import annotations

import math
from collections.abc import Callable

from simulator.des.cluster.spines import Spines
from simulator.des.instance.handover import Handover, KvDestination, KvSource
from simulator.des.instance.instance import Instance
from simulator.des.instance.rank import Rank
from simulator.des.instance.spec import InstanceSpec
from simulator.des.primitives.clock import Environment
from simulator.des.primitives.links import Fabric, Flow, Link
from simulator.scenario import Transfer

REMEMBERED = 1 << 17  # sizes that a table holds


class _Body(Flow):
    """The part of a hand-over that leaves while its prompt is still being computed."""

    __slots__ = ("handover", "interconnect")

    def __init__(self, interconnect: Interconnect, handover: Handover, links: tuple[Link, ...], size: float) -> None:
        Flow.__init__(self, links, size)
        self.interconnect = interconnect
        self.handover = handover

    def ended(self) -> None:
        self.handover.body_ended()
        self.interconnect.body_arrived(self.handover)


class _LayerStream:
    """A prompt whose last chunk is being computed from `begun_s` to `ready_s`."""

    __slots__ = ("begun_s", "handover", "last_part", "ready_s")

    def __init__(self, begun_s: float, ready_s: float, last_part: float) -> None:
        self.begun_s = begun_s
        self.ready_s = ready_s
        self.last_part = last_part  # of the prompt's KV that the last chunk makes
        self.handover: Handover | None = None  # once a decode instance has room


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
        env: Environment,
        transfer_bytes: Callable[[int], float],
        keys: Transfer,
        layers: int = 1,
    ) -> None:
        self.env = env
        self.fabric = Fabric(env)
        self.streams = keys.overlap == "layerwise" and layers > 1
        self._transfer_bytes = transfer_bytes
        self._sizes: dict[int, float] = {}  # by tokens; bytes as they count, half_rate_bytes included
        self._efficiency = keys.achieved
        self._handshake_s = keys.handshake_s
        self._layers = layers
        self._overhead_bytes = keys.half_rate_bytes * (layers if self.streams else 1)
        self._spines = Spines()
        self._paths: dict[tuple[KvSource, int, KvDestination, int], tuple[Link, ...]] = {}
        self.under_way: dict[Handover, None] = {}
        self._streaming: dict[int, _LayerStream] = {}  # by request

    def rank_rate(self, spec: InstanceSpec) -> float:
        """What the link of an attention rank reaches. [B/s]"""
        return self._efficiency * spec.rank_bandwidth

    def make_links(self, spec: InstanceSpec) -> tuple[Link, ...]:
        """The link of each rank of an instance; none where links are infinitely fast."""
        rate = self.rank_rate(spec)
        return tuple([Link(rate) for _ in range(spec.ranks)]) if rate < math.inf else ()

    def share_spines(self, spines: Spines) -> None:
        """Let what leaves from now on cross these spines too."""
        self._spines = spines
        self._paths.clear()

    def _path(self, source: KvSource, out_rank: int, destination: KvDestination, into_rank: int) -> tuple[Link, ...]:
        """The links between two ranks."""
        out, into = source.links, destination.links
        ends = (*out[out_rank : out_rank + 1], *into[into_rank : into_rank + 1])
        path = self._paths[source, out_rank, destination, into_rank] = (*ends, *self._spines.of(source, out_rank))
        return path

    def _size(self, tokens: int) -> float:
        """What a hand-over with so many tokens, the one just emitted included, takes of a link's bytes."""
        size = self._transfer_bytes(tokens - 1)
        if size:
            size += self._overhead_bytes
        if len(self._sizes) >= REMEMBERED:
            self._sizes.clear()
        self._sizes[tokens] = size
        return size

    def fetch(self, destination: KvDestination, handover: Handover, rank: Rank) -> None:
        """Start a transfer into reserved room; it ends in `destination.deliver`."""
        size = self._sizes.get(handover.tokens)
        if size is None:
            size = self._size(handover.tokens)
        ends = (handover.source, handover.rank.index, destination, rank.index)
        path = self._paths.get(ends) or self._path(*ends)
        earliest_s = self.env.now + self._handshake_s
        handover.send(destination, rank, path, size, earliest_s, self.under_way)
        stream = self._streaming.get(handover.request) if self.streams else None
        if stream is None:
            self.fabric.send(handover, earliest_s)
        else:
            stream.handover = handover
            self._send_body(stream, handover)

    # Layer by layer

    def announce(self, handover: Handover, ready_s: float, last_part: float) -> None:
        """The last chunk of a prompt, which makes `last_part` of its KV, is computed from now to `ready_s`."""
        self._streaming[handover.request] = _LayerStream(self.env.now, ready_s, last_part)

    def _send_body(self, stream: _LayerStream, handover: Handover) -> None:
        """Send all but the last layer of the last chunk as it is computed, if hands are shaken by then."""
        first_layer_s = (stream.ready_s - stream.begun_s) / self._layers if stream.last_part == 1.0 else 0.0
        start_s = max(handover.earliest_s, stream.begun_s + first_layer_s)
        size = handover.left_bytes * (1.0 - stream.last_part / self._layers)
        if size and start_s < stream.ready_s:
            as_made = Link(size / (stream.ready_s - start_s))
            body = _Body(self, handover, (*handover.links, as_made), size)
            handover.split(body)
            self.fabric.send(body, start_s)

    def body_arrived(self, handover: Handover) -> None:
        """The rest follows once the prompt is computed."""
        if handover.request not in self._streaming:
            self._send_rest(handover)

    def computed(self, handover: Handover) -> None:
        """The announced prompt is computed: the rest of its KV may leave when what is on the way has arrived."""
        taken = self._streaming.pop(handover.request).handover
        if taken is not None and taken.body is None:
            self._send_rest(taken)

    def _send_rest(self, handover: Handover) -> None:
        self.fabric.send(handover, max(self.env.now, handover.earliest_s))

    # Faults

    def set_speed(self, instance: Instance, share: float) -> None:
        """Leave the links of an instance `share` of their rate: 0 takes them down, 1 mends them."""
        for link in instance.links:
            self.fabric.set_rate(link, share)

    def drop(self, instance: Instance) -> None:
        """End all transfers from and to an instance that has just failed; room reserved elsewhere is freed."""
        for handover in [h for h in self.under_way if instance in (h.source, h.destination)]:
            del self.under_way[handover]
            self.fabric.abort(handover.body or handover)
            stream = self._streaming.get(handover.request)
            if stream is not None:
                stream.handover = None
            handover.destination.deliver(handover)

"""The hand-over of a prefilled sequence: its KV flows from a rank of one instance to a rank of another.

KV waits at its source until the destination has room, is fetched into that room and freed at its source once it has
arrived. Who moves it, and over what, is `cluster.kv_transfer`'s matter.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from simulator.des.instance.rank import Rank
from simulator.des.instance.spec import InstanceSpec
from simulator.des.primitives.links import Flow, Link


class KvSource(Protocol):
    """An instance that KV leaves from. links: of each rank; none where they are infinitely fast."""

    @property
    def spec(self) -> InstanceSpec: ...
    @property
    def links(self) -> tuple[Link, ...]: ...

    def holds(self, rank: Rank) -> bool:
        """Whether the rank is still one of the instance's; a failed instance starts with new ones."""
        ...

    def let_go(self, handover: Handover) -> None:
        """The KV has arrived elsewhere and is freed here."""
        ...


class KvDestination(Protocol):
    """An instance that KV comes to. links: as a source's."""

    @property
    def links(self) -> tuple[Link, ...]: ...

    def deliver(self, handover: Handover) -> None:
        """The KV has arrived on its rank here, or its source has failed meanwhile."""
        ...


class Handover(Flow):
    """A prefilled sequence whose KV waits on `rank` of `source` for a decode instance to take it, and the flow of KV.

    destination, into: the instance that takes it and the rank with room. earliest_s: hands are shaken then.
    body: the part that leaves while the prompt is computed. under_way: where it is listed until it has arrived.
    """

    __slots__ = ("body", "destination", "earliest_s", "into", "rank", "request", "source", "tokens", "under_way")

    destination: KvDestination
    into: Rank
    earliest_s: float
    body: Flow | None
    under_way: dict[Handover, None]

    def __init__(self, request: int, source: KvSource, rank: Rank, tokens: int) -> None:
        self.request = request
        self.source = source
        self.rank = rank
        self.tokens = tokens

    def send(
        self,
        destination: KvDestination,
        into: Rank,
        links: tuple[Link, ...],
        size_bytes: float,
        earliest_s: float,
        under_way: dict[Handover, None],
    ) -> None:
        """Set out for a rank of another instance."""
        self.destination = destination
        self.into = into
        self.links = links
        self.left_bytes = size_bytes
        self.earliest_s = earliest_s
        self.body = None
        self.under_way = under_way
        under_way[self] = None

    def split(self, body: Flow) -> None:
        """A part leaves before the rest."""
        self.left_bytes -= body.left_bytes
        self.body = body

    def body_ended(self) -> None:
        """That part is there."""
        self.body = None

    def place(self, into: Rank) -> None:
        """Take KV that has come into host memory to a rank that has room now."""
        self.into = into

    @property
    def is_lost(self) -> bool:
        """Whether the source has failed since, and the KV with it."""
        return not self.source.holds(self.rank)

    def ended(self) -> None:
        """All of the KV is there."""
        del self.under_way[self]
        self.destination.deliver(self)


class Streams(Protocol):
    """Takes the KV of prompts while their last chunk is computed."""

    def announce(self, handover: Handover, ready_s: float, last_part: float) -> None:
        """The last chunk, which makes `last_part` of the prompt's KV, is computed from now to `ready_s`."""
        ...

    def computed(self, handover: Handover) -> None:
        """An announced prompt is computed."""
        ...


class Losses(NamedTuple):
    """What a failed instance held: requests whose KV is gone, and hand-overs to it whose KV is still at the source."""

    requests: list[int]
    handovers: list[Handover]

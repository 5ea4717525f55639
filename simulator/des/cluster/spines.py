"""What transfers out of prefill instances share beyond the links of their ranks: an over-subscribed spine, by rails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from simulator.des.instance.handover import KvSource
from simulator.des.primitives.links import Link
from simulator.scenario import ScenarioError


class Spines:
    """Spines side by side, and the one that each attention rank is on; none where nothing is over-subscribed."""

    def __init__(self, links: tuple[Link, ...] = (), first_rank: Mapping[KvSource, int] | None = None) -> None:
        """first_rank: the number of an instance's first rank among all ranks, which lie on the spines in turn."""
        self.links = links
        self._first_rank = first_rank or {}

    def of(self, instance: KvSource, rank: int) -> tuple[Link, ...]:
        if not self.links:
            return ()
        return (self.links[(self._first_rank[instance] + rank) % len(self.links)],)


def make_spines(rank_rates: Mapping[KvSource, float], oversubscription: float, rails: int) -> Spines:
    """The spines that the ranks of instances share, from the rate that the link of each of their ranks reaches. [B/s]

    One spine; or one for each group of rails that ranks lie on, as many as there are ranks in a row of rails, each
    for the links of those ranks. Ranks are counted through the instances and fill rails in turn.
    """
    if oversubscription == 1 or not rank_rates:
        return Spines()
    widths = {max(1, instance.spec.gpus // instance.spec.ranks) for instance in rank_rates}
    if rails > 1 and len(widths) > 1:
        raise ScenarioError(
            f"rails={rails} need attention ranks of one size, and prefill has some of "
            f"{' and '.join(map(str, sorted(widths)))} accelerators; leave rails out, or cut prefill alike"
        )
    width = min(widths)
    if max(rails, width) % min(rails, width):
        raise ScenarioError(
            f"rails={rails} cannot be shared out to attention ranks of {width} accelerators; one has to "
            "divide the other"
        )
    first_rank: dict[KvSource, int] = {}
    ranks = 0
    for instance in rank_rates:
        first_rank[instance] = ranks
        ranks += instance.spec.ranks
    count = min(max(1, rails // width), ranks)
    rates: list[Counter[float]] = [
        Counter() for _ in range(count)
    ]  # of each spine its ranks by the rate of their links
    for instance, first in first_rank.items():
        for rank in range(first, first + instance.spec.ranks):
            rates[rank % count][rank_rates[instance] / oversubscription] += 1
    links = tuple([Link(sum(ranks * rate for rate, ranks in own.items())) for own in rates])
    return Spines(links, first_rank)

"""Collectives over a group of accelerators: over the fast fabric inside a domain, over NICs beyond it.

A group of R ranks spans ceil(R / domain) domains. Beyond one domain collectives run level by level: inside the
domain first, then between domains on each rank's share. Bytes are those one accelerator sends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hw_profiles.efficiency import OpClass
from simulator.model.ops import LinkName, Op


@dataclass(frozen=True)
class RankGroup:
    """`ranks` accelerators that talk, of an instance on a fabric that joins `domain` of them.

    stride: accelerators between neighbours of the group (data-parallel ranks lie `tp` apart).
    one_shot: inside a domain a small message takes one latency (kernels that write to all peers at once, switches that
    reduce); else messages are passed on, and one for each doubling of ranks: NCCL takes 6.3, 13 and 25 us for a few KB
    on 2, 4 and 8 cards over PCIe (op tables of aiconfigurator-core 0.12.0, RTX PRO 6000). Large messages are cut in
    both: kernels change over to reduce-scatter and all-gather.
    """

    ranks: int
    domain: int
    stride: int = 1
    one_shot: bool = True

    @property
    def inside(self) -> int:
        """Ranks of the group in one domain."""
        return max(1, min(self.ranks, self.domain // self.stride))

    @property
    def domains(self) -> int:
        return math.ceil(self.ranks / self.inside)

    @property
    def hops_inside(self) -> float:
        """Latencies of a collective inside a domain."""
        return 1.0 if self.one_shot else max(1.0, math.log2(self.inside))

    @property
    def hops_between(self) -> int:
        """Latencies of a tree over the domains."""
        return max(1, math.ceil(math.log2(self.domains)))


def all_reduce(name: str, size: float, group: RankGroup) -> list[Op]:
    """Every rank ends with the sum of `size` bytes: 2 (R-1)/R size sent by each (reduce-scatter, all-gather)."""
    inside, domains = group.inside, group.domains
    ops = []
    if inside > 1:
        ops.append(_op(name, 2 * (inside - 1) / inside * size, "scale_up", 2 * size, group.hops_inside))
    if domains > 1:
        share = size / inside
        sent = 2 * (domains - 1) / domains * share
        ops.append(_op(f"{name} between domains", sent, "scale_out", 2 * share, group.hops_between))
    return ops


def all_gather(name: str, size: float, group: RankGroup) -> list[Op]:
    """Every rank ends with `size` bytes, of which it had size / R. A reduce-scatter sends the same."""
    inside, domains = group.inside, group.domains
    ops = []
    if domains > 1:
        sent = (domains - 1) * size / group.ranks
        ops.append(_op(f"{name} between domains", sent, "scale_out", size / inside, group.hops_between))
    if inside > 1:
        ops.append(_op(name, (inside - 1) / inside * size, "scale_up", size, group.hops_inside))
    return ops


def _op(name: str, sent: float, link: LinkName, touched: float, hops: float = 1) -> Op:
    return Op(name, OpClass.ALL_REDUCE, hbm_bytes=touched, network_bytes=sent, link=link, hops=hops)


def all_to_all(name: str, inside_bytes: float, outside_bytes: float, group: RankGroup) -> Op:
    """One exchange. Both links work at once; beyond one domain the NIC is taken as the one that binds."""
    touched = inside_bytes + outside_bytes
    if group.domains > 1:
        return Op(name, OpClass.ALL_TO_ALL, hbm_bytes=touched, network_bytes=outside_bytes, link="scale_out")
    return Op(name, OpClass.ALL_TO_ALL, hbm_bytes=touched, network_bytes=inside_bytes, link="scale_up")


def point_to_point(name: str, size: float, link: LinkName, count: int) -> Op:
    """One hand-over of `size` bytes to the next pipeline stage, `count` times."""
    return Op(name, OpClass.POINT_TO_POINT, hbm_bytes=size, network_bytes=size, link=link, count=count)

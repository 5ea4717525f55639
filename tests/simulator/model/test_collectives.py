from __future__ import annotations

import pytest

from simulator.model.collectives import RankGroup, all_gather, all_reduce


def _sent(ops: list, link: str) -> float:
    return sum(op.network_bytes for op in ops if op.link == link)


def test_one_rank_says_nothing() -> None:
    assert all_reduce("x", 1e6, RankGroup(1, 8)) == []
    assert all_gather("x", 1e6, RankGroup(1, 8)) == []


def test_all_reduce_inside_a_domain_sends_twice_the_rest() -> None:
    """Reduce-scatter and all-gather each send (R-1)/R of the buffer."""
    ops = all_reduce("x", 8e6, RankGroup(8, 8))
    assert _sent(ops, "scale_up") == pytest.approx(14e6)
    assert _sent(ops, "scale_out") == 0


def test_all_gather_delivers_every_byte_once() -> None:
    """Over all ranks, bytes received = R * size - what each had, inside one domain and over NICs alone."""
    size, ranks = 6e6, 4
    for domain, link in ((8, "scale_up"), (1, "scale_out")):
        ops = all_gather("x", size, RankGroup(ranks, domain))
        assert ranks * _sent(ops, link) == pytest.approx((ranks - 1) * size)


def test_two_domains_send_only_shares_between_them() -> None:
    """16 ranks in domains of 8: each NIC carries the all-reduce of one eighth between two domains."""
    ops = all_reduce("x", 16e6, RankGroup(16, 8))
    assert _sent(ops, "scale_up") == pytest.approx(2 * 7 / 8 * 16e6)
    assert _sent(ops, "scale_out") == pytest.approx(2 * 1 / 2 * 16e6 / 8)
    gather = all_gather("x", 16e6, RankGroup(16, 8))
    assert _sent(gather, "scale_out") == pytest.approx(1e6)  # its own share to its peer


def test_ranks_that_lie_apart_share_a_domain_less_often() -> None:
    group = RankGroup(ranks=4, domain=8, stride=4)
    assert (group.inside, group.domains) == (2, 2)


def test_latencies_grow_with_the_levels_of_the_tree() -> None:
    hops = [all_reduce("x", 1.0, RankGroup(8 * n, 8))[-1].hops for n in (2, 4, 8)]
    assert hops == [1, 2, 3]

from __future__ import annotations

import pytest

from hw_profiles.catalog import load
from simulator.model.collectives import RankGroup, all_gather, all_reduce
from simulator.model.parallelism import Parallelism
from simulator.model.roofline import op_seconds
from simulator.model.sharding import Cut


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


@pytest.mark.parametrize(
    ("ranks", "small_us", "large_gb_s"),
    [(2, (6.6, 13.0), (36, 48)), (4, (13.3, 22.8), (28, 33)), (8, (25.6, 29.0), (23, 30))],
)
def test_cards_over_pcie_reduce_as_fast_as_measured(
    ranks: int, small_us: tuple[float, float], large_gb_s: tuple[float, float]
) -> None:
    """RTX PRO 6000, NCCL 2.29.2 and vLLM 0.24.0 (aiconfigurator-core 0.12.0): 4 to 16 KB and 64 MB."""
    hardware = load("rtx_pro_6000")
    group = Cut.of(Parallelism(tp=ranks), hardware).tensor_group
    assert (group.inside, group.domains) == (ranks, 1)

    def seconds(size: float) -> float:
        return sum(op_seconds(op, hardware) for op in all_reduce("x", size, group))

    assert 0.6 * small_us[0] <= 1e6 * seconds(8192.0) <= 1.4 * small_us[1]
    size = 64 * 2.0**20
    assert 0.7 * large_gb_s[0] <= 2 * (ranks - 1) / ranks * size / seconds(size) / 1e9 <= 1.3 * large_gb_s[1]


def test_one_shot_takes_one_latency_and_sends_as_much() -> None:
    passed_on, at_once = (all_reduce("x", 8e3, RankGroup(8, 8, one_shot=shot))[0] for shot in (False, True))
    assert (passed_on.hops, at_once.hops) == (3, 1)
    assert passed_on.network_bytes == at_once.network_bytes


@pytest.mark.parametrize("name", ["rtx_pro_6000", "l40s", "h100_pcie", "a100_pcie"])
def test_cards_of_one_box_share_a_fabric(name: str) -> None:
    hardware = load(name)
    assert hardware.scale_up_domain == 8
    assert not hardware.one_shot
    assert hardware.scale_up_bandwidth == hardware.host_bandwidth
    assert hardware.efficiency.classes["all_reduce"].latency_s < load("a100").efficiency.classes["all_reduce"].latency_s

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest

from simulator.des.cluster.router import Homes, make_router


@dataclass
class Desk:
    load: int = 0
    hits: float = 0.0
    kv_claimed: float = 0.0
    speed: float = 1.0

    def weight(self, request: int) -> int:
        return 1

    def hit_share(self, request: int) -> float:
        return self.hits


def test_round_robin_visits_in_turn() -> None:
    choose = make_router("round_robin", [Desk(), Desk(9), Desk()], np.random.default_rng(0))
    assert [choose(0) for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_least_loaded_takes_the_lowest_index_among_equals() -> None:
    desks = [Desk(3), Desk(1), Desk(1)]
    choose = make_router("least_loaded", desks, np.random.default_rng(0))
    assert choose(0) == 1
    desks[1].load = 5
    assert choose(0) == 2


def test_kv_aware_takes_the_emptiest_and_among_equals_the_least_loaded() -> None:
    desks = [Desk(1, kv_claimed=0.5), Desk(9, kv_claimed=0.2), Desk(8, kv_claimed=0.2)]
    choose = make_router("kv_aware", desks, np.random.default_rng(0))
    assert choose(0) == 2
    desks[2].kv_claimed = 0.6
    assert choose(0) == 1


def test_power_of_two_never_takes_the_fullest_and_spreads_evenly_over_equals() -> None:
    desks = [Desk(), Desk(), Desk(), Desk(100)]
    choose = make_router("power_of_two", desks, np.random.default_rng(0))
    taken = Counter(choose(0) for _ in range(12_000))
    assert taken[3] == 0
    # Three equals and a full one: a pair with the full one leaves its other half, so each equal gets a third.
    assert min(taken.values()) > 0.3 * 12_000


def test_two_choices_leave_shorter_queues_than_blind_turns_at_random_lengths() -> None:
    """Balls into bins with work of random size: the better of two keeps the fullest bin lower."""

    def fullest(name: str) -> int:
        rng = np.random.default_rng(1)
        desks = [Desk() for _ in range(32)]
        choose = make_router(name, desks, np.random.default_rng(2))
        for work in rng.geometric(0.01, 3200).tolist():
            desks[choose(0)].load += work
        return max(desk.load for desk in desks)

    assert fullest("least_loaded") < fullest("power_of_two") < fullest("round_robin")


@pytest.mark.parametrize("name", ["round_robin", "least_loaded", "power_of_two"])
def test_one_instance_takes_everything(name: str) -> None:
    assert make_router(name, [Desk()], np.random.default_rng(0))(0) == 0


def test_prefix_aware_weighs_hits_against_load() -> None:
    desks = [Desk(10, 0.0), Desk(10, 0.5), Desk(10, 0.0)]
    choose = make_router("prefix_aware", desks, np.random.default_rng(0))
    assert choose(0) == 1
    desks[1].load = 40  # twice the mean load: the hit no longer pays
    assert choose(0) == 0


def test_session_affinity_goes_home_until_home_is_overfull() -> None:
    desks = [Desk(4), Desk(3), Desk(5)]
    homes = Homes([0, 0, 1, -1, 0, 0])
    choose = make_router("session_affinity", desks, np.random.default_rng(0), homes)
    assert choose(0) == 1  # new session: least loaded
    desks[1].load = 9  # 9 + 1 <= 2 * (6 + 1)
    assert choose(1) == 1
    assert choose(2) == 0
    desks[1].load = 40  # 40 + 1 > 2 * (49 / 3 + 1)
    assert choose(3) == 0  # in no session
    assert choose(4) == 0
    desks[1].load = 0
    assert choose(5) == 0  # the new home
    fewer = make_router("session_affinity", desks[1:], np.random.default_rng(0), homes)
    assert fewer(0) == 0  # its home is not there any more

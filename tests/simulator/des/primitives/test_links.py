"""Fair sharing of links: hand-worked rates, the definition of max-min fairness, processor-sharing theory."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.des.primitives.clock import Environment
from simulator.des.primitives.links import Fabric, Flow, Link, fair_rates


class Sent(Flow):
    """A flow that says when it has ended."""

    def __init__(self, links: tuple[Link, ...], size: float, done: Callable[[], object]) -> None:
        super().__init__(links, size)
        self.ended = done  # type: ignore[method-assign]


@dataclass
class Wires:
    """A fabric, its links, and when each flow ended."""

    rates: tuple[float, ...]
    env: Environment = field(default_factory=Environment)
    ended: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.fabric = Fabric(self.env)
        self.links = [Link(rate) for rate in self.rates]

    def send(self, name: str, path: tuple[int, ...], size: float, start_s: float = 0.0) -> Flow:
        links = tuple(self.links[i] for i in path)
        flow = Sent(links, size, lambda: self.ended.setdefault(name, self.env.now))
        self.fabric.send(flow, start_s)
        return flow

    def at(self, time_s: float, name: str, path: tuple[int, ...], size: float) -> None:
        self.env.timeout(time_s).callbacks.append(lambda _: self.send(name, path, size, time_s))  # type: ignore[union-attr]


def test_two_equal_flows_get_half_each() -> None:
    wires = Wires((100.0,))
    wires.send("a", (0,), 100.0)
    wires.send("b", (0,), 100.0)
    wires.env.run()
    assert wires.ended == {"a": 2.0, "b": 2.0}


def test_flows_that_end_together_end_in_the_order_of_their_start() -> None:
    """`b` has half of `a`'s bytes left to send when it comes, `c` and `d` come at once over other links as well."""
    wires = Wires((100.0, 100.0))
    wires.send("a", (0,), 200.0)
    wires.at(1.0, "b", (0,), 100.0)
    wires.at(1.5, "c", (1,), 75.0)
    wires.at(1.5, "d", (1,), 75.0)
    wires.env.run()
    assert list(wires.ended.items()) == [("a", 3.0), ("b", 3.0), ("c", 3.0), ("d", 3.0)]


def test_three_flows_over_two_links_by_hand() -> None:
    """Links of 10 and 30 B/s; `both` crosses the two. Rates 5, 5, 25; when `first` ends at 4 s, `both` gets 10."""
    wires = Wires((10.0, 30.0))
    wires.send("first", (0,), 20.0)
    both = wires.send("both", (0, 1), 60.0)
    second = wires.send("second", (1,), 140.0)
    wires.env.run(until=1.0)
    assert (both.rate, second.rate) == (5.0, 25.0)
    wires.env.run()
    # 4 s: first done; both has 40 left at 10 B/s, second has 40 left at 20 B/s till 6 s; both ends at 8 s.
    assert wires.ended == pytest.approx({"first": 4.0, "second": 6.0, "both": 8.0})


def test_a_latecomer_slows_the_flow_under_way_from_then_on() -> None:
    """100 B alone for 0.5 s, then two share: 50 B each take 1 s; the latecomer ends its last 50 B alone."""
    wires = Wires((100.0,))
    wires.send("early", (0,), 100.0)
    wires.at(0.5, "late", (0,), 100.0)
    wires.env.run()
    assert wires.ended == pytest.approx({"early": 1.5, "late": 2.0})


def test_a_flow_booked_ahead_takes_nothing_before_it_begins() -> None:
    wires = Wires((100.0,))
    wires.send("ahead", (0,), 100.0, start_s=2.0)
    wires.at(1.0, "between", (0,), 50.0)
    wires.at(2.5, "late", (0,), 100.0)
    wires.env.run()
    assert wires.ended == pytest.approx({"between": 1.5, "ahead": 3.5, "late": 4.0})


def test_a_link_that_is_down_holds_its_flows_and_a_degraded_one_slows_them() -> None:
    wires = Wires((100.0,))
    wires.send("a", (0,), 100.0)
    for time_s, share in ((0.5, 0.0), (2.5, 0.25), (3.5, 1.0)):
        wires.env.timeout(time_s).callbacks.append(  # type: ignore[union-attr]
            lambda _, share=share: wires.fabric.set_rate(wires.links[0], share)
        )
    wires.at(1.0, "b", (0,), 12.5)
    wires.env.run()
    # 50 B by 0.5 s, nothing till 2.5 s, then 12.5 B/s each for 1 s, which ends b; 37.5 B are left at 100 B/s.
    assert wires.ended == pytest.approx({"b": 3.5, "a": 3.875})
    assert wires.links[0].busy_s(3.875) == pytest.approx(1.125)


def test_an_aborted_flow_leaves_its_share_to_the_others() -> None:
    wires = Wires((100.0,))
    wires.send("stays", (0,), 100.0)
    dropped = wires.send("dropped", (0,), 100.0)
    waiting = wires.send("never begun", (0,), 100.0, start_s=1.25)
    wires.env.timeout(1.0).callbacks.append(lambda _: wires.fabric.abort(dropped))  # type: ignore[union-attr]
    wires.env.timeout(1.0).callbacks.append(lambda _: wires.fabric.abort(waiting))  # type: ignore[union-attr]
    wires.env.run()
    assert wires.ended == pytest.approx({"stays": 1.5})
    assert wires.links[0].carried_bytes == pytest.approx(150.0)


@settings(max_examples=60)
@given(
    st.lists(st.floats(1.0, 100.0), min_size=1, max_size=5),
    st.lists(st.sets(st.integers(0, 4), min_size=1), min_size=1, max_size=8),
)
def test_every_flow_has_a_full_link_on_which_nobody_is_faster(rates: list[float], paths: list[set[int]]) -> None:
    """Bertsekas and Gallager: an allocation is max-min fair if and only if every flow has a bottleneck link."""
    links = [Link(rate) for rate in rates]
    flows = [Flow(tuple(links[i % len(links)] for i in {j % len(links) for j in path}), 1.0) for path in paths]
    given_rates = fair_rates(flows)
    used = {link: sum(given_rates[flow] for flow in flows if link in flow.links) for link in links}
    assert all(used[link] <= link.rate * (1 + 1e-9) for link in links)
    for flow in flows:
        assert any(
            used[link] == pytest.approx(link.rate)
            and given_rates[flow] >= max(given_rates[f] for f in flows if link in f.links) * (1 - 1e-9)
            for link in flow.links
        )


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_bytes_are_carried_once_and_no_link_is_overfull(seed: int) -> None:
    rng = np.random.default_rng(seed)
    wires = Wires(tuple(rng.uniform(5, 50, 4)))
    crossing = [0.0] * 4
    alone: dict[str, float] = {}
    for i in range(30):
        path = tuple(np.flatnonzero(rng.random(4) < 0.4).tolist()) or (0,)
        size, begins = float(rng.exponential(40)), float(rng.uniform(0, 20))
        wires.at(begins, str(i), path, size)
        alone[str(i)] = begins + size / min(wires.rates[j] for j in path)
        for j in path:
            crossing[j] += size
    for now in range(1, 15):
        wires.env.run(until=now)
        assert all(link.busy_s(now) <= now * (1 + 1e-12) for link in wires.links)
    wires.env.run()
    assert [link.carried_bytes for link in wires.links] == pytest.approx(crossing)
    assert not any(link.flows for link in wires.links)
    assert all(wires.ended[name] >= earliest * (1 - 1e-12) for name, earliest in alone.items())


@pytest.mark.parametrize("sizes", ["exponential", "constant"])
def test_a_shared_link_is_a_processor_sharing_queue(sizes: str) -> None:
    """M/G/1-PS: mean sojourn S / (1 - rho), as in M/M/1, whatever the law of the sizes (insensitivity)."""
    rng = np.random.default_rng(7)
    count, rho = 20_000, 0.6
    arrivals = np.cumsum(rng.exponential(1 / rho, count))
    work = rng.exponential(1.0, count) if sizes == "exponential" else np.ones(count)
    env = Environment()
    fabric, link = Fabric(env), Link(1.0)
    sojourn: list[float] = []

    def source() -> simpy.events.ProcessGenerator:
        for arrival_s, size in zip(arrivals.tolist(), work.tolist(), strict=True):
            yield env.timeout(arrival_s - env.now)
            fabric.send(Sent((link,), size, lambda begun=env.now: sojourn.append(env.now - begun)), env.now)

    env.process(source())
    env.run()
    batches = np.array(sojourn).reshape(20, -1).mean(axis=1)
    error = batches.std(ddof=1) / math.sqrt(len(batches))
    assert batches.mean() == pytest.approx(1 / (1 - rho), abs=3 * error)
    assert error < 0.1
    assert link.busy_s(env.now) == pytest.approx(work.sum())

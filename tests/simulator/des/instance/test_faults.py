"""An instance that loses everything it holds."""

from collections import deque
from functools import partial
from typing import Any

import numpy as np
import pytest
from support.clusters import FormulaTimes, make_instance

from simulator.des.cluster.kv_transfer import Interconnect
from simulator.des.instance.handover import Handover
from simulator.des.instance.instance import DecodeInstance, InstanceSetup, PrefillInstance
from simulator.des.instance.scheduler import PromptQueues
from simulator.des.instance.spec import InstanceSpec
from simulator.des.instance.step_loop import start
from simulator.des.primitives.clock import Environment
from simulator.des.records.request_log import RequestLog
from simulator.des.workload.requests import Requests
from simulator.scenario import Transfer


class Pair:
    """A prefill and a decode instance, KV over links that move one token's KV in 1 ms."""

    def __init__(self, prompts: list[int], outputs: list[int], staged: bool = False, places: int = 8) -> None:
        self.env = Environment()
        arrivals = np.zeros(len(prompts))
        self.log = RequestLog([Requests(np.array(prompts), np.array(outputs), arrivals)])
        links = self.links = Interconnect(
            self.env, float, Transfer(efficiency=1.0, handshake_s=0.0, half_rate_bytes=0.0)
        )
        make = partial(make_instance, FormulaTimes(per_prompt_token_s=1e-3, decode_base_s=0.01), nic_bandwidth=1e3)
        self.ended: list[tuple[int, float]] = []
        first, second = make(), make(max_sequences=places)
        self.prefill = PrefillInstance(self._setup(0, first), self._hand_over)
        self.decode = DecodeInstance(self._setup(1, second), links.fetch, staged)
        start(self.prefill)
        start(self.decode)
        for request in range(len(prompts)):
            self.prefill.enqueue(request)

    def _setup(self, index: int, spec: InstanceSpec) -> InstanceSetup:
        links = self.links.make_links(spec)
        return InstanceSetup(self.env, index, spec, spec.times, self.log, PromptQueues(deque()), self._end, links)

    def _end(self, request: int) -> None:
        self.ended.append((request, self.env.now))

    def _hand_over(self, handover: Handover) -> None:
        self.decode.offer(handover)


@pytest.fixture
def pair() -> Any:
    return Pair


def test_a_decode_instance_that_fails_loses_what_has_arrived_and_gives_back_what_has_not(pair: Any) -> None:
    """Prompts of 100 and 200 tokens end at 0.3 s and share the link: KV arrives at 0.5 s and 0.6 s; failure between."""
    two = pair([100, 200], [50, 50])
    two.env.run(0.555)
    losses = two.decode.fail()
    assert losses.requests == [0]
    assert [handover.request for handover in losses.handovers] == [1]
    # 0.5 to 0.555: five steps of 10 ms had ended
    assert two.log.emitted == [6, 1]
    assert two.decode.usage().busy_s == pytest.approx(0.055)
    assert two.decode.is_empty
    assert two.decode.load == 0
    assert not two.prefill.is_empty  # keeps the KV of request 1
    two.env.run(0.9)
    assert two.decode.is_empty  # the old transfer has ended without effect
    two.decode.offer(losses.handovers[0])
    two.env.run()
    assert two.prefill.is_empty
    assert two.decode.is_empty
    assert two.ended == [(1, pytest.approx(0.9 + 0.2 + 49 * 0.01))]


def test_a_prefill_instance_that_fails_takes_the_kv_of_its_hand_overs_with_it(pair: Any) -> None:
    two = pair([100, 200, 400], [50, 50, 50])
    two.env.run(0.75)  # all three in one step of 0.7 s; request 0 is on the wire
    losses = two.prefill.fail()
    two.decode.forget_lost()
    assert losses == ([0, 1, 2], [])
    assert two.prefill.is_empty
    two.env.run()
    assert two.ended == []
    assert two.decode.is_empty
    assert two.decode.load == two.prefill.load == 0
    two.prefill.enqueue(0)  # serves again
    two.env.run()
    assert [request for request, _ in two.ended] == [0]


def test_a_failure_inside_a_step_cuts_it_and_the_queue_can_be_taken_back(pair: Any) -> None:
    two = pair([100, 200], [5, 5])
    two.prefill.admit_newcomers(False)
    two.env.run(1.0)
    assert two.prefill.usage().busy_s == 0.0  # drains: nothing is admitted
    two.prefill.admit_newcomers(True)
    two.prefill.slow_down(3.0)
    two.prefill.kick()
    two.env.run(1.5)  # 0.9 s at a third of the speed
    assert two.prefill.usage().prefill_s == pytest.approx(0.5)
    two.prefill.enqueue(0)
    assert two.prefill.fail() == ([0, 1], [])
    assert two.prefill.load == 100
    assert two.prefill.unqueue() == [0]
    two.env.run(9.0)
    assert two.prefill.usage().busy_s == pytest.approx(0.5)
    assert two.prefill.load == 0
    assert two.prefill.is_empty


def test_dropped_transfers_leave_the_link_and_free_the_room_that_waited_for_them(pair: Any) -> None:
    two = pair([100, 200], [50, 50])
    two.env.run(0.4)  # both on the wire
    assert two.decode.kv_claimed == 0.0  # of infinite room
    two.prefill.fail()
    two.links.drop(two.prefill)
    assert two.decode.is_empty
    assert two.decode.usage().link_s == pytest.approx(0.1)  # what has moved is counted
    assert two.prefill.usage().link_s == pytest.approx(0.1)
    two.env.run()
    assert two.ended == []


def test_a_link_that_goes_down_holds_its_transfers_until_it_is_mended(pair: Any) -> None:
    two = pair([100], [2])
    two.env.run(0.15)
    two.links.set_speed(two.decode, 0.0)
    two.env.run(1.15)
    two.links.set_speed(two.decode, 0.5)
    two.env.run()
    # 0.1 s of prefill, 50 tokens, 1 s of nothing, 50 tokens at half speed, one step
    assert two.ended == [(0, pytest.approx(0.15 + 1.0 + 0.1 + 0.01))]


def test_staged_kv_outlives_its_source_and_is_lost_with_its_stage(pair: Any) -> None:
    """Prompts of 100 and 200 tokens end at 0.3 s and are staged by 0.5 s and 0.6 s; decode has one place."""
    two = pair([100, 200], [50, 50], staged=True, places=1)
    two.env.run(0.65)
    assert two.prefill.is_empty
    assert two.prefill.fail() == ([], [])
    two.decode.forget_lost()
    assert two.decode.stalled_count == 1
    losses = two.decode.fail()
    assert losses == ([0, 1], [])
    assert two.decode.is_empty
    assert two.decode.load == 0


def test_kv_on_its_way_to_a_stage_takes_no_place(pair: Any) -> None:
    """The source fails at 0.55 s, with the KV of request 1 half way: the decode side forgets it."""
    two = pair([100, 200], [50, 50], staged=True)
    two.env.run(0.55)
    assert two.prefill.fail().requests == [1]
    two.links.drop(two.prefill)
    assert two.decode.load == 1
    two.env.run(2.0)
    assert [request for request, _ in two.ended] == [0]
    assert two.decode.is_empty

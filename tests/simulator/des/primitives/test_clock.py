"""Alarms and timeouts share one order of events, that of SimPy."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import simpy

from simulator.des.primitives.clock import Alarm, Environment, OneShot


@pytest.mark.parametrize("timeouts_of", [simpy.Environment, Environment])
def test_alarms_ring_where_timeouts_would(timeouts_of: Callable[[], simpy.Environment]) -> None:
    """Many at the same times, so that the order of setting decides."""
    delays = np.random.default_rng(0).integers(0, 4, size=(30, 40)).astype(float).tolist()

    def play(env: Any, alarms: bool) -> list[tuple[float, int]]:
        rung: list[tuple[float, int]] = []

        def start(number: int, own: list[float]) -> None:
            left = iter(own)

            def ring(_: simpy.Event) -> None:
                rung.append((env.now, number))
                delay = next(left, None)
                if delay is None:
                    return
                if alarms:
                    alarm.set(delay)
                else:
                    env.timeout(delay).callbacks.append(ring)  # type: ignore[union-attr]

            alarm = Alarm(env, ring)
            ring(alarm)

        for number, own in enumerate(delays):
            start(number, own)
        env.run()
        return rung

    assert play(Environment(), alarms=True) == play(timeouts_of(), alarms=False)


def test_the_time_is_the_one_that_simpy_keeps() -> None:
    env = Environment()
    seen = []

    def story() -> simpy.events.ProcessGenerator:
        for _ in range(3):
            yield env.timeout(0.5)
            seen.append(env.now)

    env.run(env.process(story()))
    assert seen == [0.5, 1.0, 1.5]


def test_an_alarm_can_ring_first_or_not_at_all() -> None:
    env = Environment()
    rung = []
    late, first, silent = (Alarm(env, lambda _, name=name: rung.append(name)) for name in ("late", "first", "silent"))
    late.set()
    silent.set()
    first.set_first()
    silent.silence()
    assert late.is_set
    env.run()
    assert rung == ["first", "late"]
    assert not late.is_set


@pytest.mark.parametrize("by_event", [False, True])
def test_one_shots_ring_among_alarms_in_the_order_of_setting(by_event: bool) -> None:
    """Run up to a time, in SimPy's loop, or up to an event, in the clock's own."""
    env = Environment()
    rung: list[tuple[float, str]] = []
    Alarm(env, lambda _: rung.append((env.now, "alarm"))).set(1.0)
    rings = [lambda shot: rung.append((env.now, shot.value))]
    OneShot(env, rings, "first", 1.0)
    OneShot(env, rings, "second", 1.0)
    OneShot(env, rings, "soon", 0.5)
    env.run(env.timeout(1.0) if by_event else 1.1)
    assert rung == [(0.5, "soon"), (1.0, "alarm"), (1.0, "first"), (1.0, "second")]


def test_what_goes_wrong_behind_an_alarm_ends_the_run() -> None:
    env = Environment()

    def ring(_: simpy.Event) -> None:
        raise ValueError("broken")

    Alarm(env, ring).set(1.0)
    with pytest.raises(ValueError, match="broken"):
        env.run()

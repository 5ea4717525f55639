"""Closed forms against textbook values and a direct simulation of the same queue."""

import heapq
import math

import numpy as np
import pytest

from simulator.planner.queueing import erlang_c, mean_wait_s, response_percentile_s


def poisson_erlang_c(servers: int, offered: float) -> float:
    """The textbook sum, term by term."""
    terms = [offered**n / math.factorial(n) for n in range(servers)]
    last = offered**servers / math.factorial(servers) * servers / (servers - offered)
    return last / (sum(terms) + last)


@pytest.mark.parametrize(("servers", "offered"), [(1, 0.3), (2, 1.5), (8, 6.4), (40, 36.0)])
def test_erlang_c_is_the_textbook_sum(servers: int, offered: float) -> None:
    assert erlang_c(servers, offered) == pytest.approx(poisson_erlang_c(servers, offered), rel=1e-12)


def test_everybody_waits_in_an_overloaded_pool() -> None:
    assert erlang_c(3, 3.0) == 1.0
    assert mean_wait_s(3, 3.0, 1.0, 1.0, 1.0) == math.inf


def test_deterministic_service_halves_the_wait_of_exponential_service() -> None:
    # Pollaczek-Khinchine: M/D/1 waits half as long as M/M/1.
    assert mean_wait_s(1, 0.8, 1.0, 1.0, 0.0) == pytest.approx(mean_wait_s(1, 0.8, 1.0, 1.0, 1.0) / 2)
    assert mean_wait_s(1, 0.8, 1.0, 1.0, 1.0) == pytest.approx(0.8 / 0.2)


def test_response_percentile_agrees_with_a_simulated_mm3_queue() -> None:
    """With exponential service the response is wait + service; three servers, 70% busy."""
    rng = np.random.default_rng(5)
    servers, service, rate, n = 3, 1.0, 2.1, 200_000
    free = [0.0] * servers
    now, responses = 0.0, []
    services = rng.exponential(service, n)
    for gap, work in zip(rng.exponential(1 / rate, n), services, strict=True):
        now += gap
        start = max(now, heapq.heappop(free))
        heapq.heappush(free, start + work)
        responses.append(start + work - now)
    samples = -service * np.log1p(-(np.arange(2000) + 0.5) / 2000)
    offered = rate * service
    predicted = response_percentile_s(
        list(samples), erlang_c(servers, offered), mean_wait_s(servers, rate, service, 1, 1), 90
    )
    assert predicted == pytest.approx(float(np.percentile(responses[1000:], 90)), rel=0.03)


def test_without_waiting_the_percentile_is_that_of_the_service_times() -> None:
    assert response_percentile_s([1.0, 2.0, 3.0, 4.0], 0.0, 0.0, 50) == pytest.approx(2.0, abs=1e-6)

"""Waiting in front of a pool, in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence

HALVINGS = 60  # of the interval that holds a percentile: more than the 53 bits of a double
ABOVE_S = 1e-9  # keeps that interval from being empty where nobody waits [s]


def erlang_c(servers: int, offered: float) -> float:
    """Probability that an arrival waits in M/M/c with `offered` Erlang of load.

    >>> round(erlang_c(1, 0.5), 6)
    0.5
    >>> round(erlang_c(2, 1.0), 6)
    0.333333

    Reference: Erlang C by the stable recursion on Erlang B (Cooper, Introduction to Queueing Theory, 1981).
    """
    if offered >= servers:
        return 1.0
    blocking = 1.0
    for n in range(1, servers + 1):
        blocking = offered * blocking / (n + offered * blocking)
    rho = offered / servers
    return blocking / (1 - rho * (1 - blocking))


def mean_wait_s(servers: int, rate: float, service_s: float, arrival_scv: float, service_scv: float) -> float:
    """Mean wait in G/G/c. [s]

    Wq = C(c, a) * S / (c - a) * (ca^2 + cs^2) / 2, a = rate * S

    >>> mean_wait_s(1, 0.5, 1.0, 1.0, 1.0)
    1.0

    Reference: Allen and Cunneen's approximation (exact for M/M/c and M/G/1).
    """
    offered = rate * service_s
    if offered >= servers:
        return math.inf
    return erlang_c(servers, offered) * service_s / (servers - offered) * (arrival_scv + service_scv) / 2


def mean_of_any(mean: float) -> float:
    """Mean of a Poisson number where it is not zero: a / (1 - exp(-a)).

    mean: a, of all, zeros included; above 0.

    >>> round(mean_of_any(1.0), 6)
    1.581977
    """
    return mean / -math.expm1(-mean)


def response_percentile_s(
    services_s: Sequence[float], wait_probability: float, mean_wait: float, percentile: float
) -> float:
    """Percentile of wait + service, the wait being zero or exponential and independent of the service. [s]

    services_s: equally likely service times. wait_probability: share of arrivals that wait at all.
    """
    if not math.isfinite(mean_wait):
        return math.inf
    share = 1 - percentile / 100
    tail = mean_wait / wait_probability if wait_probability > 0 else 0.0

    def exceed(t: float) -> float:
        total = 0.0
        for service in services_s:
            slack = t - service
            if slack < 0:
                total += 1.0
            elif tail > 0:
                total += wait_probability * math.exp(-slack / tail)
        return total / len(services_s)

    low, high = 0.0, max(services_s) + tail * math.log(max(wait_probability / share, 1.0)) + ABOVE_S
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if exceed(middle) > share:
            low = middle
        else:
            high = middle
    return high

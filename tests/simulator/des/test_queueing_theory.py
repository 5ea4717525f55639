"""Clusters reduced to textbook queues: exponential prompts, one output token, one sequence at a time."""

from collections.abc import Callable
from math import factorial
from typing import Any

import numpy as np
import pytest
from scipy.stats import t as student

TOKEN_S = 1e-4
MEAN_TOKENS = 10_000  # service of 1 s on average; rounding to whole tokens adds 1e-8 of variance
REQUESTS = 60_000


def erlang_c_wait_s(servers: int, rate: float, service_s: float) -> float:
    """Mean wait of M/M/c: C(c, a) / (c / service - rate)."""
    offered = rate * service_s
    tail = offered**servers / factorial(servers) * servers / (servers - offered)
    waits = tail / (sum(offered**k / factorial(k) for k in range(servers)) + tail)
    return waits / (servers / service_s - rate)


def interval(values: np.ndarray, batches: int = 30, level: float = 0.99) -> tuple[float, float]:
    """Mean and half-width of its confidence interval, from batch means."""
    means = np.array([part.mean() for part in np.array_split(values, batches)])
    half = student.ppf((1 + level) / 2, batches - 1) * means.std(ddof=1) / np.sqrt(batches)
    return float(means.mean()), float(half)


@pytest.fixture
def queue_wait(times: Any, instance: Any, colocated: Any, play: Any) -> Callable[..., np.ndarray]:
    """Waits of a c-server queue fed by a Poisson stream."""

    def run(servers: int, rate: float, prompts: Callable[[np.random.Generator], np.ndarray], seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        server = instance(times(per_prompt_token_s=TOKEN_S), max_sequences=1, max_tokens_per_step=10**9)
        spec = colocated(server, servers, router="shared_queue")
        arrivals = np.cumsum(rng.exponential(1 / rate, REQUESTS))
        result = play(spec, prompts(rng), np.ones(REQUESTS), arrivals, warmup=REQUESTS // 20)
        waits: np.ndarray = result.requests["queue_s"].to_numpy()[result.measured]
        return waits

    return run


def exponential(rng: np.random.Generator) -> np.ndarray:
    return np.maximum(1, np.rint(rng.exponential(MEAN_TOKENS, REQUESTS)))


@pytest.mark.parametrize(("servers", "rate"), [(1, 0.6), (2, 1.4), (4, 3.2), (8, 6.0)])
def test_exponential_service_waits_as_erlang_c_says(queue_wait: Any, servers: int, rate: float) -> None:
    mean, half = interval(queue_wait(servers, rate, exponential, seed=servers))
    theory = erlang_c_wait_s(servers, rate, 1.0)
    assert abs(mean - theory) < half
    assert half < 0.25 * theory  # a wide interval would prove nothing


def test_general_service_waits_as_pollaczek_and_khinchine_say(queue_wait: Any) -> None:
    def uniform(rng: np.random.Generator) -> np.ndarray:
        return rng.integers(1, 2 * MEAN_TOKENS, REQUESTS)

    rate = 0.6
    mean, half = interval(queue_wait(1, rate, uniform, seed=11))
    second_moment = (2.0**2) / 3
    theory = rate * second_moment / (2 * (1 - rate))
    assert abs(mean - theory) < half
    assert half < 0.1 * theory


def test_running_sequences_obey_littles_law(times: Any, instance: Any, colocated: Any, play: Any) -> None:
    """Mean batch, integrated by the instances, equals rate x mean time in decode, taken from the requests."""
    rng = np.random.default_rng(2)
    count = 3000
    spec = colocated(instance(times(decode_base_s=0.02, per_sequence_s=1e-4)), 3)
    result = play(
        spec, rng.integers(1, 900, count), rng.integers(1, 300, count), np.cumsum(rng.exponential(0.05, count))
    )
    table = result.requests
    decode_s = (table["finish_s"] - table["first_token_s"]).sum()
    integral = sum(usage.sequence_s for usage in result.run.end.usage["colocated"])
    assert integral == pytest.approx(decode_s, rel=1e-9)


def test_a_closed_loop_runs_at_concurrency_over_response_time(
    times: Any, instance: Any, colocated: Any, play: Any
) -> None:
    """12 clients, no prefill time, 101 tokens of 10 ms: each answer takes 1 s, so 12 requests/s leave."""
    spec = colocated(instance(times(per_prompt_token_s=0.0, decode_base_s=0.01)))
    result = play(spec, [5] * 600, [101] * 600, concurrency=12, warmup=60)
    assert result.e2e_s == pytest.approx(np.full(600, 1.0))
    assert result.throughput()["requests_per_s"] == pytest.approx(12.0, rel=0.01)
    assert result.utilization()["colocated"]["batch_mean"] == pytest.approx(12.0, rel=0.01)

"""Clusters reduced to textbook queues, of which theory knows the answer.

Every comparison is with the confidence interval over independent replications. The level is 99.9%, so that all
intervals of this file together hold with about 98%; each test also asks for an interval narrow enough to prove
something. One sequence at a time and one output token make an instance a server; decode steps whose time is in
proportion to the batch make it a shared processor.
"""

from __future__ import annotations

from collections.abc import Callable
from math import factorial, log
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.clusters import FormulaTimes, colocated, disaggregated, make_instance, play

from simulator.des.replicate import Estimate, estimate
from simulator.des.results.result import SimulationResult
from simulator.scenario import Transfer

LEVEL = 0.999
RUNS = 20
REQUESTS = 4000  # of each run, the first tenth left out
TOKEN_S = 1e-4
MEAN_TOKENS = 10_000  # service of 1 s on average; rounding to whole tokens adds 1e-8 of variance

Draw = Callable[[np.random.Generator], NDArray[Any]]


def confirm(theory: float, found: Estimate, width: float) -> None:
    """Theory lies in the interval, which is narrower than `width` of it."""
    assert abs(found.mean - theory) < found.half_width, f"{found} does not hold {theory}"
    assert found.half_width < width * theory


def replicated(run: Callable[[np.random.Generator], float], runs: int = RUNS) -> Estimate:
    streams = np.random.SeedSequence(5).spawn(runs)
    return estimate([run(np.random.default_rng(stream)) for stream in streams], LEVEL)


def exponential(rng: np.random.Generator) -> NDArray[Any]:
    return np.maximum(1, np.rint(rng.exponential(MEAN_TOKENS, REQUESTS)))


def constant(rng: np.random.Generator) -> NDArray[Any]:
    return np.full(REQUESTS, MEAN_TOKENS)


def uniform(rng: np.random.Generator) -> NDArray[Any]:
    return rng.integers(1, 2 * MEAN_TOKENS, REQUESTS)


def hyperexponential(rng: np.random.Generator) -> NDArray[Any]:
    """A tenth of the requests are long: mean 1 s, second moment 2 (0.9 * 0.5^2 + 0.1 * 5.5^2) = 6.5 s^2."""
    means = np.where(rng.random(REQUESTS) < 0.1, 5.5, 0.5) * MEAN_TOKENS
    return np.maximum(1, np.rint(rng.exponential(means)))


def erlang_b(servers: int, offered: float) -> float:
    """Share of arrivals that M/M/c/c refuses."""
    weights = [offered**k / factorial(k) for k in range(servers + 1)]
    return weights[-1] / sum(weights)


def erlang_c(servers: int, offered: float) -> float:
    """Share of arrivals that wait in M/M/c."""
    lost = erlang_b(servers, offered)
    return servers * lost / (servers - offered * (1 - lost))


@pytest.fixture
def queue() -> Callable[..., SimulationResult]:
    """One run of `servers` servers that a Poisson stream feeds."""

    def run(
        rng: np.random.Generator,
        rate: float,
        service: Draw,
        servers: int = 1,
        router: str = "shared_queue",
        **more: Any,
    ) -> SimulationResult:
        server = make_instance(FormulaTimes(per_prompt_token_s=TOKEN_S), max_sequences=1, max_tokens_per_step=10**9)
        arrivals = np.cumsum(rng.exponential(1 / rate, REQUESTS))
        result: SimulationResult = play(
            colocated(server, servers, router, **more),
            service(rng),
            np.ones(REQUESTS),
            arrivals,
            warmup=REQUESTS // 10,
            seed=int(rng.integers(2**32)),
        )
        return result

    return run


def mean_wait_s(result: SimulationResult) -> float:
    return float(result.requests["queue_s"].to_numpy()[result.measured].mean())


def refused(result: SimulationResult) -> float:
    return float(1 - result.finished[result.measured].mean())


@pytest.mark.parametrize(("servers", "rate"), [(1, 0.6), (2, 1.4), (4, 3.2), (8, 6.0)])
def test_exponential_service_waits_as_erlang_c_says(queue: Any, servers: int, rate: float) -> None:
    """M/M/c: C(c, a) / (c / service - rate)."""
    found = replicated(lambda rng: mean_wait_s(queue(rng, rate, exponential, servers)))
    confirm(erlang_c(servers, rate) / (servers - rate), found, 0.35)


def test_the_slowest_of_a_hundred_is_that_of_an_exponential_sojourn(queue: Any) -> None:
    """M/M/1: the time in the system is exponential with rate mu - lambda, so p99 is ln(100) / (mu - lambda)."""

    def p99(rng: np.random.Generator) -> float:
        result = queue(rng, 0.5, exponential)
        return float(np.percentile(result.e2e_s[result.measured], 99))

    confirm(log(100) / 0.5, replicated(p99), 0.1)


@pytest.mark.parametrize(("service", "second_moment"), [(constant, 1.0), (uniform, 4 / 3), (hyperexponential, 6.5)])
def test_general_service_waits_as_pollaczek_and_khinchine_say(queue: Any, service: Draw, second_moment: float) -> None:
    """M/G/1, first come first served: rate * E[S^2] / (2 (1 - rho))."""
    rate = 0.6
    found = replicated(lambda rng: mean_wait_s(queue(rng, rate, service)))
    confirm(rate * second_moment / (2 * (1 - rate)), found, 0.3)


@pytest.mark.parametrize(("servers", "rate"), [(1, 0.8), (3, 3.0), (10, 7.0)])
@pytest.mark.parametrize("service", [exponential, constant, hyperexponential])
def test_a_system_without_queue_refuses_as_erlang_b_says(queue: Any, servers: int, rate: float, service: Draw) -> None:
    """M/G/c/c: the loss depends on the mean service alone."""
    found = replicated(lambda rng: refused(queue(rng, rate, service, servers, max_queue=0)))
    confirm(erlang_b(servers, rate), found, 0.2)


@pytest.mark.parametrize("router", ["shared_queue", "round_robin"])
def test_a_bounded_queue_refuses_as_a_birth_death_chain_says(queue: Any, router: str) -> None:
    """M/M/1/K with K = 1 + 3 at rho = 0.8: rho^K (1 - rho) / (1 - rho^(K + 1)); one queue needs no router."""
    found = replicated(lambda rng: refused(queue(rng, 0.8, exponential, router=router, max_queue=3)))
    confirm(0.8**4 * 0.2 / (1 - 0.8**5), found, 0.15)


def test_random_routing_splits_a_poisson_stream_and_joining_the_shorter_queue_beats_it(queue: Any) -> None:
    """Four bounded queues: join-the-shortest loses less than any one of them alone would, one shared queue least."""

    def lost(router: str, bound: int) -> float:
        return replicated(lambda rng: refused(queue(rng, 3.6, exponential, 4, router, max_queue=bound)), 5).mean

    alone = 0.9**3 * 0.1 / (1 - 0.9**4)  # M/M/1/3
    assert lost("shared_queue", 8) < lost("least_loaded", 2) < lost("power_of_two", 2) < alone


def test_two_queues_in_a_row_are_each_a_queue_of_their_own() -> None:
    """What leaves an M/M/1 is Poisson again (Burke), so decode, one at a time, waits as Pollaczek and Khinchine say.

    Decode takes n steps with n geometric of mean 5: E[n^2] = 2 * 5^2 - 5 = 45.
    """
    rate, step_s, mean = 0.6, 0.2, 5
    spec = disaggregated(
        make_instance(FormulaTimes(per_prompt_token_s=TOKEN_S), max_sequences=1, max_tokens_per_step=10**9),
        make_instance(FormulaTimes(decode_base_s=step_s), max_sequences=1),
        transfer=Transfer(efficiency=1.0, handshake_s=0.0),
    )

    def run(rng: np.random.Generator) -> tuple[float, float]:
        arrivals = np.cumsum(rng.exponential(1 / rate, REQUESTS))
        outputs = 1 + rng.geometric(1 / mean, REQUESTS)
        result = play(spec, exponential(rng), outputs, arrivals, warmup=REQUESTS // 10)
        decode = result.finish_s - result.requests["first_token_s"].to_numpy()
        return float(result.ttft_s[result.measured].mean()), float(decode[result.measured].mean())

    pairs = [run(np.random.default_rng(stream)) for stream in np.random.SeedSequence(6).spawn(RUNS)]
    prefill, decode = (estimate(list(values), LEVEL) for values in zip(*pairs, strict=True))
    confirm(1 / (1 - rate), prefill, 0.15)
    confirm(mean * step_s + rate * 45 * step_s**2 / (2 * (1 - rate)), decode, 0.15)


def always(rng: np.random.Generator, count: int, mean: int) -> NDArray[Any]:
    return np.full(count, mean)


def geometric(rng: np.random.Generator, count: int, mean: int) -> NDArray[Any]:
    return rng.geometric(1 / mean, count)


def mostly_short(rng: np.random.Generator, count: int, mean: int) -> NDArray[Any]:
    return np.where(rng.random(count) < 0.1, 5.5 * mean, 0.5 * mean).astype(int)


@pytest.mark.parametrize("outputs", [always, geometric, mostly_short])
def test_decode_in_proportion_to_the_batch_is_processor_sharing(outputs: Any) -> None:
    """M/G/1-PS: mean time in decode is E[S] / (1 - rho) whatever the distribution of S.

    Steps are small but not nothing: a sequence waits for the end of the step that it arrives in, which adds at most
    the mean step that an arrival meets, here about 2% of the answer.
    """
    rate, mean, requests = 0.6, 60, 700
    token_s = 1 / mean
    spec = disaggregated(
        make_instance(FormulaTimes(per_prompt_token_s=0.0)),
        make_instance(FormulaTimes(decode_base_s=0.0, per_sequence_s=token_s)),
        transfer=Transfer(efficiency=1.0, handshake_s=0.0),
    )

    def run(rng: np.random.Generator) -> float:
        arrivals = np.cumsum(rng.exponential(1 / rate, requests))
        result = play(spec, np.ones(requests), 1 + outputs(rng, requests, mean), arrivals, warmup=requests // 10)
        return float(result.e2e_s[result.measured].mean())

    found = replicated(run)
    theory = 1 / (1 - rate)
    longest_bias_s = token_s * rate * 2 / (1 - rate)  # busy times size-biased mean batch
    assert -found.half_width < found.mean - theory < found.half_width + longest_bias_s
    assert found.half_width < 0.2 * theory


def test_running_sequences_obey_littles_law() -> None:
    """Mean batch, integrated by the instances, equals rate x mean time in decode, taken from the requests."""
    rng = np.random.default_rng(2)
    count = 3000
    spec = colocated(make_instance(FormulaTimes(decode_base_s=0.02, per_sequence_s=1e-4)), 3)
    result = play(
        spec, rng.integers(1, 900, count), rng.integers(1, 300, count), np.cumsum(rng.exponential(0.05, count))
    )
    table = result.requests
    decode_s = (table["finish_s"] - table["first_token_s"]).sum()
    integral = sum(usage.sequence_s for usage in result.run.end.usage["colocated"])
    assert integral == pytest.approx(decode_s, rel=1e-9)


def test_a_closed_loop_runs_at_concurrency_over_response_time() -> None:
    """12 clients, no prefill time, 101 tokens of 10 ms: each answer takes 1 s, so 12 requests/s leave."""
    spec = colocated(make_instance(FormulaTimes(per_prompt_token_s=0.0, decode_base_s=0.01)))
    result = play(spec, [5] * 600, [101] * 600, concurrency=12, warmup=60)
    assert result.e2e_s == pytest.approx(np.full(600, 1.0))
    assert result.throughput().requests_per_s == pytest.approx(12.0, rel=0.01)
    assert result.utilization()["colocated"].batch_mean == pytest.approx(12.0, rel=0.01)

"""Mean-field estimate of a pool of given size under given traffic.

Seconds come from `simulator.model.latency` alone; waiting from `simulator.planner.queueing`. The estimate ranks
designs; the discrete-event model then checks the best of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from simulator.model.latency import Chunk
from simulator.planner.priced_instance import PricedInstance
from simulator.planner.queueing import erlang_c, mean_of_any, mean_wait_s, response_percentile_s
from simulator.planner.traffic import Traffic

MAX_CHUNKS_PRICED = 16  # of a prompt, one by one; of more, so many stand for all [chunks; assumed]
MIN_CHUNK = 64  # that a step takes even when decode rows fill its budget [prompt tokens; assumed]


def fluctuation(sequences: float, percentile: float) -> float:
    """Running sequences seen at the given percentile when arrivals are random: n + z * sqrt(n).

    Occupancy of a pool without waiting is Poisson (M/G/infinity); normal approximation.
    """
    return sequences + NormalDist().inv_cdf(percentile / 100) * math.sqrt(sequences)


def largest(limit: int, holds: Callable[[int], bool]) -> int:
    """Largest n in 1..limit with holds(n), for a property that ends once and for all; 0 if none.

    >>> largest(100, lambda n: n * n <= 50)
    7
    """
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low


@dataclass(frozen=True)
class PrefillTimes:
    """Prefill seconds of the sampled prompts on one rank, other ranks equally busy."""

    own_s: tuple[float, ...]  # prompt alone in its steps: what its first token waits for
    packed_s: tuple[float, ...]  # its share of full steps: what it takes from the capacity

    @property
    def mean_s(self) -> float:
        return float(np.mean(self.packed_s))

    @property
    def scv(self) -> float:
        return float(np.var(self.packed_s)) / self.mean_s**2


def over_chunks(prompt: int, chunk: int, price: Callable[[Chunk], float]) -> float:
    """Sum of `price` over the chunks of a prompt; long prompts by the midpoint rule, cost being smooth in the past.

    >>> over_chunks(1000, 300, lambda c: c.new + c.past)
    2800
    >>> over_chunks(100_000, 100, lambda c: float(c.past)) / sum(range(0, 100_000, 100))
    1.0
    """
    full, rest = divmod(prompt, chunk)
    if full <= MAX_CHUNKS_PRICED:
        whole = sum(price(Chunk(chunk, i * chunk)) for i in range(full))
    else:
        spacing = full / MAX_CHUNKS_PRICED
        middles = [round(((i + 0.5) * spacing - 0.5) * chunk) for i in range(MAX_CHUNKS_PRICED)]
        whole = spacing * sum(price(Chunk(chunk, past)) for past in middles)
    return whole + price(Chunk(rest, full * chunk)) if rest else whole


def prefill_times(priced: PricedInstance, traffic: Traffic, chunk: int) -> PrefillTimes:
    """Chunked prefill of each sampled prompt with at most `chunk` new tokens a step and rank."""
    step = priced.latency.prefill_s
    ranks = priced.ranks

    def split(prompt: int) -> float:
        return over_chunks(prompt, chunk, lambda part: step([part], part.new * ranks))

    known: dict[int, tuple[float, float]] = {}
    for prompt in set(traffic.prompts):
        own = split(prompt)
        together = chunk // prompt
        packed = step([Chunk(prompt, 0)] * together, prompt * together * ranks) / together if together > 1 else own
        known[prompt] = (own, packed)
    return PrefillTimes(tuple(known[p][0] for p in traffic.prompts), tuple(known[p][1] for p in traffic.prompts))


@dataclass(frozen=True)
class PrefillState:
    """A prefill pool in equilibrium. Infinite latency if it is overloaded."""

    ttft_mean_s: float
    ttft_percentile_s: float
    utilisation: float


def prefill_state(
    priced: PricedInstance, traffic: Traffic, times: PrefillTimes, instances: int, percentile: float
) -> PrefillState:
    """TTFT of `instances` prefill instances; every attention rank serves one prompt at a time."""
    base = priced.latency.first_token_extra_s
    own = [base + t for t in times.own_s]
    servers = instances * priced.ranks
    offered = traffic.rate * times.mean_s
    wait = mean_wait_s(servers, traffic.rate, times.mean_s, traffic.arrival_scv, times.scv)
    at = response_percentile_s(own, erlang_c(servers, offered), wait, percentile)
    return PrefillState(float(np.mean(own)) + wait, at, offered / servers)


@dataclass(frozen=True)
class DecodeState:
    """A decode pool in equilibrium. Infinite latency if it is overloaded."""

    sequences: float  # running on one instance, mean
    tpot_mean_s: float
    tpot_percentile_s: float
    utilisation: float  # arriving share of what a full batch sustains


def decode_state(
    priced: PricedInstance, traffic: Traffic, instances: int, max_sequences: int, stall_s: float, percentile: float
) -> DecodeState:
    """Balance of arrivals and departures: B = rate / instances * output * tpot(B).

    stall_s: time between first token and decode start (KV hand-over), spread over the output tokens.
    """
    share = traffic.rate / instances
    extra = stall_s / max(1.0, traffic.mean_output - 1)

    def sustained(n: int) -> float:
        return n / (traffic.mean_output * priced.tpot_s(traffic, n))

    utilisation = share / sustained(max_sequences)
    if utilisation >= 1:
        return DecodeState(float(max_sequences), math.inf, math.inf, utilisation)
    sequences = 1 + largest(max_sequences - 1, lambda n: sustained(n) <= share)
    high = min(max_sequences, math.ceil(fluctuation(sequences, percentile)))
    return DecodeState(
        float(sequences),
        priced.tpot_s(traffic, sequences) + extra,
        priced.tpot_s(traffic, high) + extra,
        utilisation,
    )


@dataclass(frozen=True)
class MixedPoint:
    """One colocated instance with `sequences` running while prompts are chunked in between."""

    rate: float  # requests per second it sustains at this batch
    tpot_s: float
    own_s: tuple[float, ...]  # prefill of the sampled prompts, decode riding along
    added_s: float  # mean time that one prompt adds to the decode stream


def mixed_point(priced: PricedInstance, traffic: Traffic, budget: int, sequences: int) -> MixedPoint:
    """Balance of one colocated instance at a batch of `sequences`, step budget `budget` tokens a rank.

    A request occupies the instance for output * step + (what its prefill adds for everybody running), so
    rate = B / (output * step(B) + B * added), tpot = step(B) + B * added / output.

    Every step ends B / output requests, whose successors it must prefill: they share the step, and a batch that
    would need more prompt tokens than the budget leaves is not reached; the largest one that is stands for it.
    All ranks wait for one that prefills: of Poisson chunks, a step that has any has `mean_of_any`.
    """
    ranks = priced.ranks
    prompts_per_sequence = priced.acceptance_length / (traffic.mean_output * ranks)  # each step and rank

    def room_at(n: int) -> int:
        return max(MIN_CHUNK, budget - math.ceil(n / ranks))

    sequences = max(1, largest(sequences, lambda n: n * prompts_per_sequence * traffic.mean_prompt <= room_at(n)))
    room = room_at(sequences)
    load = priced.load(traffic, sequences)
    step = priced.latency.decode_s(load)
    chunks_a_step = (
        sequences * ranks * prompts_per_sequence * float(np.mean([math.ceil(p / room) for p in traffic.prompts]))
    )
    active = min(float(ranks), mean_of_any(chunks_a_step))

    def mixed(chunks: list[Chunk]) -> float:
        return priced.latency.mixed_s(chunks, load, round(sum(chunk.new for chunk in chunks) * active))

    own: dict[int, float] = {}
    added: dict[int, float] = {}
    for prompt in set(traffic.prompts):
        own[prompt] = over_chunks(prompt, room, lambda part: mixed([part]))
        together = min(int(sequences * prompts_per_sequence), room // prompt)
        if together > 1:
            added[prompt] = (mixed([Chunk(prompt, 0)] * together) - step) / together / active
        else:
            added[prompt] = (own[prompt] - math.ceil(prompt / room) * step) / active
    mean_added = float(np.mean([added[p] for p in traffic.prompts]))
    per_token = step / priced.acceptance_length
    return MixedPoint(
        sequences / (traffic.mean_output * per_token + sequences * mean_added),
        per_token + sequences * mean_added / traffic.mean_output,
        tuple(own[p] for p in traffic.prompts),
        mean_added,
    )


@dataclass(frozen=True)
class ColocatedState:
    """A colocated pool in equilibrium. Infinite latency if it is overloaded."""

    sequences: float
    ttft_mean_s: float
    ttft_percentile_s: float
    tpot_mean_s: float
    tpot_percentile_s: float
    utilisation: float
    prefill_share: float  # of the busy time


def colocated_state(
    traffic: Traffic,
    priced: PricedInstance,
    instances: int,
    max_sequences: int,
    percentile: float,
    point: Callable[[int], MixedPoint],
) -> ColocatedState:
    """TTFT and TPOT of `instances` colocated instances; `point` is `mixed_point` at their step budget."""
    share = traffic.rate / instances
    utilisation = share / point(max_sequences).rate
    sequences = 1 + largest(max_sequences - 1, lambda n: point(n).rate <= share)
    here = point(sequences)
    base = priced.latency.first_token_extra_s
    own = [base + t for t in here.own_s]
    service = float(np.mean(here.own_s))
    scv = float(np.var(here.own_s)) / service**2
    servers = instances * priced.ranks  # a rank prefills one prompt at a time
    offered = traffic.rate * service
    wait = mean_wait_s(servers, traffic.rate, service, traffic.arrival_scv, scv)
    at = response_percentile_s(own, erlang_c(servers, offered), wait, percentile)
    high = min(max_sequences, math.ceil(fluctuation(sequences, percentile)))
    overloaded = utilisation >= 1
    return ColocatedState(
        float(sequences),
        math.inf if overloaded else float(np.mean(own)) + wait,
        math.inf if overloaded else at,
        here.tpot_s,
        point(high).tpot_s,
        utilisation,
        min(1.0, share * here.added_s),
    )

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

from hw_profiles.profile import HardwareProfile
from simulator.model.architecture import ModelSpec
from simulator.model.latency import Chunk, DecodeLoad, StepLatency
from simulator.model.memory import MemoryPlan
from simulator.model.parallelism import Parallelism
from simulator.planner.queueing import erlang_c, mean_of_any, mean_wait_s, response_percentile_s
from simulator.planner.traffic import Traffic

MAX_SEQUENCES_PER_RANK = 1024
MAX_CHUNKS_PRICED = 16
MIN_CHUNK = 64  # prompt tokens that a step takes even when decode rows fill its budget


@dataclass(frozen=True)
class Engine:
    """One cut of the model on one accelerator."""

    model: ModelSpec
    hardware: HardwareProfile
    parallelism: Parallelism
    latency: StepLatency
    memory: MemoryPlan
    acceptance_length: float = 1.0

    @property
    def ranks(self) -> int:
        """Attention ranks, each with sequences and KV of its own."""
        return self.parallelism.dp

    def load(self, traffic: Traffic, sequences: int) -> DecodeLoad:
        """`sequences` running on the instance, spread over its ranks; contexts as the traffic has them on average."""
        busiest = math.ceil(sequences / self.ranks)
        return DecodeLoad(
            sequences=busiest,
            context=round(busiest * traffic.mean_context),
            capped=tuple(round(busiest * traffic.mean_of_context(cap)) for cap in self.latency.caps),
            total_sequences=sequences,
        )

    def tpot_s(self, traffic: Traffic, sequences: int) -> float:
        """Seconds per output token with `sequences` running and no prefill beside them."""
        return self.latency.decode_s(self.load(traffic, sequences)) / self.acceptance_length

    def sequence_limit(self, traffic: Traffic) -> int:
        """Sequences whose KV fits on the instance, at the traffic's mean context."""
        fits = self.memory.max_sequences(math.ceil(traffic.mean_context))
        return min(fits, MAX_SEQUENCES_PER_RANK) * self.ranks


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


def prefill_times(engine: Engine, traffic: Traffic, chunk: int) -> PrefillTimes:
    """Chunked prefill of each sampled prompt with at most `chunk` new tokens a step and rank."""
    step = engine.latency.prefill_s
    ranks = engine.ranks

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
    engine: Engine, traffic: Traffic, times: PrefillTimes, instances: int, percentile: float
) -> PrefillState:
    """TTFT of `instances` prefill instances; every attention rank serves one prompt at a time."""
    base = engine.latency.first_token_extra_s
    own = [base + t for t in times.own_s]
    servers = instances * engine.ranks
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
    engine: Engine, traffic: Traffic, instances: int, max_sequences: int, stall_s: float, percentile: float
) -> DecodeState:
    """Balance of arrivals and departures: B = rate / instances * output * tpot(B).

    stall_s: time between first token and decode start (KV hand-over), spread over the output tokens.
    """
    share = traffic.rate / instances
    extra = stall_s / max(1.0, traffic.mean_output - 1)

    def sustained(n: int) -> float:
        return n / (traffic.mean_output * engine.tpot_s(traffic, n))

    utilisation = share / sustained(max_sequences)
    if utilisation >= 1:
        return DecodeState(float(max_sequences), math.inf, math.inf, utilisation)
    sequences = 1 + largest(max_sequences - 1, lambda n: sustained(n) <= share)
    high = min(max_sequences, math.ceil(fluctuation(sequences, percentile)))
    return DecodeState(
        float(sequences),
        engine.tpot_s(traffic, sequences) + extra,
        engine.tpot_s(traffic, high) + extra,
        utilisation,
    )


@dataclass(frozen=True)
class MixedPoint:
    """One colocated instance with `sequences` running while prompts are chunked in between."""

    rate: float  # requests per second it sustains at this batch
    tpot_s: float
    own_s: tuple[float, ...]  # prefill of the sampled prompts, decode riding along
    added_s: float  # mean time that one prompt adds to the decode stream


def mixed_point(engine: Engine, traffic: Traffic, budget: int, sequences: int) -> MixedPoint:
    """Balance of one colocated instance at a batch of `sequences`, step budget `budget` tokens a rank.

    A request occupies the instance for output * step + (what its prefill adds for everybody running), so
    rate = B / (output * step(B) + B * added), tpot = step(B) + B * added / output.

    Every step ends B / output requests, whose successors it must prefill: they share the step, and a batch that
    would need more prompt tokens than the budget leaves is not reached; the largest one that is stands for it.
    All ranks wait for one that prefills: of Poisson chunks, a step that has any has `mean_of_any`.
    """
    ranks = engine.ranks
    prompts_per_sequence = engine.acceptance_length / (traffic.mean_output * ranks)  # each step and rank

    def room_at(n: int) -> int:
        return max(MIN_CHUNK, budget - math.ceil(n / ranks))

    sequences = max(1, largest(sequences, lambda n: n * prompts_per_sequence * traffic.mean_prompt <= room_at(n)))
    room = room_at(sequences)
    load = engine.load(traffic, sequences)
    step = engine.latency.decode_s(load)
    chunks_a_step = (
        sequences * ranks * prompts_per_sequence * float(np.mean([math.ceil(p / room) for p in traffic.prompts]))
    )
    active = min(float(ranks), mean_of_any(chunks_a_step))

    def mixed(chunks: list[Chunk]) -> float:
        return engine.latency.mixed_s(chunks, load, round(sum(chunk.new for chunk in chunks) * active))

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
    per_token = step / engine.acceptance_length
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
    engine: Engine,
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
    base = engine.latency.first_token_extra_s
    own = [base + t for t in here.own_s]
    service = float(np.mean(here.own_s))
    scv = float(np.var(here.own_s)) / service**2
    servers = instances * engine.ranks  # a rank prefills one prompt at a time
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

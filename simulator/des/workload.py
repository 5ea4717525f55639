"""What arrives: token counts of every request, and when it is sent. Columns, not objects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.des.arrivals import change_time
from simulator.des.prefix_cache import BLOCK_TOKENS
from simulator.des.scenario import ClosedLoop, Lengths, OpenLoop, SharedPrefix, Workload
from simulator.des.traces import read_trace


@dataclass(frozen=True)
class Requests:
    """All requests of a run, in order of arrival.

    arrival_s: send times from 0 on, one a request; None in a closed loop, where the clients decide. [s]
    concurrency: clients of a closed loop, each with one request under way; None in an open loop.
    blocks: prefix block ids of each prompt, for prefix caches; None where they are not known.
    """

    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    arrival_s: NDArray[np.float64] | None = None
    concurrency: int | None = None
    blocks: list[tuple[int, ...]] | None = None

    def __post_init__(self) -> None:
        assert (self.arrival_s is None) != (self.concurrency is None)

    def __len__(self) -> int:
        return len(self.prompt_tokens)


def draw_lengths(lengths: Lengths, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """`count` whole token counts of at least 1."""
    if lengths.kind == "constant":
        drawn = np.full(count, lengths.value, dtype=np.int64)
    elif lengths.kind == "uniform":
        assert lengths.low is not None
        assert lengths.high is not None
        drawn = rng.integers(lengths.low, lengths.high, size=count, endpoint=True)
    else:
        if lengths.kind == "exponential":
            assert lengths.mean is not None
            real = rng.exponential(lengths.mean, count)
        else:
            assert lengths.median is not None
            assert lengths.sigma is not None
            real = rng.lognormal(np.log(lengths.median), lengths.sigma, count)
        drawn = np.maximum(1, np.rint(np.minimum(real, 1e15))).astype(np.int64)
    return drawn if lengths.maximum is None else np.minimum(drawn, lengths.maximum)


def draw_arrivals(rate: float, burstiness: float, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Times of `count` arrivals with Gamma gaps of mean 1/rate. [s]

    burstiness: squared coefficient of variation of the gaps; 1 is Poisson.
    """
    shape = 1.0 / burstiness
    gaps = rng.gamma(shape, 1.0 / (rate * shape), count)
    return np.cumsum(gaps)


def _open_arrivals(workload: OpenLoop, rng: np.random.Generator) -> NDArray[np.float64]:
    """Send times of an open loop. [s]"""
    if workload.diurnal is None and workload.bursts is None:
        return draw_arrivals(workload.rate, workload.burstiness, workload.requests, rng)
    ticks = draw_arrivals(1.0, workload.burstiness, workload.requests, rng)
    return change_time(ticks, workload.rate, workload.diurnal, workload.bursts, int(rng.integers(2**62)))


def draw_blocks(prefix: SharedPrefix, prompts: NDArray[np.int64], rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Block ids of prompts that begin with the prefix of a group drawn at random; all other blocks are unique.

    Only whole blocks of the prefix are shared.
    """
    shared = prefix.tokens // BLOCK_TOKENS
    groups = rng.integers(prefix.groups, size=len(prompts)).tolist()
    fresh = prefix.groups * shared
    drawn = []
    for group, tokens in zip(groups, prompts.tolist(), strict=True):
        count = -(-tokens // BLOCK_TOKENS)
        common = min(shared, tokens // BLOCK_TOKENS)
        own = count - common
        drawn.append((*range(group * shared, group * shared + common), *range(fresh, fresh + own)))
        fresh += own
    return drawn


def make_requests(workload: Workload, seed: np.random.SeedSequence) -> Requests:
    """Draw or read every request; arrivals, prompts, outputs and prefixes each have a random stream of their own."""
    arrivals, prompts, outputs, prefixes = (np.random.default_rng(child) for child in seed.spawn(4))
    if isinstance(workload, OpenLoop):
        lengths = draw_lengths(workload.prompt, workload.requests, prompts)
        return Requests(
            lengths,
            draw_lengths(workload.output, workload.requests, outputs),
            arrival_s=_open_arrivals(workload, arrivals),
            blocks=draw_blocks(workload.shared_prefix, lengths, prefixes) if workload.shared_prefix else None,
        )
    if isinstance(workload, ClosedLoop):
        return Requests(
            draw_lengths(workload.prompt, workload.requests, prompts),
            draw_lengths(workload.output, workload.requests, outputs),
            concurrency=workload.concurrency,
        )
    trace = read_trace(workload.path, workload.format, workload.limit)
    return Requests(
        trace.prompt_tokens, trace.output_tokens, arrival_s=trace.arrival_s / workload.speed, blocks=trace.blocks
    )

"""What arrives: token counts of every request, and what sends it. Columns, not objects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from simulator.des.workload.arrivals import change_time
from simulator.des.workload.draws import draw_arrivals, draw_lengths
from simulator.des.workload.sessions import Conversations, draw_sessions
from simulator.model.arrays import Floats
from simulator.scenario import (
    ClosedLoop,
    Offline,
    OpenLoop,
    ScenarioError,
    Sessions,
    SharedPrefix,
    Tenant,
    Trace,
    Workload,
)
from simulator.traces.columns import BLOCK_TOKENS, TraceColumns
from simulator.traces.reading import read_trace

SEEDS = 2**62  # to draw one from; numpy draws int64
SPARE_ARRIVALS = 16  # drawn beyond the mean, so that few are drawn twice
TENANT_BLOCKS = 1 << 48  # block ids of one tenant; no two share a prefix


@dataclass(frozen=True)
class Requests:
    """All requests of one tenant. They are sent in one of four ways:

    arrival_s: at these times from 0 on, in order. [s]
    concurrency: by so many clients, each with one request under way.
    sessions: turn by turn.
    headroom: all there at 0 and begun in gaps that leave this share of an instance free.

    blocks: prefix block ids of each prompt, for prefix caches; None where they are not known.
    block_tokens: prompt tokens of a block.
    notes: what was told of a trace, and what was left out of it.
    """

    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    arrival_s: Floats | None = None
    concurrency: int | None = None
    blocks: list[tuple[int, ...]] | None = None
    sessions: Conversations | None = None
    headroom: float | None = None
    tenant: str = ""
    priority: int = 0
    block_tokens: int = BLOCK_TOKENS
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        ways = (self.arrival_s, self.concurrency, self.sessions, self.headroom)
        assert sum(way is not None for way in ways) == 1

    def __len__(self) -> int:
        return len(self.prompt_tokens)

    @property
    def offline(self) -> bool:
        return self.headroom is not None


def _open_arrivals(workload: OpenLoop, count: int, rng: np.random.Generator) -> Floats:
    """Send times of the first `count` requests of an open loop. [s]"""
    if workload.diurnal is None and workload.bursts is None:
        return draw_arrivals(workload.rate, workload.burstiness, count, rng)
    ticks = draw_arrivals(1.0, workload.burstiness, count, rng)
    return change_time(ticks, workload.rate, workload.diurnal, workload.bursts, int(rng.integers(SEEDS)))


def _arrivals_until(workload: OpenLoop, until_s: float, seed: np.random.SeedSequence) -> Floats:
    """Send times before `until_s`, at least one. [s]"""
    count = int(workload.rate * until_s) + SPARE_ARRIVALS
    while True:
        arrivals = _open_arrivals(workload, count, np.random.default_rng(seed))
        if arrivals[-1] >= until_s:
            return arrivals[: max(1, int(np.searchsorted(arrivals, until_s)))]
        count *= 2


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


def trace_arrivals(workload: Trace, trace: TraceColumns, seed: np.random.SeedSequence) -> Floats:
    """Times of a trace's requests as they are replayed; a Poisson stream where the file has none. [s]

    Of sessions with delays only the first turn of each counts; the others wait for answers.
    """
    if not trace.timed and trace.turns is None:
        if workload.rate is None:
            raise ScenarioError(
                f"{workload.path} has no arrivals; give workload.rate (--rate), the requests per second to send it at"
            )
        return draw_arrivals(workload.rate, 1.0, len(trace), np.random.default_rng(seed))
    if workload.rate is None:
        return trace.arrival_s / workload.speed
    span = float(trace.arrival_s.max())
    if span <= 0:
        raise ScenarioError(
            f"workload.rate={workload.rate:g} cannot scale {workload.path}, whose requests all arrive at one instant; "
            "leave out rate, or use a longer trace"
        )
    return trace.arrival_s * (len(trace) / span / workload.rate)


def _trace_requests(workload: Trace, seed: np.random.SeedSequence) -> Requests:
    trace = read_trace(workload)
    same = Requests(
        trace.prompt_tokens,
        trace.output_tokens,
        headroom=0.0,
        blocks=trace.blocks,
        block_tokens=trace.block_tokens,
        notes=tuple(f"{workload.path.name}: {said}" for said in (*trace.notes, *trace.left_out)),
    )
    if trace.turns is None:
        return replace(same, headroom=None, arrival_s=trace_arrivals(workload, trace, seed))
    turns = trace.turns
    begin_s = np.array(turns.begin_s) / workload.speed
    if workload.rate is not None and not trace.timed:
        sessions_per_s = workload.rate * len(turns.begin_s) / len(trace)
        begin_s = draw_arrivals(sessions_per_s, 1.0, len(turns.begin_s), np.random.default_rng(seed))
    elif workload.rate is not None:
        begin_s = trace_arrivals(workload, trace, seed)[turns.first[:-1]]
    conversations = Conversations(turns.first, begin_s.tolist(), None, turns.delay_s, turns.kept_blocks)
    return replace(same, headroom=None, sessions=conversations)


def make_requests(workload: Workload, seed: np.random.SeedSequence) -> Requests:
    """Draw or read every request; arrivals, prompts, outputs and prefixes each have a random stream of their own."""
    seeds = seed.spawn(4)
    prompts, outputs, prefixes = (np.random.default_rng(child) for child in seeds[1:])
    if isinstance(workload, Trace):
        return _trace_requests(workload, seeds[0])
    if isinstance(workload, Sessions):
        prompt_tokens, output_tokens, blocks, conversations = draw_sessions(workload, seed)
        return Requests(prompt_tokens, output_tokens, blocks=blocks, sessions=conversations)
    if isinstance(workload, OpenLoop):
        if workload.duration_s is None:
            arrival_s = _open_arrivals(workload, workload.requests, np.random.default_rng(seeds[0]))
        else:
            arrival_s = _arrivals_until(workload, workload.duration_s, seeds[0])
        lengths = draw_lengths(workload.prompt, len(arrival_s), prompts)
        return Requests(
            lengths,
            draw_lengths(workload.output, len(arrival_s), outputs),
            arrival_s=arrival_s,
            blocks=draw_blocks(workload.shared_prefix, lengths, prefixes) if workload.shared_prefix else None,
        )
    lengths = draw_lengths(workload.prompt, workload.requests, prompts)
    answers = draw_lengths(workload.output, workload.requests, outputs)
    if isinstance(workload, ClosedLoop):
        return Requests(lengths, answers, concurrency=workload.concurrency)
    assert isinstance(workload, Offline)
    return Requests(lengths, answers, headroom=workload.headroom)


def make_streams(tenants: Sequence[Tenant], seed: np.random.SeedSequence) -> tuple[Requests, ...]:
    """The requests of every tenant; a lone one draws as it would without a name."""
    seeds = [seed] if len(tenants) == 1 else seed.spawn(len(tenants))
    made = [make_requests(tenant.workload, own) for tenant, own in zip(tenants, seeds, strict=True)]
    size = math.gcd(*(requests.block_tokens for requests in made))
    streams = []
    for i, (tenant, requests) in enumerate(zip(tenants, made, strict=True)):
        named = replace(requests, tenant=tenant.name, priority=tenant.priority)
        split = requests.block_tokens // size
        streams.append(_renumbered(named, i * TENANT_BLOCKS, split) if i or split > 1 else named)
    return tuple(streams)


def _renumbered(requests: Requests, shift: int, split: int) -> Requests:
    """The same requests with each block in `split` parts, whose ids are raised by `shift`."""

    def raised(chains: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        return [tuple(block * split + part + shift for block in chain for part in range(split)) for chain in chains]

    sessions, blocks = requests.sessions, requests.blocks
    return replace(
        requests,
        block_tokens=requests.block_tokens // split,
        blocks=None if blocks is None else raised(blocks),
        sessions=None if sessions is None else replace(sessions, kept_blocks=raised(sessions.kept_blocks)),
    )

"""Seconds of the steps of many engines, as arrays: priced once, under any engine parameters afterwards.

An engine's steps are priced at nodes: n sequences decoding on the instance, and k prompts that are prefilled together
beside them (or alone). Ops of a step are affine in few numbers (rows, tokens, entries read), as in
`simulator.model.latency`, so each group of ops is sampled once and all nodes are arrays. Launches with one roof add up
by op class; those with several are kept apart for their p-norm, because engine parameters change roofs.

R attention ranks of an instance meet in every step, and the busiest sets its time:
  decode   n / R + (R - 1) / (2 R) sequences (mean of the ceiling), with the largest of the ranks' summed contexts
  prompts  k <= R: the longest of k prompts, one a rank, cut to the token budget; k > R: dealt out to the emptiest rank
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hw_profiles.profile import HardwareProfile
from simulator.model import layers as layer_ops
from simulator.model.arrays import Floats
from simulator.model.compiled_ops import Maker
from simulator.model.moe import RankLoad
from simulator.model.ops import Op, Reader, counted
from simulator.model.roofline import roof_times
from simulator.model.step import DecodeLoad, Stack, StepOps
from simulator.steady_state.parameters import CLASSES, EngineParameters
from simulator.steady_state.traffic import BINS, TrafficSample

Batching = Literal["chunked", "prefill_first", "inflight"]

BATCHES = 9  # nodes over decoding sequences, 0 and 1 among them
BUNCHES = 5  # nodes over prompts that are prefilled together
WHOLE_CHUNKS = 4  # chunks of a prompt that are priced one by one; of longer prompts three in their middle and the last
RARE = 1e-3  # chance below which a length is not priced
FEWEST_CHUNK = 8.0  # prompt tokens of a step and rank where decode has used up the token budget
# Launches whose roofs stand to each other alike, within this factor, are added up as one: that keeps their p-norm to
# 1%. Of roofs further apart than the second, the lower one says nothing. [-]
ALIKE = 2.0
FAR_APART = 64.0
# Mean of the largest of R standard normal draws, R = 1, 2, 4, ..., 1024 (Harter, Biometrika 1961; beyond 64 computed).
LARGEST_OF = (0.0, 0.5642, 1.0294, 1.4236, 1.7660, 2.0697, 2.3437, 2.5945, 2.8269, 3.0443, 3.2490)


def largest_of(draws: Floats | float) -> Floats:
    """Mean of the largest of so many standard normal draws, linear in their logarithm between powers of two."""
    found: Floats = np.interp(np.log2(np.maximum(draws, 1.0)), np.arange(len(LARGEST_OF)), LARGEST_OF)
    return found


# ---- groups of ops


@dataclass(frozen=True)
class _Group:
    """Ops that are affine in some variables. [s]"""

    count: Floats  # [ops]
    latency: Floats  # [ops]
    exits: Floats  # [ops] hops over the scale-out network
    op_class: NDArray[np.intp]
    exponent: Floats
    constant: Floats  # [ops, 3]
    slopes: Floats  # [variables, ops, 3]
    single: NDArray[np.bool_]  # ops with one roof

    @classmethod
    def of(cls, maker: Maker, variables: int, hardware: HardwareProfile) -> _Group:
        points = [[0.0] * variables, *[[float(i == j) for j in range(variables)] for i in range(variables)]]
        sampled = [list(maker(point)) for point in points]
        first = sampled[0]
        floors = [roof_times(op, hardware) for op in first]
        roofs = np.array(
            [[t[1:4] for t in (roof_times(op, hardware) for op in ops)] for ops in sampled], dtype=float
        ).reshape(variables + 1, len(first), 3)
        slopes = roofs[1:] - roofs[0]
        present = (roofs[0] != 0) | (slopes != 0).any(axis=0)
        return cls(
            np.array([float(op.count) for op in first]),
            np.array([t.latency_s for t in floors]),
            np.array([op.hops * float(op.link == "scale_out") for op in first]),
            np.array([CLASSES.index(op.op_class) for op in first], dtype=np.intp),
            np.array([t.exponent for t in floors]),
            roofs[0],
            slopes,
            present.sum(axis=1) < 2,
        )

    def roofs(self, values: Floats) -> Floats:
        """values: [nodes, variables] -> [nodes, ops, 3]"""
        return np.maximum(0.0, self.constant + np.tensordot(values, self.slopes, axes=1))

    def seconds(self, values: Floats) -> Floats:
        """[nodes] under the profile's own rates."""
        q = self.exponent
        norm = (self.roofs(values) ** q[:, None]).sum(axis=2) ** (1 / q)
        found: Floats = ((norm + self.latency) * self.count).sum(axis=1)
        return found


@dataclass(frozen=True)
class Launches:
    """Launches with several roofs, by node. node, op_class, exponent: [launches]. roofs: [launches, 3] s"""

    node: NDArray[np.intp]
    op_class: NDArray[np.intp]
    exponent: Floats
    roofs: Floats


@dataclass
class _Sheet:
    """Launches of some nodes, being added up."""

    nodes: int
    own_rates: bool = False  # seconds under the profile's own rates alone, all of them in `latency`
    latency: Floats = field(init=False)
    exits: Floats = field(init=False)
    linear: Floats = field(init=False)  # [nodes, classes, 3]
    several: list[tuple[NDArray[np.intp], NDArray[np.intp], Floats, Floats]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.latency, self.exits = np.zeros(self.nodes), np.zeros(self.nodes)
        self.linear = np.zeros((self.nodes, len(CLASSES), 3))

    def spread(self, places: Sequence[int]) -> _Sheet:
        """A sheet of `own_rates` with these of its nodes."""
        found = _Sheet(len(places), self.own_rates)
        found.latency = self.latency[list(places)]
        return found

    def add(self, group: _Group, nodes: NDArray[np.intp], values: Floats, weight: Floats) -> None:
        """nodes, weight: [steps] the node that each step belongs to and how often it has it; values: [steps, ...]."""
        if not len(nodes) or not len(group.count):
            return
        if self.own_rates:
            self.latency += np.bincount(nodes, weight * group.seconds(values), minlength=self.nodes)
            return
        times = weight[:, None] * group.count
        np.add.at(self.latency, nodes, times @ group.latency)
        np.add.at(self.exits, nodes, times @ group.exits)
        roofs = group.roofs(values)
        alone = np.flatnonzero(group.single)
        by_class = np.zeros((len(alone), len(CLASSES)))
        by_class[np.arange(len(alone)), group.op_class[alone]] = 1.0
        np.add.at(self.linear, nodes, np.einsum("no,nod,oc->ncd", times[:, alone], roofs[:, alone], by_class))
        apart = np.flatnonzero(~group.single)
        if len(apart):
            shape = (len(nodes), len(apart))
            self.several.append(
                (
                    np.broadcast_to(nodes[:, None], shape).ravel(),
                    np.broadcast_to(group.op_class[apart], shape).ravel(),
                    np.broadcast_to(group.exponent[apart], shape).ravel(),
                    (times[:, apart, None] * roofs[:, apart]).reshape(-1, 3),
                )
            )

    def merged(self) -> Launches:
        """Launches of one node, class and exponent whose roofs stand to each other alike, as one: a p-norm grows with
        its roofs, so that those of like ones add up."""
        if not self.several:
            return Launches(*(np.zeros(0, dtype=np.intp),) * 2, np.zeros(0), np.zeros((0, 3)))
        node, op_class, exponent, roofs = (np.concatenate(columns) for columns in zip(*self.several, strict=True))
        largest = np.maximum(roofs.max(axis=1, keepdims=True), 1e-300)
        lower = np.clip(roofs / largest, 1 / FAR_APART, 1.0)
        key = np.column_stack((node, op_class, exponent, np.round(np.log2(lower) / np.log2(ALIKE))))
        order = np.lexsort(key.T[::-1])
        key, roofs = key[order], roofs[order]
        starts = np.flatnonzero(np.concatenate(([True], (key[1:] != key[:-1]).any(axis=1))))
        first = order[starts]
        return Launches(node[first], op_class[first], exponent[first], np.add.reduceat(roofs, starts, axis=0))


class _Engine:
    """The groups of ops of one cut, sampled as they are asked for."""

    def __init__(self, ops: StepOps) -> None:
        self.ops = ops
        self._groups: dict[object, _Group] = {}

    def _group(self, key: object, maker: Maker, variables: int) -> _Group:
        found = self._groups.get(key)
        if found is None:
            found = self._groups[key] = _Group.of(maker, variables, self.ops.hardware)
        return found

    @property
    def rows(self) -> _Group:
        ops, model = self.ops, self.ops.model
        return self._group(
            "rows", lambda v: [*ops.row_ops(ops.main, v[0]), *layer_ops.embedding_ops(model, v[0], ops.cut)], 1
        )

    @property
    def head(self) -> _Group:
        return self._group("head", lambda v: layer_ops.head_ops(self.ops.model, v[0], self.ops.cut), 1)

    @property
    def draft_rows(self) -> _Group:
        return self._group("draft rows", lambda v: self.ops.draft_row_ops(v[0]), 1)

    @cached_property
    def kernels(self) -> float:
        """That a decode step launches."""
        ops = self.ops
        one = ops.shape([], DecodeLoad(1, 1, tuple(min(1, cap) for cap in ops.caps), 1), None)
        return float(sum(op.count for op in ops.all_ops(one)))

    def prefill(self, stack: Stack, selecting: frozenset[Reader]) -> _Group:
        ops = self.ops
        variables = 3 + len(ops.prefill_counts)
        return self._group(
            ("prefill", stack is ops.draft, selecting), lambda v: ops.prefill_ops(stack, v, selecting), variables
        )

    def decode(self, stack: Stack, queries: int, selecting: frozenset[Reader]) -> _Group:
        ops = self.ops
        return self._group(
            ("decode", stack is ops.draft, queries, selecting),
            lambda v: ops.decode_ops(stack, v, queries, selecting),
            2 + len(ops.caps),
        )

    def add_experts(
        self,
        sheet: _Sheet,
        stack: Stack,
        nodes: NDArray[np.intp],
        rows: Floats,
        tokens: Floats,
        weight: Floats,
        quick: bool,
    ) -> None:
        """Routed experts on the rank that takes longest under the profile's rates. quick: kernels of decode."""
        for ffn, count in stack.routed.items():

            def maker(v: Sequence[float], ffn=ffn) -> list[Op]:  # type: ignore[no-untyped-def]
                return self.ops.expert_layer_ops(ffn, v[0], v[1], RankLoad(*v[2:]), quick)

            group = self._group(("experts", ffn, quick), maker, 5)
            by_step = [self.ops.rank_loads(ffn, float(t)) for t in tokens]
            options = [
                np.column_stack((rows, tokens, np.array([loads[i] for loads in by_step])))
                for i in range(len(by_step[0]) if by_step else 0)
            ]
            if not options:
                continue
            slowest = options[0]
            if len(options) > 1:
                pick = np.argmax([group.seconds(values) for values in options], axis=0)
                slowest = np.array(options)[pick, np.arange(len(nodes))]
            sheet.add(group, nodes, slowest, weight * count)


@lru_cache(maxsize=1024)
def _engine(ops: StepOps) -> _Engine:
    """Budgets and policies of one cut share its groups."""
    return _Engine(ops)


# ---- nodes


@dataclass(frozen=True)
class _Steps:
    """Steps to price, as columns: each belongs to a node, which has it `weight` times.

    sequences, context, capped, total: decode as in DecodeLoad; new, past, chunks, tokens: prefill of the busiest rank
    and prompt tokens over all ranks; pairs: [steps, prefill_counts].
    """

    node: NDArray[np.intp]
    weight: Floats
    sequences: Floats
    context: Floats
    capped: Floats
    total: Floats
    new: Floats
    past: Floats
    chunks: Floats
    tokens: Floats
    pairs: Floats


def _priced(engine: _Engine, steps: _Steps, nodes: int, own_rates: bool) -> _Sheet:
    """The same sums as in `StepLatency.mixed_s` and `decode_s`, kept apart by op class and roof."""
    ops = engine.ops
    sheet = _Sheet(nodes, own_rates)
    parallel = ops.parallelism
    pp = parallel.pp
    imbalance = ops.cut.layers_per_stage(len(ops.model.layers)) * pp / len(ops.model.layers)
    drain = (2 * pp - 1) / pp
    prefills = steps.new > 0
    parts = np.minimum(pp, np.maximum(1.0, steps.sequences))
    seq, total = steps.sequences / parts, steps.total / parts
    reads = np.column_stack((seq, steps.context / parts, steps.capped / parts[:, None]))
    prefill_rows, prefill_tokens = steps.new / (parallel.cp * pp), steps.tokens / pp
    rows = prefill_rows + seq * ops.queries
    tokens = prefill_tokens + total * ops.queries
    head_rows = steps.chunks / pp + seq * ops.queries
    weight = steps.weight * imbalance * np.where(prefills, drain, 1.0)
    sheet.add(engine.rows, steps.node, rows[:, None], weight)
    sheet.add(engine.head, steps.node, head_rows[:, None], weight)
    values = np.column_stack((steps.new, steps.past, steps.chunks, steps.pairs)) / pp
    once = weight * ops.draft_tokens
    for quick in (False, True):
        at = np.flatnonzero(prefills != quick)
        engine.add_experts(sheet, ops.main, steps.node[at], rows[at], tokens[at], weight[at], quick)
    chosen = [ops.prefill_selecting(tuple(v)) if p else None for v, p in zip(values, prefills, strict=True)]
    for selecting in {c for c in chosen if c is not None}:
        at = np.flatnonzero([c == selecting for c in chosen])
        sheet.add(engine.prefill(ops.main, selecting), steps.node[at], values[at], weight[at])
        if ops.draft.layers:
            sheet.add(engine.prefill(ops.draft, selecting), steps.node[at], values[at], weight[at])
    decodes = steps.sequences > 0
    choosing = [
        ops.decode_selecting(float(r[1]), r[2:].tolist()) if d else None for r, d in zip(reads, decodes, strict=True)
    ]
    for selecting in {c for c in choosing if c is not None}:
        at = np.flatnonzero([c == selecting for c in choosing])
        sheet.add(engine.decode(ops.main, ops.queries, selecting), steps.node[at], reads[at], weight[at])
        if ops.draft.layers:
            sheet.add(engine.decode(ops.draft, 1, selecting), steps.node[at], reads[at], once[at])
    if ops.draft.layers:
        at = np.flatnonzero(prefills)
        sheet.add(engine.draft_rows, steps.node[at], prefill_rows[at, None], weight[at])
        engine.add_experts(sheet, ops.draft, steps.node[at], prefill_rows[at], prefill_tokens[at], weight[at], False)
        at = np.flatnonzero(decodes)
        sheet.add(engine.draft_rows, steps.node[at], seq[at, None], once[at])
        sheet.add(engine.head, steps.node[at], seq[at, None], once[at])
        engine.add_experts(sheet, ops.draft, steps.node[at], seq[at], total[at], once[at], True)
    return sheet


class _Columns:
    """Steps of nodes, being gathered."""

    def __init__(self, ops: StepOps, traffic: TrafficSample, *, whole: bool) -> None:
        """whole: prompts are never cut into chunks."""
        self.ops, self.traffic, self.whole = ops, traffic, whole
        self.ranks = ops.parallelism.dp
        self.steps: list[float] = []  # of each node
        self.places: list[int] = []  # node of each step asked for: equal ones share theirs
        self._rows: list[tuple[float, ...]] = []  # node, weight, sequences, new, past, chunks, tokens, pairs
        self._counted: dict[tuple[int, int], list[float]] = {}  # pairs by new and past tokens: steps share them

    def _add(
        self, weight: float, n: float, new: float, past: float, chunks: float, tokens: float, pairs: list[float]
    ) -> None:
        self._rows.append((len(self.steps), weight, n, new, past, chunks, tokens, *pairs))

    def _pairs(self, new: float, past: float) -> list[float]:
        key = max(1, round(new)), round(past)
        found = self._counted.get(key)
        if found is None:
            found = self._counted[key] = [float(counted(what, *key)) for what in self.ops.prefill_counts]
        return found

    def decode(self, n: float) -> None:
        self._add(1.0, n, 0.0, 0.0, 0.0, 0.0, [0.0] * len(self.ops.prefill_counts))
        self._end(1.0)

    def again(self) -> None:
        """The last node once more."""
        self.places.append(len(self.steps) - 1)

    def _end(self, steps: float) -> None:
        """Of a node, in so many steps."""
        self.places.append(len(self.steps))
        self.steps.append(steps)

    def _chunks(self, prompt: float, room: float) -> list[tuple[float, float, float]]:
        """(weight, new, past) of the chunks of a prompt; cost is smooth in the past, so few of many stand for all."""
        cached = self.traffic.cached
        if self.whole or prompt <= room:
            return [(1.0, prompt, cached)]
        full = math.ceil(prompt / room) - 1
        places = [(1.0, float(i)) for i in range(full)]
        if full > WHOLE_CHUNKS:
            places = [(full / 3, (i + 0.5) * full / 3 - 0.5) for i in range(3)]
        return [
            *((weight, room, cached + place * room) for weight, place in places),
            (1.0, prompt - full * room, cached + full * room),
        ]

    def prompts(self, n: float, room: float, k: float, chances: Floats, lengths: Floats) -> None:
        """k prompts at once, one a rank. chances: that the longest of them has each of the lengths."""
        steps = 0.0
        others = (k - 1.0) * self.traffic.prompt
        for chance, prompt in zip(chances, lengths, strict=True):
            if chance < RARE:
                continue
            cut = self._chunks(float(prompt), room)
            together = sum(weight for weight, _, _ in cut)
            for weight, new, past in cut:
                tokens = new + min(others / together, (k - 1.0) * new)
                self._add(chance * weight, n, new, past, 1.0, tokens, self._pairs(new, past))
            steps += chance * together
        self._end(steps)

    def flow(self, n: float, room: float, k: float) -> None:
        """k prompts, each on the rank with fewest tokens to do; where they fill all ranks, a flow of tokens."""
        a_rank, prompt = k / self.ranks, self.traffic.prompt
        steps = max(1.0, a_rank if self.whole and prompt > room else a_rank * prompt / room)
        held = a_rank / steps
        most = max(room, prompt) if self.whole else room
        busiest = min(most, held * prompt + self.traffic.lead(self.ranks, k)) if held * prompt < most else held * prompt
        cached = self.traffic.cached
        pairs = np.mean([self._pairs(float(p), cached) for p in self.traffic.bins], axis=0) * (busiest / prompt)
        self._add(
            steps, n, busiest, cached * max(1.0, held), max(1.0, held), held * prompt * self.ranks, pairs.tolist()
        )
        self._end(steps)

    def gathered(self) -> _Steps:
        """With the loads of decode: the rank whose summed context is largest sets the time."""
        rows, ranks, traffic = np.array(self._rows), self.ranks, self.traffic
        n = rows[:, 2]
        busiest = np.minimum(n, np.maximum(np.minimum(n, 1.0), n / ranks + (ranks - 1) / (2 * ranks)))
        mean, deviation = traffic.context
        beyond = largest_of(np.minimum(n, ranks)) * deviation * np.sqrt(np.maximum(1.0, n / ranks))
        context = np.where(n > 0, busiest * mean + beyond, 0.0)
        capped = np.array([np.minimum(busiest * traffic.capped(cap), context) for cap in self.ops.caps])
        return _Steps(
            rows[:, 0].astype(np.intp), rows[:, 1], busiest, context, capped.reshape(-1, len(n)).T, n,
            rows[:, 3], rows[:, 4], rows[:, 5], rows[:, 6], rows[:, 7:],
        )  # fmt: skip


@dataclass(frozen=True)
class EngineSteps:
    """Steps of one engine under one traffic: nodes of decode, then of bunches, of lone prompts and of full steps.

    batches: [BATCHES] sequences on the instance; 0 alone where it does not decode.
    bunches: [BUNCHES] prompts prefilled together; none where it does not prefill.
    beside: [H] sequences that decode beside them: `batches` where the policy mixes, else 0 alone.
    steps: [nodes] steps of a node. capacity: [H] prompts of mean length that a step takes.
    kernels: that a decode step launches. latency, exits, linear, several: of the nodes, as of a StepTable.
    """

    batches: Floats
    bunches: Floats
    beside: Floats
    steps: Floats
    capacity: Floats
    latency: Floats
    exits: Floats
    linear: Floats
    several: Launches
    kernels: float
    ranks: int


def price(
    ops: StepOps,
    traffic: TrafficSample,
    budget: int,
    batching: Batching = "chunked",
    most_sequences: float = 512.0,
    *,
    decodes: bool = True,
    prefills: bool = True,
    own_rates: bool = False,
    nodes: int = BATCHES,
) -> EngineSteps:
    """Price the steps of one engine.

    budget: prompt tokens (and decode rows, where they share steps) of a step and rank. most_sequences: on the instance.
    decodes, prefills: False where the engine is of a pool that does not. own_rates: for the profile's own kernel rates
    alone, several times as fast. nodes: over decoding sequences.
    """
    ranks = ops.parallelism.dp
    mixes = decodes and prefills and batching != "prefill_first"
    most = max(2.0, most_sequences)
    batches = np.concatenate(([0.0], np.geomspace(1.0, most, nodes - 1))) if decodes else np.zeros(1)
    beside = batches if mixes else np.zeros(1)
    left = np.maximum(FEWEST_CHUNK, budget - beside * ops.queries / ranks)
    a_rank = left / traffic.prompt
    columns = _Columns(ops, traffic, whole=batching == "inflight")
    capacity = ranks * (np.maximum(1.0, np.floor(a_rank)) if columns.whole else a_rank)
    bunches = np.geomspace(1.0, max(1.0, ranks, ranks * budget / traffic.prompt), BUNCHES)
    for n in batches.tolist():
        columns.decode(n)
    if prefills:
        decoding = list(zip(beside.tolist(), left.tolist(), capacity.tolist(), strict=True))
        for n, room, _ in decoding:
            for k in bunches.tolist():
                if k <= ranks:
                    columns.prompts(n, room, k, *traffic.longest(k))
                else:
                    columns.flow(n, room, k)
        for n, room, _ in decoding:
            for place, chances in enumerate(np.eye(BINS)):
                if place and own_rates and traffic.bins[place] == traffic.bins[place - 1]:
                    columns.again()
                else:
                    columns.prompts(n, room, 1.0, chances, traffic.bins)
        for n, room, k in decoding:
            columns.flow(n, room, k)
    steps = np.array(columns.steps)[columns.places]
    sheet = _priced(_engine(ops), columns.gathered(), len(columns.steps), own_rates)
    if own_rates:
        sheet = sheet.spread(columns.places)
    return EngineSteps(
        batches, bunches if prefills else bunches[:0], beside, steps, capacity,
        sheet.latency, sheet.exits, sheet.linear, sheet.merged(), _engine(ops).kernels, ranks,
    )  # fmt: skip


@dataclass(frozen=True)
class StepSeconds:
    """Steps of instances in seconds, [points, draws or 1, nodes ...]; grids and counts of steps have one draw.

    batches: [.., G] sequences that decode on the instance; decode_s: [.., G] one step of them, 0 without any.
    bunches: [.., K] prompts; bunch_s, bunch_steps: [.., H, K] all steps in which they are prefilled together, those
    that decode beside them included; H is G, or 1 where nothing decodes beside prompts.
    lone_s, lone_steps: [.., H, BINS] one prompt of each part of the prompts alone.
    full_s: [.., H] a full step for each of its `capacity` prompts. ranks: [.., 1].
    """

    batches: Floats
    bunches: Floats
    ranks: Floats
    decode_s: Floats
    bunch_s: Floats
    bunch_steps: Floats
    lone_s: Floats
    lone_steps: Floats
    full_s: Floats
    capacity: Floats

    @property
    def total_shape(self) -> tuple[int, ...]:
        """[points, draws]"""
        return self.decode_s.shape[:2]

    @property
    def mixes(self) -> bool:
        """Whether sequences decode in the steps of prompts."""
        return self.capacity.shape[2] > 1

    def take(self, rows: NDArray[np.intp]) -> StepSeconds:
        """The points `rows`, in that order; a point may come several times."""
        return StepSeconds(**{one.name: getattr(self, one.name)[rows] for one in fields(self)})


@dataclass(frozen=True)
class StepTable:
    """Steps of many engines of one layout, under their profiles' kernel rates.

    latency, exits: [points, nodes]. linear: [points, nodes, classes, 3]. several: of all points' nodes, rising.
    """

    engines: tuple[EngineSteps, ...]
    latency: Floats
    exits: Floats
    linear: Floats
    several: Launches

    @classmethod
    def of(cls, engines: Sequence[EngineSteps]) -> StepTable:
        """engines: all that decode and prefill in steps of the same kinds (see `EngineSteps`)."""
        nodes = len(engines[0].steps)
        assert all(len(engine.steps) == nodes for engine in engines)
        several = [engine.several for engine in engines]
        return cls(
            tuple(engines),
            np.array([engine.latency for engine in engines]),
            np.array([engine.exits for engine in engines]),
            np.array([engine.linear for engine in engines]),
            Launches(
                np.concatenate([i * nodes + launches.node for i, launches in enumerate(several)]),
                *(
                    np.concatenate([getattr(one, name) for one in several])
                    for name in ("op_class", "exponent", "roofs")
                ),
            ),
        )

    def take(self, rows: Sequence[int]) -> StepTable:
        """The engines `rows`, in that order; an engine may come several times."""
        return StepTable.of([self.engines[row] for row in rows])

    @cached_property
    def _powered(self) -> Floats:
        """[launches, 3] roofs^q."""
        return np.asarray(self.several.roofs ** self.several.exponent[:, None])

    @cached_property
    def _kinds(self) -> tuple[Floats, NDArray[np.intp]]:
        """Distinct (class, exponent) of launches, and which each is."""
        columns = np.column_stack((self.several.op_class.astype(float), self.several.exponent))
        kinds, which = np.unique(columns, axis=0, return_inverse=True)
        return np.asarray(kinds, dtype=np.float64), which.ravel()

    def kernel_s(self, given: EngineParameters) -> Floats:
        """[points, draws, nodes] seconds without host time."""
        rates = given.rates()
        moved = np.flatnonzero((rates != rates[:, :1]).any(axis=(0, 2, 3)))  # draws with kernels of their own
        place = np.zeros(rates.shape[1], dtype=np.intp)
        place[moved] = np.arange(len(moved)) + 1
        kernels = self._roofs_s(rates[:, [0, *moved.tolist()]])[:, place]
        return np.asarray(kernels + self.latency[:, None] + self.exits[:, None] * given.exit_latency_s[..., None])

    def _roofs_s(self, rates: Floats) -> Floats:
        """[points, draws, nodes] seconds of kernels without their floors. rates: [points or 1, draws, classes, 3]"""
        points, nodes = self.latency.shape
        draws = rates.shape[1]
        rates = np.broadcast_to(rates, (points, *rates.shape[1:]))
        alone = np.einsum("pnc,pdc->pdn", self.linear.reshape(points, nodes, -1), 1 / rates.reshape(points, draws, -1))
        node = self.several.node
        if not len(node):
            return np.asarray(alone)
        kinds, which = self._kinds
        slower = rates[:, :, kinds[:, 0].astype(np.intp)] ** -kinds[:, 1, None]  # [points, draws, kinds, 3]
        own = slower.transpose(0, 2, 1, 3)[node // nodes, which]  # [launches, draws, 3]
        norm = np.einsum("lr,ldr->ld", self._powered, own) ** (1 / self.several.exponent[:, None])
        there, starts = np.unique(node, return_index=True)
        several = np.zeros((points * nodes, draws))
        several[there] = np.add.reduceat(norm, starts, axis=0)
        return np.asarray(alone + several.reshape(points, nodes, draws).transpose(0, 2, 1))

    def seconds(self, given: EngineParameters) -> StepSeconds:
        """Seconds under engine parameters, [points or 1, draws or 1] each."""
        engines = self.engines
        batches, beside, bunches, capacity, steps = (
            np.array([getattr(engine, name) for engine in engines])[:, None]
            for name in ("batches", "beside", "bunches", "capacity", "steps")
        )
        ranks = np.array([[[float(engine.ranks)]] for engine in engines])
        kernels = np.array([[engine.kernels] for engine in engines])
        host = given.step_overhead_s + given.kernel_overhead_s * kernels
        each = given.sequence_overhead_s[..., None] / ranks
        g, h, k = batches.shape[2], beside.shape[2], bunches.shape[2]
        sequences = [batches]
        if k:
            sequences += [np.repeat(beside, k, axis=2), np.repeat(beside, BINS, axis=2), beside]
        n = np.concatenate(sequences, axis=2)
        total = self.kernel_s(given) + steps * (host[..., None] + each * n)
        decode = total[..., :g] * (batches > 0)
        ends = np.cumsum([g, h * k, h * BINS, h]) if k else [g] * 4
        bunch, lone, full = (total[..., a:b] for a, b in itertools.pairwise(ends))
        shape = (*total.shape[:2], h, -1)
        count = (len(engines), 1, h, -1)
        if not k:
            none = np.zeros((*total.shape[:2], h, 0))
            return StepSeconds(
                batches, bunches, ranks, decode, none, none, none, none, none[..., 0:0].sum(-1), capacity
            )
        return StepSeconds(
            batches, bunches, ranks, decode,
            bunch.reshape(shape), steps[..., ends[0] : ends[1]].reshape(count),
            lone.reshape(shape), steps[..., ends[1] : ends[2]].reshape(count),
            full / (capacity * 1.0), capacity,
        )  # fmt: skip

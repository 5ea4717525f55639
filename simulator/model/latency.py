"""Seconds of one step of an instance: what the discrete-event model and the planner ask for.

A step runs its ops one after the other on the busiest rank, plus the host's time per step. Ops fall into groups that
depend on few numbers each (rows of this rank, tokens of the stage, sums of entries read); each group is compiled once
and its seconds are remembered, so that a decode step costs one look-up and a few p-norms.

Pipeline stages: a step is cut into pp microbatches. Decode keeps the pipeline full, so every sequence advances once in
the time that one microbatch needs for all stages. A step with prefill drains the pipeline: (2 pp - 1) stage times.
Context-parallel ranks split prefill; each runs the decode rows of its data-parallel rank in full.
Drafts: every decode step runs the draft head `draft_tokens` times on one row a sequence, then verifies 1 + draft_tokens
rows a sequence; prefill runs the draft head once over its tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from hw_profiles.efficiency import OpClass
from hw_profiles.profile import HardwareProfile
from simulator.model import layers as layer_ops
from simulator.model.architecture import DraftHead, LayerSpec, ModelSpec, MoeSpec
from simulator.model.cut import Cut
from simulator.model.moe import RankLoad, expert_ops, rank_loads
from simulator.model.ops import Op, Reader, entries_read, readers
from simulator.model.parallelism import Parallelism
from simulator.model.program import Program, compile_program
from simulator.model.roofline import Bound, op_seconds, roof_times


class LoadError(ValueError):
    """A step that cannot be priced; the message names the field and what would do."""


class DecodeLoad(NamedTuple):
    """Decode part of a step.

    sequences: on the busiest data-parallel rank. context: their summed context, the new token included.
    capped: for each cap of StepLatency.caps, the sum of min(context, cap). total_sequences: over all ranks.
    """

    sequences: int
    context: int
    capped: tuple[int, ...]
    total_sequences: int


class Chunk(NamedTuple):
    """`new` prompt tokens after `past` tokens whose KV is already there."""

    new: int
    past: int


class PricedOp(NamedTuple):
    """An op of a step, the seconds it adds to the step, and the roof that binds it."""

    op: Op
    seconds: float
    bound: Bound


# weight, exponent, 1/exponent, compute (constant, 2 x (slope, index)), memory (constant, 3 x (slope, index))
_FlatTerm = tuple[float, float, float, float, float, int, float, int, float, float, int, float, int, float, int]

NO_DECODE = DecodeLoad(0, 0, (), 0)


@dataclass(frozen=True)
class _Stack:
    """Distinct layers with how many there are of each: the model's, or those of its draft head."""

    layers: tuple[tuple[LayerSpec, int], ...]

    @classmethod
    def of(cls, layers: Sequence[LayerSpec]) -> _Stack:
        """Which layer's KV or selection a layer borrows does not change its work: such layers count as one."""
        counts: dict[LayerSpec, int] = {}
        for layer in layers:
            attention = layer.attention
            if attention.kv_source_layer is not None:
                attention = replace(attention, kv_source_layer=0)
            if attention.indexer and attention.indexer.shares_layer is not None:
                attention = replace(attention, indexer=replace(attention.indexer, shares_layer=0))
            kind = replace(layer, attention=attention)
            counts[kind] = counts.get(kind, 0) + 1
        return cls(tuple(counts.items()))

    @property
    def routed(self) -> dict[MoeSpec, int]:
        """Layers by routed experts, the rest of the feed-forward left out."""
        counts: dict[MoeSpec, int] = {}
        for layer, count in self.layers:
            if layer.ffn.experts:
                bare = replace(layer.ffn, linears=(), routing="scored", other_params=0, other_param_bytes=0.0)
                counts[bare] = counts.get(bare, 0) + count
        return counts


def _times(ops: Sequence[Op], count: int) -> list[Op]:
    return [replace(op, count=op.count * count) for op in ops] if count > 1 else list(ops)


class StepLatency:
    """Step times of one instance of `model` on `hardware` under `parallelism`.

    draft_tokens: tokens drafted per decode step and verified in it.
    """

    def __init__(
        self, model: ModelSpec, hardware: HardwareProfile, parallelism: Parallelism, draft_tokens: int = 0
    ) -> None:
        parallelism.check(model)
        if draft_tokens < 0:
            raise LoadError(f"draft_tokens={draft_tokens} is negative; use 0 for no drafts")
        if draft_tokens and model.draft is None:
            raise LoadError(f"draft_tokens={draft_tokens}, but {model.name} has no draft head; use 0")
        self.model, self.hardware, self.parallelism = model, hardware, parallelism
        self.draft_tokens = draft_tokens
        self._queries = 1 + draft_tokens
        self._cut = Cut.of(parallelism, hardware)
        self._main = _Stack.of(model.layers)
        self._draft = _Stack.of(model.draft.layers) if model.draft and draft_tokens else _Stack(())
        attentions = [layer.attention for layer, _ in (*self._main.layers, *self._draft.layers)]
        self._readers = readers(attentions, self._queries)
        self.caps = tuple(sorted({r.ratio * r.cap for r in self._readers if r.cap is not None}))
        stages = parallelism.pp
        self._imbalance = self._cut.layers_per_stage(len(model.layers)) * stages / len(model.layers)
        self._drain = (2 * stages - 1) / stages
        self._decode_base: dict[tuple[int, int], float] = {}
        self._rows_s: dict[int, float] = {}

    @property
    def first_token_extra_s(self) -> float:
        """Per request, before its first token: tokenise, admission, HTTP. [s]"""
        return self.hardware.efficiency.request_overhead_s

    # ---- the three questions

    def decode_s(self, load: DecodeLoad) -> float:
        """One decode step. [s]"""
        if self.parallelism.pp > 1:
            load = self._microbatch(load)
        sequences, context, capped, total = load
        if not sequences:
            return 0.0
        step = self._decode_base.get((sequences, total))
        if step is None:
            step = self._fill_decode_base(sequences, total)
        reads = (sequences, context, *capped)
        for index, slope in self._decode_slopes:
            step += slope * reads[index]
        for weight, exponent, root, f0, f1, i1, f2, i2, b0, b1, j1, b2, j2, b3, j3 in self._decode_terms:
            step += (
                weight
                * (
                    (f0 + f1 * reads[i1] + f2 * reads[i2]) ** exponent
                    + (b0 + b1 * reads[j1] + b2 * reads[j2] + b3 * reads[j3]) ** exponent
                )
                ** root
            )
        return step

    def prefill_s(self, chunks: Sequence[Chunk], total_tokens: int | None = None) -> float:
        """One prefill step: chunks of the busiest data-parallel rank; total_tokens over all ranks (default: all
        ranks as busy). [s]"""
        return self.mixed_s(chunks, NO_DECODE, total_tokens)

    def mixed_s(self, chunks: Sequence[Chunk], load: DecodeLoad, total_tokens: int | None = None) -> float:
        """One step with prefill chunks and decode together; total_tokens counts prefill tokens only. [s]"""
        if not chunks:
            return self.decode_s(load)
        step = self._step(chunks, load, total_tokens)
        seconds = self._rows(step.rows) + self._head_program.seconds((step.head_rows,))
        seconds += self._experts(self._expert_programs, step.rows, step.tokens, False)
        seconds += self._prefill_program.seconds(step.prefill)
        load = step.load
        if load.sequences:
            seconds += self._decode_program.seconds((load.sequences, load.context, *load.capped))
        if self.draft_tokens:
            seconds += self._draft_prefill_s(step)
            seconds += self._draft_rounds_s(load.sequences, load.total_sequences)
        return seconds * self._imbalance * self._drain + self._host_s

    def breakdown(self, chunks: Sequence[Chunk], load: DecodeLoad, total_tokens: int | None = None) -> list[PricedOp]:
        """The step op by op; seconds add up to the step's time."""
        if not chunks and not load.sequences:
            return []
        step = self._step(chunks, load, total_tokens)
        scale = self._imbalance * (self._drain if chunks else 1.0)
        priced = []
        for op in self._ops(step):
            times = roof_times(op, self.hardware)
            priced.append(PricedOp(op, op.count * times.seconds * scale, times.bound))
        return [*priced, PricedOp(Op("host", OpClass.ELEMENTWISE), self._host_s, "host")]

    # ---- one step as numbers

    @property
    def _host_s(self) -> float:
        return self.hardware.efficiency.step_overhead_s

    def _microbatch(self, load: DecodeLoad) -> DecodeLoad:
        """The decode load of one of pp microbatches (of fewer where there are fewer sequences)."""
        parts = min(self.parallelism.pp, load.sequences)
        if parts < 2:
            return load
        return DecodeLoad(
            math.ceil(load.sequences / parts),
            math.ceil(load.context / parts),
            tuple(math.ceil(capped / parts) for capped in load.capped),
            math.ceil(load.total_sequences / parts),
        )

    def _step(self, chunks: Sequence[Chunk], load: DecodeLoad, total_tokens: int | None) -> _Step:
        """The numbers that the ops of one microbatch are functions of."""
        pp, cp, dp = self.parallelism.pp, self.parallelism.cp, self.parallelism.dp
        new = sum(chunk.new for chunk in chunks)
        past = sum(chunk.past for chunk in chunks)
        total = new * dp if total_tokens is None else total_tokens
        load = self._microbatch(load)
        if load.sequences and len(load.capped) != len(self.caps):
            raise LoadError(f"capped has {len(load.capped)} sums; give one for each of caps={self.caps}")
        prefill_rows = math.ceil(new / (cp * pp))
        pairs = tuple(
            sum(entries_read(reader, chunk.new, chunk.past) for chunk in chunks) / pp for reader in self._readers
        )
        return _Step(
            rows=prefill_rows + load.sequences * self._queries,
            tokens=math.ceil(total / pp) + load.total_sequences * self._queries,
            head_rows=math.ceil(len(chunks) / pp) + load.sequences * self._queries,
            prefill_rows=prefill_rows,
            prefill_tokens=math.ceil(total / pp),
            prefill=(new / pp, past / pp, len(chunks) / pp, *pairs) if chunks else (),
            load=load,
        )

    def _ops(self, step: _Step) -> list[Op]:
        """All ops of one microbatch, built anew."""
        prefill = bool(step.prefill)
        load = step.load
        reads = (load.sequences, load.context, *load.capped)
        ops = self._row_ops(self._main, step.rows)
        ops += layer_ops.embedding_ops(self.model, step.rows, self._cut)
        ops += layer_ops.head_ops(self.model, step.head_rows, self._cut)
        ops += self._all_expert_ops(self._main, step.rows, step.tokens, not prefill)
        if prefill:
            ops += self._prefill_ops(self._main, step.prefill)
        if load.sequences:
            ops += self._decode_ops(self._main, reads, self._queries)
        if not self._draft.layers:
            return ops
        if prefill:
            ops += self._draft_row_ops(step.prefill_rows)
            ops += self._all_expert_ops(self._draft, step.prefill_rows, step.prefill_tokens, False)
            ops += self._prefill_ops(self._draft, step.prefill)
        if load.sequences:
            once = self._draft_row_ops(load.sequences)
            once += layer_ops.head_ops(self.model, load.sequences, self._cut)
            once += self._all_expert_ops(self._draft, load.sequences, load.total_sequences, True)
            once += self._decode_ops(self._draft, reads, 1)
            ops += _times(once, self.draft_tokens)
        return ops

    # ---- groups of ops, each affine in its arguments

    def _row_ops(self, stack: _Stack, rows: float) -> list[Op]:
        return [
            op
            for layer, count in stack.layers
            for op in _times(layer_ops.row_ops(layer, self.model, rows, self._cut), count)
        ]

    def _draft_row_ops(self, rows: float) -> list[Op]:
        head = self.model.draft
        assert isinstance(head, DraftHead)
        ops = [layer_ops.linear_op(x, rows, self._cut.linear_share(x)) for x in head.linears]
        return [*ops, *self._row_ops(self._draft, rows)]

    def _expert_layer_ops(
        self, ffn: MoeSpec, rows: float, tokens: float, load: RankLoad, low_latency: bool
    ) -> list[Op]:
        return expert_ops(ffn, rows / self.parallelism.tp, tokens, load, self._cut, low_latency=low_latency)

    def _all_expert_ops(self, stack: _Stack, rows: float, tokens: float, low_latency: bool) -> list[Op]:
        """On the rank whose load takes longest."""
        ops: list[Op] = []
        for ffn, count in stack.routed.items():
            loads = rank_loads(ffn, tokens, self.parallelism.ep)
            by_rank = (self._expert_layer_ops(ffn, rows, tokens, load, low_latency) for load in loads)
            slowest = max(by_rank, key=lambda work: sum(op_seconds(op, self.hardware) for op in work))
            ops += _times(slowest, count)
        return ops

    def _decode_ops(self, stack: _Stack, values: Sequence[float], queries: int) -> list[Op]:
        """values: sequences, context, capped sums. A reader of ratio r and cap k reads sum(min(s, r k)) / r
        entries: the floor is left out, at most one entry a sequence."""
        sequences, context, *capped = values
        by_cap = dict(zip(self.caps, capped, strict=True))
        reads = {r: (context if r.cap is None else by_cap[r.ratio * r.cap]) / r.ratio for r in self._readers}
        return [
            op
            for layer, count in stack.layers
            for op in _times(layer_ops.decode_core_ops(layer.attention, sequences, queries, reads, self._cut), count)
        ]

    def _prefill_ops(self, stack: _Stack, values: Sequence[float]) -> list[Op]:
        """values: new tokens, past tokens, chunks, entries read by each reader."""
        new, past, chunks, *pairs = values
        reads: dict[Reader, float] = dict(zip(self._readers, pairs, strict=True))
        return [
            op
            for layer, count in stack.layers
            for op in _times(layer_ops.prefill_core_ops(layer.attention, new, past, chunks, reads, self._cut), count)
        ]

    # ---- the same, compiled

    def _compiled(self, maker: Callable[[Sequence[float]], Sequence[Op]], variables: int) -> Program:
        return compile_program(maker, variables, self.hardware)

    @cached_property
    def _row_program(self) -> Program:
        def ops(v: Sequence[float]) -> list[Op]:
            return [*self._row_ops(self._main, v[0]), *layer_ops.embedding_ops(self.model, v[0], self._cut)]

        return self._compiled(ops, 1)

    @cached_property
    def _head_program(self) -> Program:
        return self._compiled(lambda v: layer_ops.head_ops(self.model, v[0], self._cut), 1)

    @cached_property
    def _draft_row_program(self) -> Program:
        return self._compiled(lambda v: self._draft_row_ops(v[0]), 1)

    def _compile_experts(self, stack: _Stack) -> list[tuple[MoeSpec, int, Program, Program]]:
        def program(ffn: MoeSpec, low_latency: bool) -> Program:
            def ops(v: Sequence[float]) -> list[Op]:
                return self._expert_layer_ops(ffn, v[0], v[1], RankLoad(v[2], v[3]), low_latency)

            return self._compiled(ops, 4)

        return [(ffn, count, program(ffn, False), program(ffn, True)) for ffn, count in stack.routed.items()]

    @cached_property
    def _expert_programs(self) -> list[tuple[MoeSpec, int, Program, Program]]:
        return self._compile_experts(self._main)

    @cached_property
    def _draft_expert_programs(self) -> list[tuple[MoeSpec, int, Program, Program]]:
        return self._compile_experts(self._draft)

    @cached_property
    def _prefill_program(self) -> Program:
        return self._compiled(lambda v: self._prefill_ops(self._main, v), 3 + len(self._readers))

    @cached_property
    def _draft_prefill_program(self) -> Program:
        return self._compiled(lambda v: self._prefill_ops(self._draft, v), 3 + len(self._readers))

    @cached_property
    def _decode_program(self) -> Program:
        """Cores of the verified rows and of the draft rounds."""

        def ops(v: Sequence[float]) -> list[Op]:
            drafts = _times(self._decode_ops(self._draft, v, 1), self.draft_tokens)
            return [*self._decode_ops(self._main, v, self._queries), *drafts]

        return self._compiled(ops, 2 + len(self.caps))

    @cached_property
    def _decode_slopes(self) -> tuple[tuple[int, float], ...]:
        return tuple((i, slope * self._imbalance) for i, slope in self._decode_program.linear.slopes)

    @cached_property
    def _decode_terms(self) -> list[_FlatTerm]:
        """Terms of the decode cores laid flat for the hot loop; absent slopes are zeros at index 0."""
        flat = []
        for count, term in self._decode_program.terms:
            compute, memory = term.roofs
            f = [*compute.slopes, (0, 0.0), (0, 0.0)]
            b = [*memory.slopes, (0, 0.0), (0, 0.0), (0, 0.0)]
            # a core multiplies window and selection; it reads them and its own rows
            assert len(compute.slopes) <= 2
            assert len(memory.slopes) <= 3
            flat.append(
                (
                    count * self._imbalance, term.exponent, 1.0 / term.exponent,
                    compute.constant, f[0][1], f[0][0], f[1][1], f[1][0],
                    memory.constant, b[0][1], b[0][0], b[1][1], b[1][0], b[2][1], b[2][0],
                )
            )  # fmt: skip
        return flat

    # ---- remembered parts

    def _rows(self, rows: int) -> float:
        seconds = self._rows_s.get(rows)
        if seconds is None:
            seconds = self._rows_s[rows] = self._row_program.seconds((rows,))
        return seconds

    def _experts(
        self, programs: list[tuple[MoeSpec, int, Program, Program]], rows: int, tokens: int, low_latency: bool
    ) -> float:
        seconds = 0.0
        for ffn, count, normal, quick in programs:
            program = quick if low_latency else normal
            loads = rank_loads(ffn, tokens, self.parallelism.ep)
            seconds += count * max(program.seconds((rows, tokens, *load)) for load in loads)
        return seconds

    def _draft_rounds_s(self, sequences: int, total: int) -> float:
        """All draft rounds of a decode step, their attention cores left out."""
        if not sequences or not self.draft_tokens:
            return 0.0
        once = self._draft_row_program.seconds((sequences,)) + self._head_program.seconds((sequences,))
        once += self._experts(self._draft_expert_programs, sequences, total, True)
        return self.draft_tokens * once

    def _draft_prefill_s(self, step: _Step) -> float:
        seconds = self._draft_row_program.seconds((step.prefill_rows,))
        seconds += self._experts(self._draft_expert_programs, step.prefill_rows, step.prefill_tokens, False)
        return seconds + self._draft_prefill_program.seconds(step.prefill)

    def _fill_decode_base(self, sequences: int, total: int) -> float:
        """All of a decode step but what grows with context."""
        rows = sequences * self._queries
        seconds = self._rows(rows) + self._head_program.seconds((rows,))
        seconds += self._experts(self._expert_programs, rows, total * self._queries, True)
        seconds += self._draft_rounds_s(sequences, total) + self._decode_program.linear.constant
        base = seconds * self._imbalance + self._host_s
        self._decode_base[sequences, total] = base
        return base


class _Step(NamedTuple):
    """One microbatch of a step on the busiest rank."""

    rows: int
    tokens: int  # of the stage, for the experts
    head_rows: int
    prefill_rows: int
    prefill_tokens: int
    prefill: tuple[float, ...]  # new, past, chunks, entries by reader; empty without chunks
    load: DecodeLoad

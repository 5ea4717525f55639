"""One step of an instance as a list of ops: what each group of ops depends on, and all of them together.

Groups: rows of this rank (projections, norms, mixing), tokens of the stage (experts), entries read (attention cores),
rows that need logits (LM head). Draft heads add their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from hw_profiles.profile import HardwareProfile
from simulator.model import attention as cores
from simulator.model import layers as layer_ops
from simulator.model.architecture import DraftHead, LayerSpec, ModelSpec, MoeSpec
from simulator.model.expert_load import ExpertLoads, ExpertSkew
from simulator.model.moe import RankLoad, expert_ops, uniform_load
from simulator.model.ops import Counted, Op, Reader, counted, entry_reader, prefill_counts, readers, selectors
from simulator.model.parallelism import Parallelism
from simulator.model.precision import as_multiplied_on
from simulator.model.roofline import op_seconds
from simulator.model.sharding import Cut


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

    @classmethod
    def of(cls, contexts: Sequence[int], caps: Sequence[int]) -> DecodeLoad:
        """Sequences of these contexts on the only rank.

        >>> DecodeLoad.of([100, 300], caps=(128, 512))
        DecodeLoad(sequences=2, context=400, capped=(228, 400), total_sequences=2)
        """
        capped = tuple(sum(min(context, cap) for context in contexts) for cap in caps)
        return cls(len(contexts), sum(contexts), capped, len(contexts))

    @classmethod
    def alike(cls, sequences: int, context: float, caps: Sequence[int], total_sequences: int) -> DecodeLoad:
        """Sequences of one context.

        >>> DecodeLoad.alike(2, 200.25, caps=(128, 512), total_sequences=16)
        DecodeLoad(sequences=2, context=400, capped=(256, 400), total_sequences=16)
        """
        capped = tuple(round(sequences * min(context, cap)) for cap in caps)
        return cls(sequences, round(sequences * context), capped, total_sequences)


class Chunk(NamedTuple):
    """`new` prompt tokens after `past` tokens whose KV is already there."""

    new: int
    past: int


CHUNK_SUMS = 3  # that the values of prefill ops begin with: new tokens, past tokens, chunks
NO_DECODE = DecodeLoad(0, 0, (), 0)


class StepShape(NamedTuple):
    """One microbatch of a step on the busiest rank."""

    rows: int
    tokens: int  # of the stage, for the experts
    head_rows: int
    prefill_rows: int
    prefill_tokens: int
    prefill: tuple[float, ...]  # new, past, chunks, sums of `prefill_counts`; empty without chunks
    load: DecodeLoad


@dataclass(frozen=True)
class Stack:
    """Distinct layers with how many there are of each: the model's, or those of its draft head."""

    layers: tuple[tuple[LayerSpec, int], ...]

    @classmethod
    def of(cls, layers: Iterable[tuple[LayerSpec, int]]) -> Stack:
        """Which layer's KV or selection a layer borrows does not change its work: such layers count as one."""
        counts: dict[LayerSpec, int] = {}
        for layer, count in layers:
            attention = layer.attention
            if attention.kv_source_layer is not None:
                attention = replace(attention, kv_source_layer=0)
            if attention.indexer and attention.indexer.shares_layer is not None:
                attention = replace(attention, indexer=replace(attention.indexer, shares_layer=0))
            kind = replace(layer, attention=attention)
            counts[kind] = counts.get(kind, 0) + count
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


def times(ops: Sequence[Op], count: int) -> list[Op]:
    """The same ops, `count` (at least 1) times as often."""
    return [replace(op, count=op.count * count) for op in ops] if count > 1 else list(ops)


class StepOps:
    """Ops of the steps of one instance. Arguments as of StepLatency."""

    def __init__(
        self,
        model: ModelSpec,
        hardware: HardwareProfile,
        parallelism: Parallelism,
        draft_tokens: int,
        expert_skew: ExpertSkew | None = None,
    ) -> None:
        parallelism.check(model)
        if draft_tokens < 0:
            raise LoadError(f"draft_tokens={draft_tokens} is negative; use 0 for no drafts")
        if draft_tokens and model.draft is None:
            raise LoadError(f"draft_tokens={draft_tokens}, but {model.name} has no draft head; use 0")
        model = as_multiplied_on(model, hardware)
        self.model, self.hardware, self.parallelism = model, hardware, parallelism
        self.draft_tokens = draft_tokens
        self.queries = 1 + draft_tokens
        self.cut = Cut.of(parallelism, hardware)
        self.main = Stack.of(model.kinds)
        self.draft = (
            Stack.of([(layer, 1) for layer in model.draft.layers]) if model.draft and draft_tokens else Stack(())
        )
        self.expert_loads = {
            ffn: ExpertLoads(expert_skew, ffn, parallelism.ep, count)
            for ffn, count in {**self.draft.routed, **self.main.routed}.items()
            if expert_skew is not None
        }
        attentions = [layer.attention for layer, _ in (*self.main.layers, *self.draft.layers)]
        self.readers = readers(attentions, self.queries)
        self.prefill_counts = prefill_counts(attentions, self.queries)
        self.selectors = selectors(attentions)
        self.caps = tuple(sorted({r.ratio * r.cap for r in self.readers if r.cap is not None}))

    def microbatch(self, load: DecodeLoad) -> DecodeLoad:
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

    def prefill_widths(self, chunks: Sequence[Chunk], total_tokens: int | None) -> tuple[int, int]:
        """Prefill rows of this rank and prefill tokens of the stage in one microbatch."""
        new = sum(chunk.new for chunk in chunks)
        total = new * self.parallelism.dp if total_tokens is None else total_tokens
        pp = self.parallelism.pp
        return math.ceil(new / (self.parallelism.cp * pp)), math.ceil(total / pp)

    def shape(self, chunks: Sequence[Chunk], load: DecodeLoad, total_tokens: int | None) -> StepShape:
        """The numbers that the ops of one microbatch are functions of."""
        pp = self.parallelism.pp
        new = sum(chunk.new for chunk in chunks)
        past = sum(chunk.past for chunk in chunks)
        load = self.microbatch(load)
        if load.sequences and len(load.capped) != len(self.caps):
            raise LoadError(f"capped has {len(load.capped)} sums; give one for each of caps={self.caps}")
        rows, tokens = self.prefill_widths(chunks, total_tokens)
        pairs = tuple(
            sum(counted(what, chunk.new, chunk.past) for chunk in chunks) / pp for what in self.prefill_counts
        )
        return StepShape(
            rows=rows + load.sequences * self.queries,
            tokens=tokens + load.total_sequences * self.queries,
            head_rows=math.ceil(len(chunks) / pp) + load.sequences * self.queries,
            prefill_rows=rows,
            prefill_tokens=tokens,
            prefill=(new / pp, past / pp, len(chunks) / pp, *pairs) if chunks else (),
            load=load,
        )

    def all_ops(self, step: StepShape) -> list[Op]:
        """All ops of one microbatch, built anew."""
        prefill = bool(step.prefill)
        load = step.load
        reads = (load.sequences, load.context, *load.capped)
        chosen = self.prefill_selecting(step.prefill) if prefill else frozenset()
        choosing = self.decode_selecting(load.context, load.capped) if load.sequences else frozenset()
        ops = self.row_ops(self.main, step.rows)
        ops += layer_ops.embedding_ops(self.model, step.rows, self.cut)
        ops += layer_ops.head_ops(self.model, step.head_rows, self.cut)
        ops += self.expert_ops_of(self.main, step.rows, step.tokens, not prefill)
        if prefill:
            ops += self.prefill_ops(self.main, step.prefill, chosen)
        if load.sequences:
            ops += self.decode_ops(self.main, reads, self.queries, choosing)
        if not self.draft.layers:
            return ops
        if prefill:
            ops += self.draft_row_ops(step.prefill_rows)
            ops += self.expert_ops_of(self.draft, step.prefill_rows, step.prefill_tokens, False)
            ops += self.prefill_ops(self.draft, step.prefill, chosen)
        if load.sequences:
            once = self.draft_row_ops(load.sequences)
            once += layer_ops.head_ops(self.model, load.sequences, self.cut)
            once += self.expert_ops_of(self.draft, load.sequences, load.total_sequences, True)
            once += self.decode_ops(self.draft, reads, 1, choosing)
            ops += times(once, self.draft_tokens)
        return ops

    # Groups of ops, each affine in its arguments.

    def row_ops(self, stack: Stack, rows: float) -> list[Op]:
        return [
            op
            for layer, count in stack.layers
            for op in times(layer_ops.row_ops(layer, self.model, rows, self.cut), count)
        ]

    def draft_row_ops(self, rows: float) -> list[Op]:
        head = self.model.draft
        assert isinstance(head, DraftHead)
        ops = [layer_ops.linear_op(x, rows, self.cut.linear_share(x)) for x in head.linears]
        return [*ops, *self.row_ops(self.draft, rows)]

    def expert_layer_ops(self, ffn: MoeSpec, rows: float, tokens: float, load: RankLoad, low_latency: bool) -> list[Op]:
        return expert_ops(ffn, rows / self.parallelism.tp, tokens, load, self.cut, low_latency=low_latency)

    def rank_loads(self, ffn: MoeSpec, tokens: float) -> tuple[RankLoad, ...]:
        """Mean loads of the expert ranks that may bind."""
        if ffn in self.expert_loads:
            return self.expert_loads[ffn].mean(tokens)
        return (uniform_load(ffn, tokens, self.parallelism.ep),)

    def expert_ops_of(self, stack: Stack, rows: float, tokens: float, low_latency: bool) -> list[Op]:
        """On the rank whose load takes longest."""
        ops: list[Op] = []
        for ffn, count in stack.routed.items():
            loads = self.rank_loads(ffn, tokens)
            by_rank = (self.expert_layer_ops(ffn, rows, tokens, load, low_latency) for load in loads)
            slowest = max(by_rank, key=lambda work: sum(op_seconds(op, self.hardware) for op in work))
            ops += times(slowest, count)
        return ops

    def decode_selecting(self, context: float, capped: Sequence[float]) -> frozenset[Reader]:
        """Readers of which some sequence has more entries than it may select."""
        by_cap = dict(zip(self.caps, capped, strict=True))
        return frozenset(r for r in self.selectors if r.cap and context > by_cap[r.ratio * r.cap])

    def decode_ops(self, stack: Stack, values: Sequence[float], queries: int, selecting: frozenset[Reader]) -> list[Op]:
        """values: sequences, context, capped sums. A reader of ratio r and cap k reads sum(min(s, r k)) / r
        entries: the floor is left out, at most one entry a sequence."""
        sequences, context, *capped = values
        by_cap = dict(zip(self.caps, capped, strict=True))
        reads = {r: (context if r.cap is None else by_cap[r.ratio * r.cap]) / r.ratio for r in self.readers}
        ops: list[Op] = []
        for layer, count in stack.layers:
            selects = entry_reader(layer.attention) in selecting
            core = cores.decode_core_ops(layer.attention, sequences, queries, reads, self.cut, selects=selects)
            ops += times(core, count)
        return ops

    def prefill_selecting(self, values: Sequence[float]) -> frozenset[Reader]:
        """Readers of which some query has more entries than it may select. values: as of prefill_ops."""
        reads = dict(zip(self.prefill_counts, values[CHUNK_SUMS:], strict=True))
        return frozenset(r for r in self.selectors if reads[Reader(r.ratio, None)] > reads[r])

    def prefill_ops(self, stack: Stack, values: Sequence[float], selecting: frozenset[Reader]) -> list[Op]:
        """values: new tokens, past tokens, chunks, entries read by each reader."""
        new, past, chunks, *pairs = values
        reads: dict[Counted, float] = dict(zip(self.prefill_counts, pairs, strict=True))
        ops: list[Op] = []
        for layer, count in stack.layers:
            selects = entry_reader(layer.attention) in selecting
            core = cores.prefill_core_ops(layer.attention, new, past, chunks, reads, self.cut, selects=selects)
            ops += times(core, count)
        return ops

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

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

from hw_profiles.efficiency import OpClass
from hw_profiles.profile import HardwareProfile
from simulator.model import layers as layer_ops
from simulator.model.architecture import ModelSpec
from simulator.model.compiled_ops import Program, compile_program
from simulator.model.expert_load import ExpertSkew
from simulator.model.expert_times import ExpertTimes
from simulator.model.ops import Op, Reader
from simulator.model.parallelism import Parallelism
from simulator.model.remembered import remember
from simulator.model.roofline import Bound, roof_times
from simulator.model.step import CHUNK_SUMS, NO_DECODE, Chunk, DecodeLoad, LoadError, StepOps, StepShape, times

__all__ = ["NO_DECODE", "Chunk", "DecodeLine", "DecodeLoad", "LoadError", "PricedOp", "StepLatency"]


class PricedOp(NamedTuple):
    """An op of a step, the seconds it adds to the step, and the roof that binds it."""

    op: Op
    seconds: float
    bound: Bound


# weight, exponent, 1/exponent, compute (constant, 2 x (slope, index)), memory (constant, 3 x (slope, index))
_FlatTerm = tuple[float, float, float, float, float, int, float, int, float, float, int, float, int, float, int]


class _DecodeForm(NamedTuple):
    """Decode cores while the same readers select; the last three with the stages' imbalance, for the hot loop."""

    program: Program
    constant_s: float
    slopes: tuple[tuple[int, float], ...]
    terms: list[_FlatTerm]


# A decode step of so many sequences where nothing is capped, as a function of their context alone: constant, slope and
# terms of weight, exponent, 1/exponent, compute (constant, slope), memory (constant, slope). CPython unpacks a plain
# tuple in a third of the time of a named one.
DecodeLine = tuple[float, float, list[tuple[float, float, float, float, float, float, float]]]


class StepLatency:
    """Step times of one instance of `model` on `hardware` under `parallelism`.

    draft_tokens: tokens drafted per decode step and verified in it.
    expert_skew: popularity of experts; times are then those of mean loads of the busiest expert rank. Left out: every
        rank gets what uniform routing gives in the mean.
    """

    def __init__(
        self,
        model: ModelSpec,
        hardware: HardwareProfile,
        parallelism: Parallelism,
        draft_tokens: int = 0,
        expert_skew: ExpertSkew | None = None,
    ) -> None:
        self._ops = StepOps(model, hardware, parallelism, draft_tokens, expert_skew)
        self.model, self.hardware, self.parallelism = self._ops.model, hardware, parallelism
        self.draft_tokens = draft_tokens
        self.caps = self._ops.caps
        stages = parallelism.pp
        self._imbalance = self._ops.cut.layers_per_stage(len(model.layers)) * stages / len(model.layers)
        self._drain = (2 * stages - 1) / stages
        self._stages = stages
        self._decode_base: dict[tuple[int, int], float] = {}
        self._decode_lines: dict[tuple[int, int], DecodeLine] = {}
        self._rows_s: dict[int, float] = {}
        self._experts = ExpertTimes(self._ops, self._compiled)
        self._one_chunk_s: dict[tuple[Chunk, int | None], float] = {}
        self._decode_forms: dict[frozenset[Reader], _DecodeForm] = {}
        self._prefill_programs: dict[tuple[bool, frozenset[Reader]], Program] = {}
        # places of the sums that tell whether some sequence selects
        self._selection = [self.caps.index(r.ratio * r.cap) for r in self._ops.selectors if r.cap]

    @property
    def draws_experts(self) -> bool:
        """Whether steps differ by their draw of expert loads, as `experts_swing_s` tells."""
        return bool(self._ops.expert_loads)

    @property
    def first_token_extra_s(self) -> float:
        """Per request, before its first token: tokenise, admission, HTTP. [s]"""
        return self.hardware.efficiency.request_overhead_s

    # ---- the three questions

    def decode_s(self, load: DecodeLoad) -> float:
        """One decode step. [s]"""
        if self._stages > 1:
            load = self._ops.microbatch(load)
        sequences, context, capped, total = load
        if not sequences:
            return 0.0
        if not capped:
            try:
                seconds, slope, line_terms = self._decode_lines[sequences, total]
            except KeyError:
                seconds, slope, line_terms = self._draw_line(sequences, total)
            seconds += slope * context
            for weight, exponent, root, f0, f1, b0, b1 in line_terms:
                seconds += weight * ((f0 + f1 * context) ** exponent + (b0 + b1 * context) ** exponent) ** root
            return seconds
        step = self._decode_base.get((sequences, total))
        if step is None:
            step = self._fill_decode_base(sequences, total)
        form = self._none_selects
        for place in self._selection:
            if context > capped[place]:
                form = self._decode_form(self._ops.decode_selecting(context, capped))
                break
        _, constant, slopes, terms = form
        step += constant
        reads = (sequences, context, *capped)
        for index, slope in slopes:
            step += slope * reads[index]
        for weight, exponent, root, f0, f1, i1, f2, i2, b0, b1, j1, b2, j2, b3, j3 in terms:
            step += (
                weight
                * (
                    (f0 + f1 * reads[i1] + f2 * reads[i2]) ** exponent
                    + (b0 + b1 * reads[j1] + b2 * reads[j2] + b3 * reads[j3]) ** exponent
                )
                ** root
            )
        return step

    @property
    def has_plain_lines(self) -> bool:
        """Whether `decode_line` tells decode steps, and with one term."""
        return self._stages == 1 and not self.caps and len(self._none_selects.terms) == 1

    def decode_line(self, sequences: int, total: int) -> DecodeLine:
        """Decode steps of so many sequences, as a function of their context."""
        line = self._decode_lines.get((sequences, total))
        return self._draw_line(sequences, total) if line is None else line

    def prefill_s(self, chunks: Sequence[Chunk], total_tokens: int | None = None) -> float:
        """One prefill step: chunks of the busiest data-parallel rank; total_tokens over all ranks (default: all
        ranks as busy). [s]"""
        if len(chunks) != 1:
            return self.mixed_s(chunks, NO_DECODE, total_tokens)
        key = (chunks[0], total_tokens)
        seconds = self._one_chunk_s.get(key)
        if seconds is None:
            seconds = self.mixed_s(chunks, NO_DECODE, total_tokens)
            remember(self._one_chunk_s, key, seconds)
        return seconds

    def mixed_s(self, chunks: Sequence[Chunk], load: DecodeLoad, total_tokens: int | None = None) -> float:
        """One step with prefill chunks and decode together; total_tokens counts prefill tokens only. [s]"""
        if not chunks:
            return self.decode_s(load)
        step = self._ops.shape(chunks, load, total_tokens)
        seconds = self._rows(step.rows) + self._head_program.seconds((step.head_rows,))
        seconds += self._experts.main_s(step.rows, step.tokens, False)
        seconds += self._prefill_program(step.prefill, draft=False).seconds(step.prefill)
        load = step.load
        if load.sequences:
            program = self._decode_form(self._ops.decode_selecting(load.context, load.capped)).program
            seconds += program.seconds((load.sequences, load.context, *load.capped))
        if self.draft_tokens:
            seconds += self._draft_prefill_s(step)
            seconds += self._draft_rounds_s(load.sequences, load.total_sequences)
        return seconds * self._imbalance * self._drain + self._host_s(load.sequences)

    def experts_swing_s(self, chunks: Sequence[Chunk], load: DecodeLoad, total_tokens: int | None, draw: int) -> float:
        """What draw number `draw` of the main experts' loads adds to a step over their mean; for expert_skew. [s]"""
        load = self._ops.microbatch(load)
        rows, tokens = self._ops.prefill_widths(chunks, total_tokens)
        rows += load.sequences * self._ops.queries
        tokens += load.total_sequences * self._ops.queries
        seconds = self._experts.swing_s(rows, tokens, not chunks, draw)
        return seconds * self._imbalance * (self._drain if chunks else 1.0)

    def breakdown(self, chunks: Sequence[Chunk], load: DecodeLoad, total_tokens: int | None = None) -> list[PricedOp]:
        """The step op by op; seconds add up to the step's time."""
        if not chunks and not load.sequences:
            return []
        step = self._ops.shape(chunks, load, total_tokens)
        scale = self._imbalance * (self._drain if chunks else 1.0)
        priced = []
        for op in self._ops.all_ops(step):
            times = roof_times(op, self.hardware)
            priced.append(PricedOp(op, op.count * times.seconds * scale, times.bound))
        return [*priced, PricedOp(Op("host", OpClass.ELEMENTWISE), self._host_s(step.load.sequences), "host")]

    # ---- one step as numbers

    @cached_property
    def kernels(self) -> float:
        """Launches of a decode step: of its ops, drafts included."""
        one = self._ops.shape([], DecodeLoad.alike(1, 1, self.caps, 1), None)
        return float(sum(op.count for op in self._ops.all_ops(one)))

    @cached_property
    def _fixed_host_s(self) -> float:
        host = self.hardware.efficiency
        return host.step_overhead_s + host.kernel_overhead_s * (self.kernels if host.kernel_overhead_s else 0)

    def _host_s(self, sequences: float) -> float:
        """sequences: of one microbatch of the busiest rank."""
        return self._fixed_host_s + self.hardware.efficiency.sequence_overhead_s * sequences * self._stages

    # ---- the same, compiled

    def _compiled(self, maker: Callable[[Sequence[float]], Sequence[Op]], variables: int) -> Program:
        return compile_program(maker, variables, self.hardware)

    @cached_property
    def _row_program(self) -> Program:
        def ops(v: Sequence[float]) -> list[Op]:
            return [*self._ops.row_ops(self._ops.main, v[0]), *layer_ops.embedding_ops(self.model, v[0], self._ops.cut)]

        return self._compiled(ops, 1)

    @cached_property
    def _head_program(self) -> Program:
        return self._compiled(lambda v: layer_ops.head_ops(self.model, v[0], self._ops.cut), 1)

    @cached_property
    def _draft_row_program(self) -> Program:
        return self._compiled(lambda v: self._ops.draft_row_ops(v[0]), 1)

    def _prefill_program(self, values: Sequence[float], *, draft: bool) -> Program:
        selecting = self._ops.prefill_selecting(values)
        program = self._prefill_programs.get((draft, selecting))
        if program is None:
            stack = self._ops.draft if draft else self._ops.main
            program = self._compiled(
                lambda v: self._ops.prefill_ops(stack, v, selecting), CHUNK_SUMS + len(self._ops.prefill_counts)
            )
            self._prefill_programs[draft, selecting] = program
        return program

    @cached_property
    def _none_selects(self) -> _DecodeForm:
        return self._decode_form(frozenset())

    def _decode_form(self, selecting: frozenset[Reader]) -> _DecodeForm:
        form = self._decode_forms.get(selecting)
        if form is None:
            program = self._decode_program(selecting)
            slopes = tuple((i, slope * self._imbalance) for i, slope in program.linear.slopes)
            constant = program.linear.constant * self._imbalance
            form = self._decode_forms[selecting] = _DecodeForm(program, constant, slopes, self._flat_terms(program))
        return form

    def _decode_program(self, selecting: frozenset[Reader]) -> Program:
        """Cores of the verified rows and of the draft rounds."""

        def ops(v: Sequence[float]) -> list[Op]:
            drafts = times(self._ops.decode_ops(self._ops.draft, v, 1, selecting), self.draft_tokens)
            return [*self._ops.decode_ops(self._ops.main, v, self._ops.queries, selecting), *drafts]

        return self._compiled(ops, 2 + len(self.caps))

    def _flat_terms(self, program: Program) -> list[_FlatTerm]:
        """Terms of the decode cores laid flat for the hot loop; absent slopes are zeros at index 0."""
        flat = []
        for count, term in program.terms:
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

    def _draft_rounds_s(self, sequences: int, total: int) -> float:
        """All draft rounds of a decode step, their attention cores left out."""
        if not sequences or not self.draft_tokens:
            return 0.0
        once = self._draft_row_program.seconds((sequences,)) + self._head_program.seconds((sequences,))
        once += self._experts.draft_s(sequences, total, True)
        return self.draft_tokens * once

    def _draft_prefill_s(self, step: StepShape) -> float:
        seconds = self._draft_row_program.seconds((step.prefill_rows,))
        seconds += self._experts.draft_s(step.prefill_rows, step.prefill_tokens, False)
        return seconds + self._prefill_program(step.prefill, draft=True).seconds(step.prefill)

    def _draw_line(self, sequences: int, total: int) -> DecodeLine:
        """The same sums as in `decode_s`, begun."""
        _, constant, slopes, terms = self._none_selects
        constant += self._fill_decode_base(sequences, total)
        slope_of = dict(slopes)
        line = self._decode_lines[sequences, total] = (
            constant + slope_of.get(0, 0.0) * sequences,
            slope_of.get(1, 0.0),
            [
                (
                    weight,
                    exponent,
                    root,
                    *_at(sequences, f0, (i1, f1), (i2, f2)),
                    *_at(sequences, b0, (j1, b1), (j2, b2)),
                )
                for weight, exponent, root, f0, f1, i1, f2, i2, b0, b1, j1, b2, j2, _, _ in terms
            ],
        )
        return line

    def _fill_decode_base(self, sequences: int, total: int) -> float:
        """All of a decode step but what grows with context."""
        rows = sequences * self._ops.queries
        seconds = self._rows(rows) + self._head_program.seconds((rows,))
        seconds += self._experts.main_s(rows, total * self._ops.queries, True)
        seconds += self._draft_rounds_s(sequences, total)
        base = seconds * self._imbalance + self._host_s(sequences)
        self._decode_base[sequences, total] = base
        return base


def _at(sequences: int, constant: float, *slopes: tuple[int, float]) -> tuple[float, float]:
    """Constant and slope in context of a sum of constant + slope * (sequences, context)[index], begun with sequences.

    >>> _at(10, 1.0, (0, 2.0), (1, 3.0)), _at(10, 1.0, (1, 3.0), (0, 0.0))
    ((21.0, 3.0), (1.0, 3.0))
    """
    of_context = 0.0
    for index, slope in slopes:
        if index == 0:
            constant += slope * sequences
        else:
            of_context = slope
    return constant, of_context

"""Seconds of the routed experts of a step: compiled, remembered, in their mean and by draw.

Draws of loads swing about their mean. How far, relative to it, is tabled at half powers of two of the tokens, for
kernels of decode and of prefill, as it is asked for; between them it is linear.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

from simulator.model.architecture import MoeSpec
from simulator.model.compiled_ops import Program
from simulator.model.expert_load import SAMPLES, bucket_tokens, position
from simulator.model.moe import RankLoad
from simulator.model.ops import Op
from simulator.model.remembered import remember
from simulator.model.step import Stack, StepOps

Compile = Callable[[Callable[[Sequence[float]], Sequence[Op]], int], Program]
LoadsOf = Callable[[MoeSpec, float], tuple[RankLoad, ...]]  # loads of the ranks that may bind, by tokens of the stage
_Programs = list[tuple[MoeSpec, int, Program, Program]]  # layers of a kind: how many, kernels of prefill, of decode


class ExpertTimes:
    """Rows are those of this rank, tokens those of the stage. low_latency: a step without prefill."""

    def __init__(self, ops: StepOps, compiled: Compile) -> None:
        self._ops = ops
        self._compiled = compiled
        self._swings: dict[tuple[int, bool], list[float]] = {}
        self._main_s: dict[tuple[int, int, bool], float] = {}

    def main_s(self, rows: int, tokens: int, low_latency: bool) -> float:
        """The model's layers, in the mean over draws."""
        key = (rows, tokens, low_latency)
        seconds = self._main_s.get(key)
        if seconds is None:
            seconds = self._price(self._main, rows, tokens, low_latency, self._ops.rank_loads)
            remember(self._main_s, key, seconds)
        return seconds

    def draft_s(self, rows: int, tokens: int, low_latency: bool) -> float:
        """The layers of the draft head, in the mean over draws."""
        return self._price(self._draft, rows, tokens, low_latency, self._ops.rank_loads)

    def swing_s(self, rows: int, tokens: int, low_latency: bool, draw: int) -> float:
        """What draw number `draw` adds to `main_s`; its mean over draws is 0."""
        bucket, part = position(tokens)
        share = self._swing_shares(bucket, low_latency)[draw]
        if part:
            share += part * (self._swing_shares(bucket + 1, low_latency)[draw] - share)
        return self.main_s(rows, tokens, low_latency) * share

    def _swing_shares(self, bucket: int, low_latency: bool) -> list[float]:
        """Seconds under each draw over seconds in the mean of all, less 1."""
        shares = self._swings.get((bucket, low_latency))
        if shares is None:
            tokens = float(bucket_tokens(bucket))
            rows = tokens / (self._ops.parallelism.dp * self._ops.parallelism.cp)
            drawn = [
                self._price(self._main, rows, tokens, low_latency, self._loads_of_draw(bucket, draw))
                for draw in range(SAMPLES)
            ]
            mean = sum(drawn) / SAMPLES
            shares = self._swings[bucket, low_latency] = [each / mean - 1 for each in drawn]
        return shares

    def _loads_of_draw(self, bucket: int, draw: int) -> LoadsOf:
        def loads_of(ffn: MoeSpec, tokens: float) -> tuple[RankLoad, ...]:
            loads = self._ops.expert_loads[ffn]
            return loads.loads(tokens, loads.draws(bucket)[:, draw])

        return loads_of

    def _price(self, programs: _Programs, rows: float, tokens: float, low_latency: bool, loads_of: LoadsOf) -> float:
        seconds = 0.0
        for ffn, count, normal, quick in programs:
            program = quick if low_latency else normal
            seconds += count * max(program.seconds((rows, tokens, *load)) for load in loads_of(ffn, tokens))
        return seconds

    @cached_property
    def _main(self) -> _Programs:
        return self._compile(self._ops.main)

    @cached_property
    def _draft(self) -> _Programs:
        return self._compile(self._ops.draft)

    def _compile(self, stack: Stack) -> _Programs:
        def program(ffn: MoeSpec, low_latency: bool) -> Program:
            def ops(v: Sequence[float]) -> list[Op]:
                return self._ops.expert_layer_ops(ffn, v[0], v[1], RankLoad(*v[2:]), low_latency)

            return self._compiled(ops, 2 + len(RankLoad._fields))

        return [(ffn, count, program(ffn, False), program(ffn, True)) for ffn, count in stack.routed.items()]

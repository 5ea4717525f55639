"""Seconds of the routed experts of a step: compiled, remembered, in their mean and by draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

from simulator.model.architecture import MoeSpec
from simulator.model.compiled_ops import Program
from simulator.model.expert_swing import ExpertSwing, LoadsOf
from simulator.model.moe import RankLoad
from simulator.model.ops import Op
from simulator.model.step import Stack, StepOps

REMEMBERED = 1 << 16  # answers that the table holds
Compile = Callable[[Callable[[Sequence[float]], Sequence[Op]], int], Program]
_Programs = list[tuple[MoeSpec, int, Program, Program]]  # layers of a kind: how many, kernels of prefill, of decode


class ExpertTimes:
    """Rows are those of this rank, tokens those of the stage. low_latency: a step without prefill."""

    def __init__(self, ops: StepOps, compiled: Compile) -> None:
        self._ops = ops
        self._compiled = compiled
        self._main_s: dict[tuple[int, int, bool], float] = {}

    def main_s(self, rows: int, tokens: int, low_latency: bool) -> float:
        """The model's layers, in the mean over draws."""
        key = (rows, tokens, low_latency)
        seconds = self._main_s.get(key)
        if seconds is None:
            seconds = self._price(self._main, rows, tokens, low_latency, self._ops.rank_loads)
            if len(self._main_s) >= REMEMBERED:
                self._main_s.clear()
            self._main_s[key] = seconds
        return seconds

    def draft_s(self, rows: int, tokens: int, low_latency: bool) -> float:
        """The layers of the draft head, in the mean over draws."""
        return self._price(self._draft, rows, tokens, low_latency, self._ops.rank_loads)

    def swing_s(self, rows: int, tokens: int, low_latency: bool, draw: int) -> float:
        """What draw number `draw` adds to `main_s`; its mean over draws is 0."""
        return self.main_s(rows, tokens, low_latency) * self._swing.share(tokens, low_latency, draw)

    @cached_property
    def _swing(self) -> ExpertSwing:
        ranks = self._ops.parallelism.dp * self._ops.parallelism.cp

        def price(tokens: float, low_latency: bool, loads_of: LoadsOf) -> float:
            return self._price(self._main, tokens / ranks, tokens, low_latency, loads_of)

        return ExpertSwing(self._ops.expert_loads, price)

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

            return self._compiled(ops, 5)

        return [(ffn, count, program(ffn, False), program(ffn, True)) for ffn, count in stack.routed.items()]

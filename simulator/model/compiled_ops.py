"""Compiled seconds of ops whose work is affine in a few variables: the same roofline without building ops again.

Ops are built once at the origin and once at each unit vector; differences are the coefficients. This is exact for
affine work, and `latency` tests it against the op-by-op sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hw_profiles.profile import HardwareProfile
from simulator.model.ops import Op
from simulator.model.roofline import roof_times

Maker = Callable[[Sequence[float]], Sequence[Op]]


class Affine(NamedTuple):
    """constant + sum of coefficient * variable, zero coefficients left out."""

    constant: float
    slopes: tuple[tuple[int, float], ...]

    def at(self, values: Sequence[float]) -> float:
        total = self.constant
        for index, slope in self.slopes:
            total += slope * values[index]
        return total

    @property
    def zero(self) -> bool:
        return not self.slopes and self.constant == 0.0


class Term(NamedTuple):
    """The p-norm of two or three roofs, `count` times. [s]"""

    exponent: float
    roofs: tuple[Affine, ...]


@dataclass(frozen=True)
class Program:
    """fixed_s + sum of linear slopes + sum of count * p-norm terms."""

    linear: Affine
    terms: tuple[tuple[int, Term], ...]

    def seconds(self, values: Sequence[float]) -> float:
        total = self.linear.at(values)
        for count, (exponent, roofs) in self.terms:
            power = 0.0
            for constant, slopes in roofs:
                roof = constant
                for index, slope in slopes:
                    roof += slope * values[index]
                power += roof**exponent
            total += count * power ** (1.0 / exponent)
        return total


def _affine(samples: Sequence[float]) -> Affine:
    """samples: value at the origin, then at each unit vector."""
    constant = samples[0]
    slopes = tuple((i, sample - constant) for i, sample in enumerate(samples[1:]) if sample != constant)
    return Affine(constant, slopes)


def compile_program(maker: Maker, variables: int, hardware: HardwareProfile) -> Program:
    """The program of `maker`, whose ops are affine in `variables` values and always the same ops in the same order."""
    points = [[0.0] * variables for _ in range(variables + 1)]
    for i in range(variables):
        points[i + 1][i] = 1.0
    sampled = [list(maker(point)) for point in points]
    constant = 0.0
    slopes = [0.0] * variables
    terms: dict[Term, int] = {}
    for ops in zip(*sampled, strict=True):
        count = ops[0].count
        times = [roof_times(op, hardware) for op in ops]
        constant += count * times[0].latency_s
        roofs = (
            _affine([t.compute_s for t in times]),
            _affine([t.memory_s for t in times]),
            _affine([t.network_s for t in times]),
        )
        present = tuple(roof for roof in roofs if not roof.zero)
        if len(present) > 1:
            term = Term(times[0].exponent, present)
            terms[term] = terms.get(term, 0) + count
        elif present:  # one roof alone is its own p-norm
            constant += count * present[0].constant
            for index, slope in present[0].slopes:
                slopes[index] += count * slope
    linear = Affine(constant, tuple((i, slope) for i, slope in enumerate(slopes) if slope))
    return Program(linear, tuple((count, term) for term, count in terms.items()))

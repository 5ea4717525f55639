"""Seconds of an op on a hardware profile, and which roof bounds it.

    t = t0 + d K + ((FLOPs/F)^q + (bytes/B)^q + (net/N)^q)^(1/q)

F, B, N are data-sheet peaks times the achieved fractions of the op's class, t0 its latency floor, q its exponent, K the
depth of its sums and d the time of one step of them. F, B, t0 and d differ by kernel (operand dtype, and that of
weights it widens) where the class says so.
FLOPs are those of the op and of the rows that fill up its ragged tiles; bytes of short rows count `short_row_factor`
times, weights that further tiles read again in part.
Reference: Williams et al., "Roofline", CACM 2009; the p-norm between sum (q = 1) and maximum (q = infinity).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from hw_profiles.profile import HardwareProfile
from simulator.model.ops import Op, kernel_of

Bound = Literal["compute", "memory", "network", "latency", "host"]


class RoofTimes(NamedTuple):
    """What one launch would take against each roof alone, and how they combine. [s]"""

    latency_s: float
    compute_s: float
    memory_s: float
    network_s: float
    exponent: float

    @property
    def seconds(self) -> float:
        return self.latency_s + p_norm((self.compute_s, self.memory_s, self.network_s), self.exponent)

    @property
    def bound(self) -> Bound:
        """The largest of the four."""
        roofs: dict[Bound, float] = {
            "compute": self.compute_s,
            "memory": self.memory_s,
            "network": self.network_s,
            "latency": self.latency_s,
        }
        return max(roofs, key=lambda roof: roofs[roof])


def p_norm(terms: tuple[float, ...], exponent: float) -> float:
    """(sum of terms^q)^(1/q).

    >>> round(p_norm((3.0, 4.0), 2), 9)
    5.0
    """
    return float(sum(term**exponent for term in terms) ** (1 / exponent))


def roof_times(op: Op, hardware: HardwareProfile) -> RoofTimes:
    """One launch of `op`. FLOPs of several dtypes add up as times."""
    rates = hardware.efficiency.classes[op.op_class]
    kernel = kernel_of(op)
    compute_s = sum(
        (flops + rates.tile_rows * op.row_flops)
        / (hardware.matrix_peak(dtype) * rates.matrix_fraction_of(kernel if op.stored else dtype))
        for dtype, flops in op.flops.items()
    )
    num_bytes = op.hbm_bytes + (rates.short_row_factor - 1.0) * op.short_row_bytes
    num_bytes += rates.reread_share_of(kernel) * op.again_bytes
    memory_s = num_bytes / (hardware.memory_bandwidth * rates.memory_fraction_of(kernel))
    network_s = floor_s = 0.0
    if op.link is not None:
        peak = hardware.scale_up_bandwidth if op.link == "scale_up" else hardware.scale_out_bandwidth
        network_s = op.network_bytes / (peak * rates.network_fraction)
        floor_s = hardware.efficiency.exit_latency_s * op.hops if op.link == "scale_out" else 0.0
    floor_s += rates.latency_s_of(kernel) * op.hops + rates.depth_s_of(kernel) * op.depth
    return RoofTimes(floor_s, compute_s, memory_s, network_s, rates.exponent)


def op_seconds(op: Op, hardware: HardwareProfile) -> float:
    """All launches of `op`, one after the other. [s]"""
    return op.count * roof_times(op, hardware).seconds

"""What an engine adds to its kernels, and how it drives them: arrays over (points, draws)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hw_profiles.efficiency import OpClass
from hw_profiles.profile import HardwareProfile
from simulator.model.arrays import Floats
from simulator.model.engine import CORES, EXPERTS

CLASSES = tuple(OpClass)
_ATTENTION = [CLASSES.index(c) for c in CORES]
_EXPERTS = [CLASSES.index(c) for c in EXPERTS]


def constant(value: float) -> Floats:
    """For all points and draws. [1, 1]"""
    return np.array([[value]])


@dataclass(frozen=True)
class EngineParameters:
    """Each [points or 1, draws or 1].

    step_overhead_s: host time of every step. kernel_overhead_s: of each kernel that a decode step launches.
    sequence_overhead_s: of each running sequence of a rank, per step. request_overhead_s: before a request is queued.
    exit_latency_s: of a collective that leaves the scale-up domain, beyond what its class has. All in seconds.
    matrix, memory, network: achieved rates inside the engine over those of the profile; attention and experts multiply
    the first two of these classes once more.
    """

    step_overhead_s: Floats
    kernel_overhead_s: Floats
    request_overhead_s: Floats
    sequence_overhead_s: Floats = field(default_factory=lambda: constant(0.0))
    exit_latency_s: Floats = field(default_factory=lambda: constant(0.0))
    matrix: Floats = field(default_factory=lambda: constant(1.0))
    memory: Floats = field(default_factory=lambda: constant(1.0))
    network: Floats = field(default_factory=lambda: constant(1.0))
    attention: Floats = field(default_factory=lambda: constant(1.0))
    experts: Floats = field(default_factory=lambda: constant(1.0))

    @classmethod
    def of(cls, profiles: Sequence[HardwareProfile]) -> EngineParameters:
        """What the profiles say, one point each, one draw. Their rates and exit latencies are in the steps' prices."""
        host = [profile.efficiency for profile in profiles]
        return cls(
            np.array([[h.step_overhead_s] for h in host]),
            np.array([[h.kernel_overhead_s] for h in host]),
            np.array([[h.request_overhead_s] for h in host]),
            np.array([[h.sequence_overhead_s] for h in host]),
        )

    def rates(self) -> Floats:
        """[points, draws, classes, 3]: matrix, memory and network rates of each op class."""
        three = np.stack(np.broadcast_arrays(self.matrix, self.memory, self.network), axis=-1)
        own = np.broadcast_shapes(three.shape[:2], self.attention.shape, self.experts.shape)
        rates = np.broadcast_to(three[:, :, None], (*own, len(CLASSES), 3)).copy()
        rates[:, :, _ATTENTION, :2] *= self.attention[..., None, None]
        rates[:, :, _EXPERTS, :2] *= self.experts[..., None, None]
        return rates

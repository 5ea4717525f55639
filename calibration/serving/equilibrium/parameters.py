"""Engine parameters of the steady state, what is assumed of them, and the levels that they pool over.

Each is a mechanism of `simulator.steady_state` with a unit. A parameter of a point is the assumed value plus an effect
of each level that the point belongs to; levels that were never fitted have no effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from calibration.arrays import Index
from calibration.serving.engine_parameters import Parameter
from calibration.serving.engine_parameters import levels_of as all_levels_of
from calibration.serving.points import Point
from hw_profiles.profile import HardwareProfile
from simulator.model.arrays import Floats
from simulator.steady_state.parameters import EngineParameters

# Values are assumed, and widths with them: fits move both the more points there are.
PARAMETERS = (
    Parameter("kernel_overhead_s", "host time of one step for each kernel: scheduling, sampling, gaps [s]", 2e-6, 0.7),
    Parameter("renewal", "host time of a decode step over that of the software half a year before", 1.0, 0.5),
    Parameter("sequence_overhead_s", "host time of one step for each sequence of a rank [s]", 2e-5, 0.8),
    Parameter("memory", "HBM rate inside the engine over that of kernels alone", 0.85, 0.2),
    Parameter("matrix", "matrix rate inside the engine over that of kernels alone", 0.7, 0.4),
    Parameter("network", "link rate inside the engine over that of collectives alone", 0.6, 0.5),
    Parameter("attention", "rate of attention cores and indexer over that of the stack's other kernels", 1.0, 0.4),
    Parameter("experts", "rate of expert GEMMs over that of the stack's other kernels", 1.0, 0.3),
    Parameter("exit_latency_s", "added latency of a collective that leaves the scale-up domain [s]", 15e-6, 0.7),
    Parameter("acceptance", "chance that a draft token is accepted given that those before it were", 0.68, 0.5),
    Parameter("request_overhead_s", "time before the first token beyond waiting and prefill [s]", 0.12, 0.8),
    Parameter("warm_up_s", "wait of the first wave for kernels and graphs of one more batch size [s]", 0.3, 0.8),
)
# Engines beat stand-alone kernels by a little at most: overlap, warm caches (assumed).
LARGEST = {"memory": 1.2, "matrix": 1.2, "network": 1.2}
NAMES = tuple(p.name for p in PARAMETERS)
WIDTHS = np.array([p.width for p in PARAMETERS])
# Kinds of levels of `engine_parameters.LEVELS`, and the share of each prior width that one may explain (assumed).
SHARES: dict[str, float] = {
    "all": 1.0,
    "family": 0.6,
    "engine": 0.4,
    "generation": 0.5,
    "gpu": 0.35,
    "model": 0.5,
    "family+model": 0.4,
    "family+disaggregated": 0.4,
    "gpu+engine+model": 0.5,
    "engine+release": 0.3,
}


def levels_of(point: Point, hardware: HardwareProfile) -> tuple[str, ...]:
    """The levels that a point belongs to, as 'kind=value'."""
    return tuple(level for level in all_levels_of(point, hardware) if level.partition("=")[0] in SHARES)


def assumed() -> Floats:
    """Logs of the assumed values, a logit for acceptance."""
    return np.array(
        [float(np.log(p.assumed / (1 - p.assumed) if p.name == "acceptance" else p.assumed)) for p in PARAMETERS]
    )


@dataclass(frozen=True)
class Given:
    """Parameters of points and draws, as they are fitted: [points, draws, parameters] logs, a logit for acceptance."""

    theta: Floats

    @property
    def draws(self) -> int:
        return int(self.theta.shape[1])

    def of(self, rows: Index, age: Floats) -> tuple[EngineParameters, Floats, Floats]:
        """Of some of the points: what engines do, the chance that a draft is accepted, the warm-up of a batch size."""
        value = {name: np.exp(self.theta[rows, :, i]) for i, name in enumerate(NAMES)}
        for name, most in LARGEST.items():
            value[name] = np.minimum(most, value[name])
        engine = EngineParameters(
            step_overhead_s=np.zeros((1, 1)),
            kernel_overhead_s=value["kernel_overhead_s"] / value["renewal"] ** age[rows, None],
            **{name: value[name] for name in PASSED},
        )
        return engine, 1.0 / (1.0 + np.exp(-self.theta[rows, :, NAMES.index("acceptance")])), value["warm_up_s"]


PASSED = (  # to the steady state as they are
    "request_overhead_s", "sequence_overhead_s", "exit_latency_s",
    "matrix", "memory", "network", "attention", "experts",
)  # fmt: skip


@dataclass(frozen=True)
class Effects:
    """Fitted effects by level. by_level: [parameters] each, in the units of `Given.theta`."""

    by_level: Mapping[str, Floats]

    def theta(self, levels: Sequence[tuple[str, ...]]) -> Floats:
        """[points, parameters] for points of these levels."""
        base, none = assumed(), np.zeros(len(NAMES))
        return np.array([base + sum((self.by_level.get(level, none) for level in mine), none) for mine in levels])

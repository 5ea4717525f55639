"""Engine parameters that are fitted to serving points, what is assumed of them, and the levels that they pool over.

Each is a mechanism of `simulator.steady_state` with a unit. A parameter of a point is the assumed value plus an effect
of each level that the point belongs to (its engine, its accelerator, its model ...); levels that were never fitted have
no effect, so that an unseen accelerator gets what its engine, generation and model say.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from calibration.arrays import Index
from calibration.serving.points import Point
from calibration.serving.served_model import network_of
from hw_profiles.catalog import load
from hw_profiles.efficiency import Efficiency
from hw_profiles.profile import HardwareProfile
from simulator.model.acceptance import ASSUMED_CHANCE
from simulator.model.arrays import Floats
from simulator.model.engine import DEVIATIONS, form_of
from simulator.steady_state.parameters import EngineParameters

DATA = Path(__file__).resolve().parent.parent / "data"


@dataclass(frozen=True)
class Parameter:
    """One named quantity. It is fitted as a log, acceptance as a logit.

    assumed: value where nothing is fitted. width: prior standard deviation over all stacks, in log units.
    """

    name: str
    meaning: str
    assumed: float
    width: float


# Values are assumed, and widths with them: fits move both the more points there are.
PARAMETERS = (
    Parameter(
        "kernel_overhead_s",
        "host time of one step for each kernel: scheduling, sampling, gaps [s]",
        2e-6,
        DEVIATIONS["kernel_overhead_s"],
    ),
    Parameter("renewal", "host time of a decode step over that of the software half a year before", 1.0, 0.5),
    Parameter(
        "sequence_overhead_s",
        "host time of one step for each sequence of a rank [s]",
        2e-5,
        DEVIATIONS["sequence_overhead_s"],
    ),
    Parameter("memory", "HBM rate inside the engine over that of kernels alone", 0.85, DEVIATIONS["memory"]),
    Parameter("matrix", "matrix rate inside the engine over that of kernels alone", 0.7, DEVIATIONS["matrix"]),
    Parameter("network", "link rate inside the engine over that of collectives alone", 0.6, DEVIATIONS["network"]),
    Parameter(
        "attention",
        "rate of attention cores and indexer over that of the stack's other kernels",
        1.0,
        DEVIATIONS["attention"],
    ),
    Parameter("experts", "rate of expert GEMMs over that of the stack's other kernels", 1.0, DEVIATIONS["experts"]),
    Parameter(
        "exit_latency_s",
        "added latency of a collective that leaves the scale-up domain [s]",
        15e-6,
        DEVIATIONS["exit_latency_s"],
    ),
    Parameter(
        "acceptance",
        "chance that a draft token is accepted given that those before it were",
        ASSUMED_CHANCE,
        DEVIATIONS["acceptance"],
    ),
    Parameter("running", "sequences that an attention rank runs at once, where a row does not say", 512.0, 0.7),
    Parameter(
        "request_overhead_s",
        "time before the first token beyond waiting and prefill [s]",
        0.12,
        DEVIATIONS["request_overhead_s"],
    ),
    Parameter("warm_up_s", "wait of the first wave for kernels and graphs of one more batch size [s]", 0.3, 0.8),
)
NAMES = tuple(p.name for p in PARAMETERS)
WIDTHS = np.array([p.width for p in PARAMETERS])
PASSED = (  # to the steady state as they are
    "request_overhead_s", "sequence_overhead_s", "exit_latency_s",
    "matrix", "memory", "network", "attention", "experts",
)  # fmt: skip
# Kinds of levels: the share of each prior width that one may explain (assumed), and the fields whose values name it.
LEVELS: dict[str, tuple[float, tuple[str, ...]]] = {
    "all": (1.0, ()),
    "family": (0.6, ("family",)),
    "engine": (0.4, ("engine",)),
    "generation": (0.5, ("generation",)),
    "gpu": (0.35, ("gpu",)),
    "model": (0.5, ("model",)),
    "family+model": (0.4, ("family", "model")),
    "family+disaggregated": (0.4, ("family", "form")),
    "gpu+engine+model": (0.5, ("gpu", "engine", "model")),
    "engine+release": (0.3, ("engine", "release")),  # software of that month
}
OWN = "gpu+engine+model"  # the kind that no two stacks share
RELEASE = "engine+release"
FAMILIES = (("tensorrt", "trtllm"), ("trt", "trtllm"), ("sglang", "sglang"), ("vllm", "vllm"), ("atom", "atom"))


def kind_of(level: str) -> str:
    """
    >>> kind_of("gpu=b200_sxm")
    'gpu'
    """
    return level.partition("=")[0]


def family_of(engine: str) -> str:
    """The stack inside an engine's name.

    >>> family_of("Dynamo+TensorRT-LLM"), family_of("MoRI+SGLang"), family_of("LMDeploy")
    ('trtllm', 'sglang', 'lmdeploy')
    """
    word = engine.lower()
    return next((family for part, family in FAMILIES if part in word), word)


def levels_of(point: Point, hardware: HardwareProfile) -> tuple[str, ...]:
    """The levels that a point belongs to, as 'kind=value'."""
    fields = {
        "family": family_of(point.engine),
        "engine": point.engine,
        "generation": hardware.accelerator.generation,
        "gpu": hardware.name,
        "model": network_of(point.model),
        "form": form_of(point.disaggregated),
        "release": point.released,
    }
    return tuple(f"{kind}={'+'.join(fields[name] for name in names)}" for kind, (_, names) in LEVELS.items())


def assumed() -> Floats:
    """Logs of the assumed values, a logit for acceptance."""
    return np.array(
        [float(np.log(p.assumed / (1 - p.assumed) if p.name == "acceptance" else p.assumed)) for p in PARAMETERS]
    )


def values(theta: Floats) -> dict[str, Floats]:
    """Parameters in their own units. theta: [..., parameters] -> [...] each."""
    out = {name: np.exp(theta[..., i]) for i, name in enumerate(NAMES)}
    out["acceptance"] = 1.0 / (1.0 + np.exp(-theta[..., NAMES.index("acceptance")]))
    return out


@dataclass(frozen=True)
class Given:
    """Parameters of points and draws, as they are fitted: [points, draws, parameters] logs, a logit for acceptance."""

    theta: Floats

    @property
    def draws(self) -> int:
        return int(self.theta.shape[1])

    def of(self, rows: Index, age: Floats) -> tuple[EngineParameters, dict[str, Floats]]:
        """Of some of the points: what engines do, and all values by name. age: of the software, half-years."""
        value = values(self.theta[rows])
        engine = EngineParameters(
            step_overhead_s=np.zeros((1, 1)),
            kernel_overhead_s=value["kernel_overhead_s"] / value["renewal"] ** age[rows, None],
            **{name: value[name] for name in PASSED},
        )
        return engine, value


@cache
def kernel_profile(gpu: str, engine: str) -> HardwareProfile:
    """The accelerator with the kernel rates of the engine's stack; with assumed ones where no table exists."""
    hardware = load(gpu)
    path = DATA / "kernels" / f"{hardware.name}@{family_of(engine)}.json"
    if not path.is_file():
        return hardware
    kernels = Efficiency.model_validate_json(path.read_text(encoding="utf-8"))
    return replace(hardware, efficiency=kernels)

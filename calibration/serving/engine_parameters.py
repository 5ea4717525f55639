"""Parameters of a serving stack beyond its kernels: what each means, what is assumed of it, and how they pool.

A parameter of a point is the assumed value plus an effect of each level that the point belongs to (its engine, its
accelerator, its model ...). Levels that were never fitted have no effect, so an unseen accelerator gets what its
engine, generation and model say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from calibration.serving.points import Point
from calibration.serving.served_model import network_of
from hw_profiles.catalog import load, own_folder
from hw_profiles.efficiency import Efficiency
from hw_profiles.loading import CatalogError
from hw_profiles.profile import HardwareProfile
from simulator.model.arrays import Floats
from simulator.model.engine import attention_of, drafts_of, experts_of, form_of

DATA = Path(__file__).resolve().parent.parent / "data"
FILE = "serving.json"  # of a fit


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
    Parameter("kernel_overhead_s", "host time of one step for each kernel: scheduling, sampling, gaps [s]", 2e-6, 0.7),
    Parameter("renewal", "host time of a decode step over that of the software half a year before", 1.0, 0.5),
    Parameter("launch", "share of the kernels' launch floors that a step pays (graphs and fusion hide some)", 0.7, 0.4),
    Parameter("memory", "HBM rate inside the engine over that of kernels alone", 0.85, 0.2),
    Parameter("matrix", "matrix rate inside the engine over that of kernels alone", 0.7, 0.4),
    Parameter("network", "link rate inside the engine over that of collectives alone", 0.6, 0.5),
    Parameter("acceptance", "chance that a draft token is accepted given that those before it were", 0.68, 0.5),
    Parameter("gathering", "share of prompts that engines hold back until a step is full of them", 0.3, 0.6),
    Parameter("interruption", "time that a prompt takes from running requests over that of its prefill", 1.2, 0.4),
    Parameter("request_overhead_s", "time before the first token beyond waiting and prefill [s]", 0.12, 0.8),
    Parameter("bunching", "share of the running requests whose prompts arrive together", 0.06, 1.2),
    Parameter("warm_up_s", "wait of the first wave for kernels and graphs of one more batch size [s]", 0.3, 0.8),
    Parameter("attention", "rate of attention cores and indexer over that of the stack's other kernels", 1.0, 0.4),
    Parameter("experts", "rate of expert GEMMs over that of the stack's other kernels", 1.0, 0.3),
    Parameter("sequence_overhead_s", "host time of one step for each sequence of a rank [s]", 2e-5, 0.8),
    Parameter("draft_overhead", "host time of a step with drafts over that of one without", 1.3, 0.4),
    Parameter("exit_latency_s", "added latency of a collective that leaves the scale-up domain [s]", 15e-6, 0.7),
)
# Engines beat stand-alone kernels by a little at most: overlap, warm caches (assumed); shares end at 1.
LARGEST = {"memory": 1.2, "matrix": 1.2, "network": 1.2, "gathering": 1.0, "bunching": 1.0}
NAMES = tuple(p.name for p in PARAMETERS)
WIDTHS = np.array([p.width for p in PARAMETERS])
# Levels: the share of each prior width that one may explain (assumed), and the fields whose values name it.
LEVELS: dict[str, tuple[float, tuple[str, ...]]] = {
    "all": (1.0, ()),
    "family": (0.6, ("family",)),
    "engine": (0.4, ("engine",)),
    "vendor": (0.15, ("vendor",)),
    "generation": (0.5, ("generation",)),
    "gpu": (0.35, ("gpu",)),
    "model": (0.5, ("model",)),
    "family+vendor": (0.2, ("family", "vendor")),
    "family+generation": (0.4, ("family", "generation")),
    "family+vendor+model": (0.4, ("family", "vendor", "model")),
    "generation+model": (0.3, ("generation", "model")),
    "family+model": (0.4, ("family", "model")),
    "family+disaggregated": (0.4, ("family", "form")),
    "disaggregated": (0.4, ("form",)),
    "gpu+engine+model": (0.5, ("gpu", "engine", "model")),
    "family+precision": (0.4, ("family", "precision")),  # other kernels
    "attention": (0.4, ("attention",)),  # data-parallel ranks wait for each other
    "family+attention": (0.4, ("family", "attention", "form")),  # here and with experts: in this form of serving
    "gpu+engine+model+attention": (0.4, ("gpu", "engine", "model", "attention")),
    "family+drafts": (0.4, ("family", "drafts")),  # drafting keeps the host from running ahead
    "gpu+engine+model+drafts": (0.4, ("gpu", "engine", "model", "drafts")),
    "family+experts": (0.4, ("family", "experts", "form")),  # expert ranks exchange tokens
    "gpu+engine+model+experts": (0.4, ("gpu", "engine", "model", "experts")),
    "gpu+engine+model+precision": (0.3, ("gpu", "engine", "model", "precision")),
    "engine+release": (0.3, ("engine", "release")),  # software of that month
    "gpu+engine+release": (0.4, ("gpu", "engine", "release")),
}
FAMILIES = (("tensorrt", "trtllm"), ("trt", "trtllm"), ("sglang", "sglang"), ("vllm", "vllm"), ("atom", "atom"))


def family_of(engine: str) -> str:
    """The stack inside an engine's name.

    >>> family_of("Dynamo+TensorRT-LLM"), family_of("MoRI+SGLang"), family_of("LMDeploy")
    ('trtllm', 'sglang', 'lmdeploy')
    """
    word = engine.lower()
    return next((family for part, family in FAMILIES if part in word), word)


def bits_of(precision: str) -> str:
    """The kind of kernels that a precision label means.

    >>> bits_of("NVFP4"), bits_of("FP8"), bits_of("")
    ('fp4', 'fp8', 'unknown')
    """
    label = precision.upper()
    return next((kind.lower() for kind in ("FP4", "INT4", "BF16", "FP8") if kind in label), "unknown")


def levels_of(point: Point, hardware: HardwareProfile) -> tuple[str, ...]:
    """The levels that a point belongs to, as 'level=value'."""
    part = hardware.accelerator
    fields = {
        "family": family_of(point.engine),
        "engine": point.engine,
        "vendor": part.vendor,
        "generation": part.generation,
        "gpu": hardware.name,
        "model": network_of(point.model),
        "form": form_of(point.disaggregated),
        "precision": bits_of(point.precision),
        "attention": attention_of(point.decode.data_parallel),
        "drafts": drafts_of(point.drafts),
        "experts": experts_of(point.decode.expert_parallel),
        "release": point.released,
    }
    return tuple(f"{level}={'+'.join(fields[name] for name in names)}" for level, (_, names) in LEVELS.items())


def assumed() -> Floats:
    """Transformed assumed values: logs, a logit for acceptance."""
    return np.array([_forward(p.name, p.assumed) for p in PARAMETERS])


def _forward(name: str, value: float) -> float:
    return float(np.log(value / (1 - value)) if name == "acceptance" else np.log(value))


def values(theta: Floats) -> dict[str, Floats]:
    """Parameters in their own units, each an array over points. theta: [points, parameters]."""
    out = {name: np.exp(theta[:, i]) for i, name in enumerate(NAMES)}
    out["acceptance"] = 1.0 / (1.0 + np.exp(-theta[:, NAMES.index("acceptance")]))
    for name, most in LARGEST.items():
        out[name] = np.minimum(most, out[name])
    return out


@dataclass(frozen=True)
class StackFit:
    """Fitted effects by level, and the spread of residuals by situation."""

    effects: Mapping[str, Floats]
    sigma: Mapping[str, Mapping[str, float]]  # situation -> metric -> standard deviation of log error
    source: str

    def theta(self, levels: Sequence[tuple[str, ...]]) -> Floats:
        """[points, parameters] for points of these levels."""
        base = assumed()
        none = np.zeros(len(NAMES))
        return np.array([base + sum((self.effects.get(level, none) for level in mine), none) for mine in levels])

    def to_json(self) -> dict[str, Any]:
        effects = {k: [round(float(x), 4) for x in v] for k, v in sorted(self.effects.items())}
        return {
            "source": self.source,
            "parameters": {p.name: {"meaning": p.meaning, "assumed": p.assumed} for p in PARAMETERS},
            "sigma": self.sigma,
            "effects": effects,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StackFit:
        if list(data["parameters"]) != list(NAMES):
            raise ValueError("its parameters are those of another version of the model")
        effects = {level: np.array(effect, dtype=float) for level, effect in data["effects"].items()}
        for level, effect in effects.items():
            if effect.shape != (len(NAMES),) or not np.isfinite(effect).all():
                raise ValueError(f"effect {level!r} is not {len(NAMES)} numbers")
        sigma = {situation: {m: float(x) for m, x in each.items()} for situation, each in data["sigma"].items()}
        return cls(effects, sigma, str(data["source"]))


@cache
def kernel_profile(gpu: str, engine: str) -> HardwareProfile:
    """The accelerator with the kernel rates of the engine's stack; with assumed ones where no table exists."""
    hardware = load(gpu)
    path = DATA / "kernels" / f"{hardware.name}@{family_of(engine)}.json"
    if not path.is_file():
        return hardware
    kernels = Efficiency.model_validate_json(path.read_text(encoding="utf-8"))
    return replace(hardware, efficiency=kernels)


def shipped() -> StackFit:
    """The fit that ships."""
    return StackFit.from_json(json.loads((DATA / FILE).read_text(encoding="utf-8")))


def chosen() -> StackFit:
    """The fit in the folder of one's own profiles, or the one that ships. CatalogError where it cannot be read."""
    folder = own_folder()
    return (fit_in(folder) if folder is not None else None) or shipped()


def fit_in(folder: Path) -> StackFit | None:
    """The fit in a folder of one's own; None where there is none. CatalogError where it cannot be read."""
    path = folder / FILE
    if not path.is_file():
        return None
    way_out = "remove it, and write it anew with `moeplan calibrate serving`"
    try:
        return StackFit.from_json(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise CatalogError(f"{path} cannot be read ({error.strerror}); {way_out}") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        said = error if type(error) is ValueError else "it holds no fit of serving stacks"
        raise CatalogError(f"{path}: {said}; {way_out}") from None


NOTHING_FITTED = StackFit({}, {}, "assumed values")

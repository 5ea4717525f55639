"""Profiles of serving stacks: kernel rates times what the engine keeps of them, with its host overheads.

    python -m calibration.serving.export_profiles

writes hw_profiles/data/efficiency/<accelerator>@<stack>.json for every pair with op tables or serving points. Rates and
overheads are those of colocated serving with any model, on the newest software; what the fit says of models and forms
is in the profile's situations.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from calibration.serving.effects import ServingFit, shipped
from calibration.serving.parameters import DATA, LEVELS, NAMES, OWN, WIDTHS, kernel_profile, kind_of, values
from calibration.serving.points import NEWEST
from hw_profiles.catalog import load
from hw_profiles.efficiency import LARGEST_STORED, Efficiency, Situation
from simulator.model.arrays import Floats
from simulator.model.draws import DRAWS
from simulator.model.engine import FACTORS, Condition, Factor, Form, When, driven

PROFILES = Path(__file__).resolve().parents[2] / "hw_profiles" / "data" / "efficiency"
# Display name of the engine that a stack's profile stands for.
ENGINES = {"sglang": "SGLang", "vllm": "vLLM", "trtllm": "TensorRT-LLM", "atom": "ATOM"}
# What runs the pools of disaggregated serving, where it has been measured with the engine.
ORCHESTRATORS = {"NVIDIA": "Dynamo", "AMD": "MoRI"}
# Levels of a stack without regard to what it serves.
STANDING = ("all", "family", "engine", "generation", "gpu", "family+disaggregated")

TIMES: tuple[Factor, ...] = ("kernel_overhead_s", "sequence_overhead_s", "exit_latency_s", "request_overhead_s")
Engines = Mapping[Form, str]


def pairs(fit: ServingFit) -> list[tuple[str, str]]:
    """(accelerator, stack) with kernel tables or serving points."""
    found = {tuple(path.stem.split("@")) for path in (DATA / "kernels").glob("*@*.json")}
    stack_of = {engine: stack for stack, engine in ENGINES.items()}
    for gpu, engine in _served(fit):
        if engine in stack_of:
            found.add((gpu, stack_of[engine]))
    return sorted((str(gpu), str(stack)) for gpu, stack in found)


def _served(fit: ServingFit) -> set[tuple[str, str]]:
    """(accelerator, engine) with serving points."""
    names = [level.partition("=")[2].split("+") for level in fit.effects if level.startswith("gpu+engine+model=")]
    return {(parts[0], "+".join(parts[1:-1])) for parts in names}


def engines_of(gpu: str, stack: str, fit: ServingFit) -> dict[Form, str]:
    """The engine that stands for a stack in each form of serving."""
    engine = ENGINES.get(stack, stack)
    pooled = f"{ORCHESTRATORS.get(load(gpu).accelerator.vendor, '')}+{engine}"
    return {"colocated": engine, "disaggregated": pooled if f"engine={pooled}" in fit.effects else engine}


def in_engine(gpu: str, stack: str, fit: ServingFit, engines: Engines | None = None, origin: str = "") -> Efficiency:
    """The profile of one pair. engines: by form of serving, if others than `engines_of` says; origin: of the fit."""
    hardware = kernel_profile(gpu, stack)
    kernels = hardware.efficiency
    engines = engines or engines_of(gpu, stack, fit)
    engine = engines["colocated"]
    served = bool(origin) or (hardware.name, engine) in _served(fit)
    where = f"{engine} on {hardware.display_name}" if served else f"{engine} on other accelerators"
    origin = origin or f"fit to published serving points of {where}, host times of software of {NEWEST}"
    found = values(fit.theta([_standing(gpu, stack, engine)]))
    given: dict[Factor, float] = {factor: float(found[factor][0]) for factor in FACTORS}
    shares = driven(kernels, given, LARGEST_STORED)
    classes = {
        name: rates.model_copy(update={"source": f"{rates.source}; taken to the engine's share (see provenance)"})
        for name, rates in shares.classes.items()
    }
    return kernels.model_copy(
        update={
            "stack": stack,
            "classes": classes,
            "step_overhead_s": 0.0,
            **{name: float(f"{given[name]:.4g}") for name in TIMES},
            "acceptance": round(given["acceptance"], 4),
            "overhead_source": origin[0].upper() + origin[1:],
            "overhead_assumed": not served,
            "origin": "published",
            "provenance": f"{kernels.provenance}. In the engine ({origin}): "
            f"HBM rates x{given['memory']:.2f}, matrix rates x{given['matrix']:.2f}, link rates "
            f"x{given['network']:.2f}",
            "situations": situations(gpu, stack, fit, engines),
            "unseen": unseen(),
            "noise": {metric: round(sigma, 3) for metric, sigma in fit.noise.items()},
        }
    )


def situations(gpu: str, stack: str, fit: ServingFit, engines: Engines) -> tuple[Situation, ...]:
    """What effects add to the standing ones, by what they depend on, and draws of all of them."""
    found: dict[When, _Added] = {}

    def add(when: Mapping[Condition, str], level: str, sign: float = 1.0) -> None:
        found.setdefault(tuple(sorted(when.items())), _Added()).add(fit, level, sign)

    standing = set(_standing(gpu, stack, engines["colocated"]))
    for level in sorted(standing):
        found.setdefault((), _Added()).stand(fit, level)
    for form, engine in engines.items():
        fixed = _fixed(gpu, stack, engine)
        mine = set()
        for level in fit.effects:
            fields = LEVELS[kind_of(level)][1]
            when = _when(level.partition("=")[2], fields, fixed)
            if when is None or when.get("form", form) != form:
                continue
            mine.add(level)
            if level in standing:
                continue
            if "engine" in fields or "form" in fields:
                add({**when, "form": form}, level)
            elif form == "colocated":  # of any form: once
                add(when, level)
        for level in sorted(standing - mine):
            add({"form": form}, level, -1.0)
        for model in sorted(_models(fit)):
            named = {
                kind: f"{kind}={'+'.join({**fixed, 'model': model}[field] for field in LEVELS[kind][1])}"
                for kind in ("family+model", OWN)
            }
            here = found.setdefault((("form", form), ("model", model)), _Added())
            if named[OWN] not in fit.effects:  # other stacks have served it
                here.guess(*named)
            elif named["family+model"] not in fit.effects:
                here.stand(fit, named["family+model"])
    return tuple(one for when, added in found.items() if (one := added.situation(when)) is not None)


def _models(fit: ServingFit) -> set[str]:
    return {level.partition("=")[2] for level in fit.effects if kind_of(level) == "model"}


WITH_MODEL = [kind for kind, (_, fields) in LEVELS.items() if "model" in fields]


def unseen() -> dict[str, float]:
    """Standard deviation of the log of each factor by all levels of a model that no point had."""
    share = float(np.sqrt(sum(LEVELS[kind][0] ** 2 for kind in WITH_MODEL)))
    return {factor: round(share * float(WIDTHS[NAMES.index(factor)]), 3) for factor in FACTORS}


class _Added:
    """Effects that hold in one situation, being added up: logs, draws less the logs, and variances of guesses."""

    def __init__(self) -> None:
        self.log, self.drawn = np.zeros(len(NAMES)), np.zeros((DRAWS, len(NAMES)))
        self.variance = np.zeros(len(NAMES))

    def add(self, fit: ServingFit, level: str, sign: float) -> None:
        self.log = self.log + sign * fit.effects.get(level, np.zeros(len(NAMES)))
        self.stand(fit, level, sign)

    def stand(self, fit: ServingFit, level: str, sign: float = 1.0) -> None:
        """The effect itself is in the profile."""
        self.drawn = self.drawn + sign * (fit.draw(level) - fit.effects.get(level, np.zeros(len(NAMES))))

    def guess(self, *kinds: str) -> None:
        """Levels of which nothing is known."""
        for kind in kinds:
            self.variance = self.variance + (WIDTHS * LEVELS[kind][0]) ** 2

    def situation(self, when: When) -> Situation | None:
        """None where it changes nothing."""
        place = {factor: NAMES.index(factor) for factor in FACTORS}
        factors = {name: round(float(np.exp(self.log[i])), 4) for name, i in place.items()}
        drawn = {name: tuple(np.round(self.drawn[:, i] * 100).astype(int).tolist()) for name, i in place.items()}
        found = Situation(
            when=dict(when),
            factors={name: value for name, value in factors.items() if value != 1.0},
            drawn={name: values for name, values in drawn.items() if any(values)},
            deviations={name: round(float(np.sqrt(v)), 3) for name, i in place.items() if (v := self.variance[i])},
        )
        return found if found.factors or found.drawn or found.deviations else None


def _fixed(gpu: str, stack: str, engine: str) -> dict[str, str]:
    part = load(gpu).accelerator
    return {"family": stack, "engine": engine, "vendor": part.vendor, "generation": part.generation, "gpu": part.name}


def _standing(gpu: str, stack: str, engine: str) -> tuple[str, ...]:
    fields = {**_fixed(gpu, stack, engine), "form": "colocated"}
    return tuple(f"{name}={'+'.join(fields[field] for field in LEVELS[name][1])}" for name in STANDING)


def _when(value: str, fields: Sequence[str], fixed: Mapping[str, str]) -> dict[Condition, str] | None:
    """What a level of this stack depends on beside the stack; None for levels of others and of single releases."""
    own = [fixed[field] for field in fields if field in fixed]
    free = [field for field in fields if field not in fixed]
    if "release" in free:
        return None
    rest = value
    if own:
        head = "+".join(own)
        if value != head and not value.startswith(f"{head}+"):
            return None
        rest = value[len(head) + 1 :]
    said = rest.split("+") if rest else []
    if len(said) != len(free):
        return None
    return cast(dict[Condition, str], dict(zip(free, said, strict=True)))


def factors_of(log: Floats) -> dict[str, float]:
    """Of each figure that differs there."""
    found = {factor: round(float(np.exp(log[NAMES.index(factor)])), 4) for factor in FACTORS}
    return {factor: value for factor, value in found.items() if value != 1.0}


def as_text(profile: Efficiency) -> str:
    """JSON with lists of numbers on a line each."""
    return re.sub(r"\[[\s\d,-]+\]", lambda found: re.sub(r"\s", "", found[0]), profile.model_dump_json(indent=1)) + "\n"


def write(folder: Path, chosen: Sequence[tuple[str, str]], fit: ServingFit) -> list[Path]:
    paths = []
    for gpu, stack in chosen:
        path = folder / f"{gpu}@{stack}.json"
        path.write_text(as_text(in_engine(gpu, stack, fit)), encoding="utf-8")
        paths.append(path)
    return paths


if __name__ == "__main__":
    shipped_fit = shipped()
    for written in write(PROFILES, pairs(shipped_fit), shipped_fit):
        print(written.name)

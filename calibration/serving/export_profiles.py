"""Profiles of serving stacks: kernel rates times what the engine keeps of them, with its host overheads.

    python -m calibration.serving.export_profiles

writes hw_profiles/data/efficiency/<accelerator>@<stack>.json for every pair with op tables or serving points. Rates and
overheads are those of colocated serving with any model, on the newest software; what the fit says of models, forms,
kinds of parallelism, drafts and precisions is in the profile's situations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from calibration.serving.engine_parameters import DATA, LEVELS, NAMES, StackFit, kernel_profile, shipped, values
from calibration.serving.points import NEWEST
from hw_profiles.catalog import load
from hw_profiles.efficiency import LARGEST_STORED, Efficiency, Situation
from simulator.model.arrays import Floats
from simulator.model.engine import FACTORS, Condition, Factor, Form, When, driven

PROFILES = Path(__file__).resolve().parents[2] / "hw_profiles" / "data" / "efficiency"
# Display name of the engine that a stack's profile stands for.
ENGINES = {"sglang": "SGLang", "vllm": "vLLM", "trtllm": "TensorRT-LLM", "atom": "ATOM"}
# What runs the pools of disaggregated serving, where it has been measured with the engine.
ORCHESTRATORS = {"NVIDIA": "Dynamo", "AMD": "MoRI"}
# Levels of a stack without regard to what it serves.
STANDING = ("all", "family", "engine", "vendor", "generation", "gpu", "family+vendor", "family+generation",
            "family+disaggregated", "disaggregated")  # fmt: skip

# Parameter of the fit behind each factor of a profile.
FITTED: dict[Factor, str] = {factor: "draft_overhead" if factor == "drafting" else factor for factor in FACTORS}

Engines = Mapping[Form, str]


def pairs(fit: StackFit) -> list[tuple[str, str]]:
    """(accelerator, stack) with kernel tables or serving points."""
    found = {tuple(path.stem.split("@")) for path in (DATA / "kernels").glob("*@*.json")}
    stack_of = {engine: stack for stack, engine in ENGINES.items()}
    for gpu, engine in _served(fit):
        if engine in stack_of:
            found.add((gpu, stack_of[engine]))
    return sorted((str(gpu), str(stack)) for gpu, stack in found)


def _served(fit: StackFit) -> set[tuple[str, str]]:
    """(accelerator, engine) with serving points."""
    names = [level.partition("=")[2].split("+") for level in fit.effects if level.startswith("gpu+engine+model=")]
    return {(parts[0], "+".join(parts[1:-1])) for parts in names}


def engines_of(gpu: str, stack: str, fit: StackFit) -> dict[Form, str]:
    """The engine that stands for a stack in each form of serving."""
    engine = ENGINES.get(stack, stack)
    pooled = f"{ORCHESTRATORS.get(load(gpu).accelerator.vendor, '')}+{engine}"
    return {"colocated": engine, "disaggregated": pooled if f"engine={pooled}" in fit.effects else engine}


def in_engine(gpu: str, stack: str, fit: StackFit, engines: Engines | None = None, origin: str = "") -> Efficiency:
    """The profile of one pair. engines: by form of serving, if others than `engines_of` says; origin: of the fit."""
    hardware = kernel_profile(gpu, stack)
    kernels = hardware.efficiency
    engines = engines or engines_of(gpu, stack, fit)
    engine = engines["colocated"]
    served = bool(origin) or (hardware.name, engine) in _served(fit)
    where = f"{engine} on {hardware.display_name}" if served else f"{engine} on other accelerators"
    origin = origin or f"fit to published serving points of {where}, host times of software of {NEWEST}"
    found = values(fit.theta([_standing(gpu, stack, engine)]))
    given = {factor: float(found[name][0]) for factor, name in FITTED.items()}
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
            "kernel_overhead_s": float(f"{given['kernel_overhead_s']:.4g}"),
            "request_overhead_s": round(given["request_overhead_s"], 4),
            "overhead_source": origin[0].upper() + origin[1:],
            "overhead_assumed": not served,
            "origin": "published",
            "provenance": f"{kernels.provenance}. In the engine ({origin}): "
            f"HBM rates x{given['memory']:.2f}, matrix rates x{given['matrix']:.2f}, link rates "
            f"x{given['network']:.2f}, launch floors x{given['launch']:.2f}",
            "situations": situations(gpu, stack, fit, engines, given["drafting"]),
        }
    )


def situations(gpu: str, stack: str, fit: StackFit, engines: Engines, drafting: float) -> tuple[Situation, ...]:
    """What effects add to the standing ones, by what they depend on. drafting: what these say of it."""
    logs: dict[When, Floats] = {}

    def add(when: Mapping[Condition, str], effect: Floats) -> None:
        key: When = tuple(sorted(when.items()))
        logs[key] = logs.get(key, 0.0) + effect

    standing = set(_standing(gpu, stack, engines["colocated"]))
    for form, engine in engines.items():
        fixed = _fixed(gpu, stack, engine)
        mine = set()
        for level, effect in fit.effects.items():
            name, _, value = level.partition("=")
            fields = LEVELS[name][1]
            when = _when(value, fields, fixed)
            if when is None or when.get("form", form) != form:
                continue
            mine.add(level)
            if level in standing:
                continue
            if "engine" in fields or "form" in fields:
                add({**when, "form": form}, effect)
            elif form == "colocated":  # of any form: once
                add(when, effect)
        for level in sorted(standing - mine):
            add({"form": form}, -fit.effects.get(level, np.zeros(len(NAMES))))
    found = [Situation(when=dict(when), factors=factors_of(log)) for when, log in logs.items()]
    always = Situation(when={}, factors={"drafting": round(drafting, 4)})
    return (always, *(one for one in found if one.factors))


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
    found = {factor: round(float(np.exp(log[NAMES.index(name)])), 4) for factor, name in FITTED.items()}
    return {factor: value for factor, value in found.items() if value != 1.0}


def write(folder: Path, chosen: Sequence[tuple[str, str]], fit: StackFit) -> list[Path]:
    paths = []
    for gpu, stack in chosen:
        path = folder / f"{gpu}@{stack}.json"
        path.write_text(in_engine(gpu, stack, fit).model_dump_json(indent=1) + "\n", encoding="utf-8")
        paths.append(path)
    return paths


if __name__ == "__main__":
    shipped_fit = shipped()
    for written in write(PROFILES, pairs(shipped_fit), shipped_fit):
        print(written.name)

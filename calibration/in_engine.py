"""Profiles of serving stacks: kernel rates times what the engine keeps of them, with its host overheads.

    python -m calibration.in_engine

writes hw_profiles/data/efficiency/<accelerator>@<stack>.json for every pair with op tables or serving points. The
effects are those of engine, accelerator, generation and vendor without any model's own, for colocated serving.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from calibration.validation.balance import ATTENTION, CLASSES, EXPERTS
from calibration.validation.stack import DATA, StackFit, kernel_profile, shipped, values
from hw_profiles.catalog import load
from hw_profiles.efficiency import ClassEfficiency, Efficiency, OpClass

PROFILES = Path(__file__).resolve().parent.parent / "hw_profiles" / "data" / "efficiency"
# Display name of the engine that a stack's profile stands for.
ENGINES = {"sglang": "SGLang", "vllm": "vLLM", "trtllm": "TensorRT-LLM", "atom": "ATOM"}
LARGEST_FRACTION = 1.0


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


def levels(gpu: str, stack: str) -> tuple[str, ...]:
    """Levels of colocated serving with any model."""
    part = load(gpu).accelerator
    return (
        "all=", f"family={stack}", f"engine={ENGINES.get(stack, stack)}", f"vendor={part.vendor}",
        f"generation={part.generation}", f"gpu={gpu}", f"family+vendor={stack}+{part.vendor}",
        f"family+generation={stack}+{part.generation}",
        f"family+disaggregated={stack}+colocated", "disaggregated=colocated",
    )  # fmt: skip


def in_engine(gpu: str, stack: str, fit: StackFit) -> Efficiency:
    """The profile of one pair."""
    hardware = kernel_profile(gpu, stack)
    kernels = hardware.efficiency
    given = {name: float(value[0]) for name, value in values(fit.theta([levels(gpu, stack)])).items()}
    engine = ENGINES.get(stack, stack)
    served = (hardware.name, engine) in _served(fit)
    where = f"{engine} on {hardware.display_name}" if served else f"{engine} on other accelerators"
    classes = {name: _scaled(name, rates, given) for name, rates in kernels.classes.items()}
    return kernels.model_copy(
        update={
            "stack": stack,
            "classes": classes,
            "step_overhead_s": round(given["step_overhead_s"], 6),
            "request_overhead_s": round(given["request_overhead_s"], 4),
            "overhead_source": f"Fit to published serving points of {where}",
            "overhead_assumed": not served,
            "origin": "published",
            "provenance": f"{kernels.provenance}. In the engine (fit to published serving points of {where}): "
            f"HBM rates x{given['memory']:.2f}, matrix rates x{given['matrix']:.2f}, link rates "
            f"x{given['network']:.2f}, launch floors x{given['launch']:.2f}",
        }
    )


def _scaled(op_class: OpClass, rates: ClassEfficiency, given: Mapping[str, float]) -> ClassEfficiency:
    place = CLASSES.index(op_class)
    own = given["attention"] if place in ATTENTION else given["experts"] if place in EXPERTS else 1.0
    given = {**given, "matrix": given["matrix"] * own, "memory": given["memory"] * own}

    def share(value: float, name: str) -> float:
        return round(min(LARGEST_FRACTION, value * given[name]), 4)

    def floor(seconds: float) -> float:
        return float(np.format_float_positional(seconds * given["launch"], 4, fractional=False))

    return rates.model_copy(
        update={
            "matrix_fraction": share(rates.matrix_fraction, "matrix"),
            "matrix_fraction_by": {d: share(f, "matrix") for d, f in rates.matrix_fraction_by.items()},
            "memory_fraction": share(rates.memory_fraction, "memory"),
            "memory_fraction_by": {d: share(f, "memory") for d, f in rates.memory_fraction_by.items()},
            "network_fraction": share(rates.network_fraction, "network"),
            "latency_s": floor(rates.latency_s),
            "latency_s_by": {d: floor(s) for d, s in rates.latency_s_by.items()},
            "source": f"{rates.source}; taken to the engine's share (see provenance)",
        }
    )


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

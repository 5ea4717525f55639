"""Held-out error of kernel rates on measured op tables, by family, accelerator and stack.

    python -m benchmarks.op_tables TABLES [--write]

fits every pair of accelerator and stack with tables in the folder, as `moeplan calibrate published` does, and writes
benchmarks/results/op_tables.json; with --write also the fits that `calibration.serving.export_profiles` starts from.
Each row is predicted by a fit of the other folds. An op class on an accelerator has the rows of all stacks. Families
that are in the installed wheel alone (`BESIDE`) are read there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections import defaultdict
from pathlib import Path

import numpy as np

from calibration.op_tables.fit_tables import MODULES, Calibration, calibrate
from calibration.op_tables.tables import TableError, systems
from calibration.serving.parameters import DATA

RESULTS = Path(__file__).resolve().parent / "results" / "op_tables.json"
STACKS = ("sglang", "trtllm", "vllm")
BESIDE = ("gdn",)  # not among the samples
GOAL = 0.06  # median held-out error
OP_CLASSES = {
    "dense products": ("gemm",),
    "experts, unfused": ("moe",),
    "experts, MegaMoE": ("dsv4_megamoe",),
    "MLA": ("context_mla", "generation_mla"),
    "grouped heads": ("context_attention", "generation_attention"),
    "V4 attention modules": MODULES,
    "mHC": ("mhc_module",),
    "recurrent states": ("gdn",),
}


def summary(found: dict[str, Calibration]) -> dict[str, dict[str, float]]:
    """By family: pairs, rows, the median and the largest of the pairs' median errors, and pairs within the goal."""
    errors: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for one in found.values():
        for error in one.errors:
            errors[str(error.family)].append((error.rows, error.held_out))
    return {
        family: {
            "pairs": len(each),
            "rows": sum(rows for rows, _ in each),
            "median": round(float(np.median([e for _, e in each])), 4),
            "largest": round(max(e for _, e in each), 4),
            "pairs_within_goal": sum(e <= GOAL for _, e in each),
        }
        for family, each in sorted(errors.items())
    }


def by_accelerator(found: dict[str, Calibration]) -> dict[str, dict[str, dict[str, float]]]:
    """By op class and accelerator: rows of all stacks, and their median error."""
    errors: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in OP_CLASSES}
    for pair, one in found.items():
        for name, families in OP_CLASSES.items():
            for error in one.errors:
                if error.family in families:
                    errors[name][pair.partition("@")[0]] += error.each
    return {
        name: {
            system: {"rows": len(each), "held_out": round(float(np.median(np.abs(each))), 4)}
            for system, each in sorted(systems_.items())
        }
        for name, systems_ in errors.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("tables", type=Path)
    parser.add_argument("--write", action="store_true", help="write the fits too")
    asked = parser.parse_args()
    try:
        found = {
            f"{system}@{stack}": calibrate(system, stack, asked.tables).beside(calibrate(system, stack, None, BESIDE))
            for stack in STACKS
            for system in systems(asked.tables, stack)
        }
    except TableError as error:
        parser.error(str(error))
    if asked.write:
        for pair, one in found.items():
            (DATA / "kernels" / f"{pair}.json").write_text(one.to_json(), encoding="utf-8")
    commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], text=True).strip()
    by_pair = {
        pair: {str(e.family): {"rows": e.rows, "held_out": round(e.held_out, 4)} for e in one.errors}
        for pair, one in found.items()
    }
    families = summary(found)
    pooled = by_accelerator(found)
    data = {"commit": commit, "goal": GOAL, "by_accelerator": pooled, "families": families, "pairs": by_pair}
    RESULTS.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    for name, by_system in pooled.items():
        print(f"{name:28s}", ", ".join(f"{system} {row['held_out']:.1%}" for system, row in by_system.items()))
    for family, row in families.items():
        print(f"{family:28s} {row['median']:6.1%} median, {row['largest']:6.1%} at most, {row['pairs']} pairs")


if __name__ == "__main__":
    main()

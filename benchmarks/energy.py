"""Power of accelerators by phase and load, fitted to measured joules per output token, and its held-out error.

    python -m benchmarks.energy [--points FILE...] [--json FILE]

reads colocated serving points (columns of published.csv) that have joules_per_output_token. What an accelerator drew is
that times its output rate. Prefill's share of the time is what the prompts' FLOPs take at PREFILL_RATE of the FP8 peak,
the sequences that decode follow from rate and TPOT (Little's law). Each stack (accelerator, engine, model, drafts) is
predicted by a fit of the others. The constants of `hw_profiles.power` are this fit of all rows.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from hw_profiles.catalog import load
from hw_profiles.power import IDLE, power_law
from simulator.model.arrays import Floats
from simulator.model.parameter_counts import params_active
from simulator.model.presets import load_model

POINTS = (Path("/work/shared/data/serving/published.csv"), Path("/work/shared/data/serving/published_more.csv"))
ACHIEVED = Path("/work/shared/data/hardware/achieved.csv")
PREFILL_RATE = 0.35  # of the FP8 peak; assumed: what serving reaches in prefill
DRAFTS = 3  # of points that say MTP or EAGLE and no number; as the study of these points has it
OLD_SHARES = (1.0, 0.6)  # of the TDP in prefill and decode, as energy was priced before
PRESETS = {
    "DeepSeek-V4-Pro": "deepseek-v4-pro",
    "DeepSeek-R1-0528": "deepseek-r1",
    "Qwen3.5-397B-A17B": "qwen3.5-397b-a17b",
}
ROBUST = 0.1  # residuals beyond this count less [-]; assumed: re-runs of one point differ by 17% in the median


@dataclass(frozen=True)
class Point:
    """Measured draw of one accelerator, as a share of its TDP, and its load."""

    stack: tuple[str, str, str, int]
    rows: float  # tokens of a decode step on each accelerator
    prefill_share: float  # of the time
    share: float


def read(paths: Sequence[Path]) -> tuple[list[Point], int]:
    """The points, and how many disaggregated ones were left out: their joules and rates count other accelerators."""
    found, left_out = [], 0
    for path in paths:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if not row["joules_per_output_token"]:
                    continue
                if float(row["disaggregated"]):
                    left_out += 1
                    continue
                found.append(_point(row))
    return found, left_out


def _point(row: dict[str, str]) -> Point:
    part = load(row["gpu"])
    prompt, output, gpus = float(row["isl"]), float(row["osl"]), float(row["n_gpu"])
    if row["total_tok_s_per_gpu"]:
        total = float(row["total_tok_s_per_gpu"])
    else:
        total = float(row["output_tok_s_per_gpu"]) * (prompt + output) / output
    out = total * output / (prompt + output)
    watts = float(row["joules_per_output_token"]) * out
    drafts = DRAFTS if any(word in row["spec_decode"] for word in ("MTP", "EAGLE")) else 0
    running = float(row["concurrency"])
    if row["tpot_ms"]:
        running = min(running, out * gpus * float(row["tpot_ms"]) / 1e3)
    flops = 2 * params_active(load_model(PRESETS[row["model"]])) * (total - out)
    prefill = min(1.0, flops / (PREFILL_RATE * part.matrix_peak("fp8")))
    assert part.tdp_w is not None
    stack = (part.name, row["engine"], row["model"], drafts)
    return Point(stack, running / gpus * (1 + drafts), prefill, watts / part.tdp_w)


class Fit:
    """Least squares of logarithms: a level for each accelerator, one slope and one level of prefill for all."""

    def __init__(self, points: Sequence[Point]) -> None:
        self.parts = sorted({point.stack[0] for point in points})
        start = np.array([*([0.4] * len(self.parts)), 0.05, 0.9])
        low, high = [IDLE] * len(self.parts) + [0.0, 0.3], [1.0] * len(self.parts) + [0.3, 1.0]
        measured = np.log([point.share for point in points])

        def off(parameters: Floats) -> Floats:
            return np.log(self._shares(parameters, points)) - measured

        self.parameters = least_squares(off, start, bounds=(low, high), loss="soft_l1", f_scale=ROBUST).x

    def _shares(self, parameters: Floats, points: Sequence[Point]) -> Floats:
        level = parameters[[self.parts.index(point.stack[0]) for point in points]]
        slope, prefill = parameters[-2:]
        rows = np.array([point.rows for point in points])
        part = np.array([point.prefill_share for point in points])
        decode = np.clip(level + slope * np.log2(rows), IDLE, 1.0)
        return np.asarray(part * prefill + (1 - part) * decode)

    def shares(self, points: Sequence[Point]) -> Floats:
        return self._shares(self.parameters, points)

    def to_json(self) -> dict[str, Any]:
        levels = {name: round(float(x), 3) for name, x in zip(self.parts, self.parameters, strict=False)}
        slope, prefill = self.parameters[-2:]
        return {"decode_at_one": levels, "per_doubling": round(float(slope), 4), "prefill": round(float(prefill), 3)}


def errors(predicted: Floats, points: Sequence[Point]) -> Floats:
    return np.asarray(predicted / np.array([point.share for point in points]) - 1)


def said(off: Floats) -> dict[str, float]:
    size = np.abs(off)
    return {
        "median": round(float(np.median(size)), 4),
        "p90": round(float(np.quantile(size, 0.9)), 4),
        "bias": round(float(np.median(off)), 4),
    }


def score(points: Sequence[Point]) -> dict[str, Any]:
    fit = Fit(points)
    held_out = np.zeros(len(points))
    by_stack = {}
    for stack in sorted({point.stack for point in points}):
        places = [i for i, point in enumerate(points) if point.stack == stack]
        own = [points[i] for i in places]
        others = Fit([point for point in points if point.stack != stack])
        held_out[places] = errors(others.shares(own), own)
        by_stack[" ".join(map(str, stack))] = {"rows": len(own), **said(held_out[places])}
    prefill, decode = OLD_SHARES
    old = np.array([p.prefill_share * prefill + (1 - p.prefill_share) * decode for p in points])
    return {
        "rows": len(points),
        "fit": fit.to_json(),
        "in_sample": said(errors(fit.shares(points), points)),
        "held_out_stacks": said(held_out),
        "constant_shares": said(errors(old, points)),
        "stacks": by_stack,
    }


def elsewhere(path: Path) -> dict[str, Any]:
    """The shipped law against power under load that others measured: rows of achieved.csv, never fitted."""
    rows = []
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found = re.search(r"(\d+)x[A-Z]+\d+.* bs(\d+)", row["conditions"])
            if row["category"] != "energy" or row["metric"] != "GPU power under load" or found is None:
                continue
            part = load(row["accelerator"])
            law = power_law(part.name, part.accelerator.generation)
            mine = law.decode(float(found[2]) / float(found[1]))
            rows.append((row["conditions"], mine / float(row["fraction_of_peak"]) - 1))
    off = np.array([error for _, error in rows])
    return {"rows": len(rows), **said(off), "errors": {name: round(float(error), 3) for name, error in rows}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--points", type=Path, nargs="+", default=POINTS)
    parser.add_argument("--achieved", type=Path, default=ACHIEVED, help="CSV with the columns of achieved.csv")
    parser.add_argument("--json", type=Path, default=None, help="write fit and errors there")
    asked = parser.parse_args()
    missing = [path for path in asked.points if not path.is_file()]
    if missing:
        parser.error(f"{missing[0]} is not a file; give serving points with --points")
    points, left_out = read(asked.points)
    data = {"disaggregated_left_out": left_out, **score(points)}
    if asked.achieved.is_file():
        data["other_measurements"] = elsewhere(asked.achieved)
    if asked.json:
        asked.json.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(data["fit"]))
    for name in ("in_sample", "held_out_stacks", "constant_shares"):
        print(f"{name:18s}", data[name])
    if "other_measurements" in data:
        print("other_measurements", {key: data["other_measurements"][key] for key in ("rows", "median", "bias")})


if __name__ == "__main__":
    main()

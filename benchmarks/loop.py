"""Does the loop close? A scaled-down V4 on this machine: replayed by the engine, simulated with the fitted profile.

    python -m benchmarks.loop [--requests 200] [--runs 3]

The engine runs on a virtual clock (`calibration.microbench.virtual_clock`): its steps are real and timed, waiting is
skipped, and a prefill and a decode engine do not contend for cores. A step counts the time that its one thread
computed, so that processes which share the core lengthen no step (what they take of caches and memory they do). Each
load is replayed several times, so that one bad minute of the machine decides nothing; of each replay there are two
predictions:
  interleaved  steps of other requests, timed between the steps of the replay, refit the profile. It follows a shared
               machine whose speed drifts; it checks the model and is no forecast.
  forecast     profile fitted to measurements made before all replays
Errors are medians over the replays of all loads. Rerun: each replay against the one before, of the same load; what no
prediction can be expected to beat.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from app.output import plain
from calibration.microbench.device import detect
from calibration.microbench.fit.profile_fit import fit_machine
from calibration.microbench.measure import measure
from calibration.microbench.measurement import read
from calibration.microbench.preset import CPU_QUICK
from calibration.replay.interleaved import as_it_ran, play
from calibration.replay.report import LOADS, METRICS, PERCENTILES, THROUGHPUT, LoadReport, compare, median_errors
from calibration.replay.subject import FORMS, Form, Subject, capacity, subject_of
from calibration.replay.traffic import at_rate, draw_traffic
from hw_profiles.profile import HardwareProfile

RESULT = Path(__file__).parent / "results" / "loop.json"
# What a laptop replays in minutes (assumed).
LAYERS = 4
PRESET = replace(CPU_QUICK, layers=LAYERS, depths=(LAYERS,), steps=300, longest_prompt=128, longest_output=12)
RUNS = 3  # of each load
PREDICTIONS = ("interleaved", "forecast")
GOALS = {"throughput": 0.10, "TPOT": 0.10, "TTFT": 0.15}  # of the interleaved prediction, median over loads
Rows = list[dict[str, LoadReport]]  # a row a replay: prediction -> report


def replays(
    subject: Subject, form: Form, forecast: HardwareProfile, loads: Sequence[float], requests: int, runs: int
) -> Rows:
    """Every load `runs` times, the heaviest first: what is known of capacity afterwards is of this hour."""
    rows: Rows = []
    now = forecast
    for load in sorted(loads, reverse=True):
        drawn = [draw_traffic(PRESET, requests, seed) for seed in (0, 1)]
        rate = load * capacity(drawn[0], subject, subject.times(now), form)
        traffic, others = (at_rate(one, rate) for one in drawn)
        for run in range(runs):
            wall_s, core_s = time.perf_counter(), time.thread_time()
            done = play(subject, form, traffic, others, seed=10 * run)
            core_share = (time.thread_time() - core_s) / (time.perf_counter() - wall_s)
            now = as_it_ran(forecast, subject, done.probes)
            steps = [(step.shape, step.duration_s) for step in done.steps]
            row = {
                name: compare(form, load, traffic, subject, hardware, done.times, steps)
                for name, hardware in (("interleaved", now), ("forecast", forecast))
            }
            row = {name: replace(report, core_share=core_share) for name, report in row.items()}
            rows.append(row)
            for name, report in row.items():
                ratios = " ".join(f"{m} {1 + report.error(m):.2f}" for m in METRICS)
                print(f"{form} {load:g} {name}: {ratios} step sum {report.step_sum_ratio:.2f}", flush=True)
            print(f"  with {core_share:.0%} of a core", flush=True)
    return rows


def reruns(rows: Rows) -> dict[str, float]:
    """Median of |replay / the one before - 1| of the same load, by metric; NaN where none was replayed twice."""
    reports = [row["forecast"] for row in rows]
    pairs = [(a.measured, b.measured) for a, b in pairwise(reports) if a.load == b.load]
    return {m: float(np.median([abs(b[m] / a[m] - 1) for a, b in pairs])) if pairs else float("nan") for m in METRICS}


def table(summary: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown. summary: form -> prediction or rerun -> metric -> median error."""
    columns = (*PREDICTIONS, "rerun")
    lines = [f"| | | {' | '.join(columns)} | goal |", "|---|---|" + "---|" * (len(columns) + 1)]
    for form, errors in summary.items():
        groups = [("throughput", [THROUGHPUT])]
        for name in ("TPOT", "TTFT", "e2e"):
            groups.append((f"{name} {', '.join(f'p{p}' for p in PERCENTILES)}", [f"{name} p{p}" for p in PERCENTILES]))
        for place, (label, names) in enumerate(groups):
            cells = [", ".join(_share(errors[column][m]) for m in names) for column in columns]
            goal = GOALS.get(label.split()[0])
            cells.append("" if goal is None else f"{goal:.0%}")
            lines.append(f"| {form if place == 0 else ''} | {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _share(error: float) -> str:
    return "-" if np.isnan(error) else f"{error:.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--runs", type=int, default=RUNS, help="replays of each load")
    parser.add_argument("--loads", type=float, nargs="+", default=LOADS)
    parser.add_argument("--measurements", type=Path, help="keep them there, and use what is there")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    machine = detect("cpu", 1)
    with tempfile.TemporaryDirectory() as folder:
        file = options.measurements or Path(folder) / "measurements.jsonl"
        measure(machine, PRESET, file)
        before = read(file)
    fitted = fit_machine(before)
    subject = subject_of(machine, PRESET, LAYERS, before)
    summary: dict[str, dict[str, dict[str, float]]] = {}
    report: dict[str, Any] = {
        "machine": machine.to_json(), "requests": options.requests, "runs": options.runs, "loads": options.loads,
        "layers": LAYERS, "profile error": fitted.efficiency.held_out_error,
        "median error": summary, "goals": GOALS, "replays": [],
    }  # fmt: skip
    for form in FORMS:
        rows = replays(subject, form, fitted.hardware, options.loads, options.requests, options.runs)
        summary[form] = {name: median_errors([row[name] for row in rows]) for name in PREDICTIONS}
        summary[form]["rerun"] = reruns(rows)
        report["replays"] += [{name: asdict(one) for name, one in row.items()} for row in rows]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(plain(report), indent=1, allow_nan=False) + "\n")
    print(f"\n{options.requests} requests, {machine.display_name}, commit {machine.commit}, {machine.time}\n")
    print(table(summary))


if __name__ == "__main__":
    main()

"""Does the loop close? A scaled-down V4 on this machine: replayed by the engine, simulated with the fitted profile.

    python -m benchmarks.loop [--requests 200]

The engine runs on a virtual clock (`calibration.machine.virtual_clock`): its steps are real and timed, waiting is
skipped, and a prefill and a decode engine do not contend for cores. Two predictions of each replay:
  forecast     profile fitted to measurements made before all replays
  interleaved  steps of other traffic, measured between the steps of the replay, refit what whole steps add to ops.
               It follows a shared machine whose speed drifts; it checks the model and is no forecast.
Rerun: the same replay once more, as measured; what no prediction can be expected to beat.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from calibration.loop import report as loop
from calibration.loop.subject import FORMS, Form, Subject, capacity, subject_of
from calibration.loop.traffic import Traffic, at_rate, draw_traffic, trace_of
from calibration.loop.twin import Times, simulate
from calibration.loop.virtual_pair import replay_pair
from calibration.machine import models
from calibration.machine.bench import Bench
from calibration.machine.device import detect
from calibration.machine.measure import measure
from calibration.machine.measurement import Measurement, Measurements, read
from calibration.machine.preset import CPU_QUICK
from calibration.machine.profile_fit import fit_machine
from calibration.machine.timer import Sample
from calibration.machine.virtual_clock import Step, VirtualReplay, replay
from hw_profiles.profile import HardwareProfile

RESULT = Path(__file__).parent / "results" / "loop.json"
LAYERS = 4
PRESET = replace(CPU_QUICK, layers=LAYERS, depths=(LAYERS,), steps=300, longest_prompt=128, longest_output=12)
PROBE_EVERY, PROBE_STEPS = 16, 6
METRICS = ("output tokens/s", "tpot mean", "tpot p50", "tpot p90", "ttft mean", "ttft p50", "ttft p90", "e2e p50")


def figures(times: Times) -> dict[str, float]:
    spread = {"tpot": times.tpot_s, "ttft": times.ttft_s, "e2e": times.e2e_s}
    found = {"output tokens/s": times.output_tokens_per_s}
    for name, values in spread.items():
        found[f"{name} mean"] = float(values.mean())
        found |= {f"{name} p{p}": float(np.percentile(values, p)) for p in (50, 90, 99)}
    return found


def probing(bench: Bench, probes: list[Step]) -> Callable[[int], None]:
    """A hook that times steps of other traffic on an engine of its own."""
    engine = bench.engine(LAYERS)
    replay(engine, bench.traffic(4, 1), until_steps=8)

    def probe(steps: int) -> None:
        if steps % PROBE_EVERY == 0:
            traffic = bench.traffic(PROBE_STEPS, 1000 + steps)
            probes.extend(replay(engine, traffic, until_steps=PROBE_STEPS).steps)

    return probe


def play(bench: Bench, form: Form, traffic: Traffic) -> tuple[Times, list[Step], VirtualReplay]:
    """One replay, with probes between its steps."""
    probes: list[Step] = []
    probe = probing(bench, probes)
    with contextlib.ExitStack() as stack:
        engines = [stack.enter_context(contextlib.closing(bench.engine(LAYERS))) for _ in FORMS]
        for engine in engines:
            replay(engine, bench.traffic(4, 2), until_steps=8)
        trace = trace_of(traffic)
        done = (
            replay(engines[0], trace, between=probe)
            if form == "colocated"
            else replay_pair(*engines, trace, between=probe)
        )
    times = Times(traffic.arrival_s, np.array(done.first_token_s), np.array(done.finish_s), traffic.output_tokens)
    return times, probes, done


def interleaved(before: Measurements, probes: list[Step]) -> HardwareProfile:
    """The ops as measured before, the steps as measured between."""
    ops = tuple(row for row in before.rows if row.family != "step")
    steps = tuple(
        Measurement(f"probe {i}", "step", sample=Sample(s.duration_s, s.duration_s, s.duration_s, 1), step=s.shape,
                    model=PRESET.model, layers=LAYERS)
        for i, s in enumerate(probes)
    )  # fmt: skip
    return fit_machine(replace(before, rows=ops + steps)).hardware


def one(
    bench: Bench,
    subject: Subject,
    before: Measurements,
    forecast: HardwareProfile,
    form: Form,
    traffic: Traffic,
) -> dict[str, Any]:
    """A replay with both predictions of it."""
    measured, probes, done = play(bench, form, traffic)
    row: dict[str, Any] = {"measured": figures(measured), "steps": len(done.steps)}
    for name, hardware in (("forecast", forecast), ("interleaved", interleaved(before, probes))):
        times = subject.times(hardware)
        predicted = simulate(traffic, times, subject.limits, subject.handover if form == "disaggregated" else None)
        priced = sum(loop.price(times, step.shape) for step in done.steps)
        row[name] = figures(predicted) | {"step sum ratio": priced / sum(step.duration_s for step in done.steps)}
    return row


def errors(rows: list[dict[str, Any]], name: str) -> dict[str, float]:
    """Median over loads of |predicted / measured - 1|."""
    return {m: float(np.median([abs(r[name][m] / r["measured"][m] - 1) for r in rows])) for m in METRICS}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--loads", type=float, nargs="+", default=[0.25, 0.5, 0.75, 1.0])
    parser.add_argument("--seed", type=int, default=0)
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
    bench = Bench(machine, PRESET, models.read_config(PRESET.model))
    traffic = draw_traffic(PRESET, options.requests, options.seed)
    report: dict[str, Any] = {
        "machine": machine.to_json(), "requests": options.requests, "layers": LAYERS,
        "profile error": fitted.efficiency.held_out_error, "forms": {},
    }  # fmt: skip
    for form in FORMS:
        full = capacity(traffic, subject, subject.times(fitted.hardware), form)
        rows = []
        for load in options.loads:
            paced = at_rate(traffic, load * full)
            row = {"load": load, "rate": load * full} | one(bench, subject, before, fitted.hardware, form, paced)
            rows.append(row)
            for name in ("forecast", "interleaved"):
                ratios = " ".join(f"{m} {row[name][m] / row['measured'][m]:.2f}" for m in METRICS)
                print(f"{form} {load:g} {name}: {ratios} step sum {row[name]['step sum ratio']:.2f}", flush=True)
        again, _, _ = play(bench, form, at_rate(traffic, options.loads[0] * full))
        rerun = {m: figures(again)[m] / rows[0]["measured"][m] - 1 for m in METRICS}
        medians = {name: errors(rows, name) for name in ("forecast", "interleaved")}
        report["forms"][form] = {"loads": rows, "median error": medians, "rerun": rerun}
        for name, found in medians.items():
            print(f"{form} {name}, median over loads: " + ", ".join(f"{m} {found[m]:.0%}" for m in METRICS), flush=True)
        print(
            f"{form} rerun at load {options.loads[0]:g}: " + ", ".join(f"{m} {rerun[m]:+.0%}" for m in METRICS),
            flush=True,
        )
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

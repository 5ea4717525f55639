"""Measure, fit, validate: the whole way on a tiny model, and the command line of it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from app.cli import cli
from calibration.loop.report import METRICS, median_errors, validate
from calibration.loop.subject import FORMS, subject_of
from calibration.loop.traffic import at_rate, draw_traffic, trace_of
from calibration.loop.virtual_pair import Pair
from calibration.machine import models
from calibration.machine.bench import Bench
from calibration.machine.profile_fit import fit_machine
from calibration.machine.virtual_clock import OneEngine, replay


def test_the_loop_runs_end_to_end(measured, tiny_preset, this_machine) -> None:
    hardware = fit_machine(measured).hardware
    subject = subject_of(this_machine, tiny_preset, 2, measured)
    traffic = draw_traffic(tiny_preset, 8, seed=3)
    reports = validate(subject, hardware, traffic, [2.0], seed=1)
    assert [(r.form, r.load) for r in reports] == [(form, 2.0) for form in FORMS]
    for report in reports:
        for side in (report.predicted, report.measured):
            assert tuple(side) == METRICS
            assert all(np.isfinite(value) and value > 0 for value in side.values())
        assert report.step_sum_ratio > 0
    assert tuple(median_errors(reports)) == METRICS


def test_pace_changes_arrivals_alone(tiny_preset) -> None:
    traffic = draw_traffic(tiny_preset, 50, seed=3)
    paced = at_rate(traffic, 8.0)
    assert (len(paced.arrival_s) - 1) / paced.arrival_s[-1] == pytest.approx(8.0)
    assert (paced.prompt_tokens == traffic.prompt_tokens).all()


def test_the_pair_gives_the_tokens_of_one_engine(tiny_preset, this_machine, nano_model) -> None:
    """Prefill and decode on two virtual clocks serve all requests, in an order that time allows."""
    bench = Bench(this_machine, tiny_preset, models.read_config(nano_model))
    traffic = at_rate(draw_traffic(tiny_preset, 10, seed=2), 20.0)
    trace = trace_of(traffic)
    with contextlib.ExitStack() as stack:
        one, prefill, decode = (stack.enter_context(contextlib.closing(bench.engine(2))) for _ in range(3))
        alone = replay(OneEngine(one, trace))
        pair = replay(Pair(prefill, decode, trace))
        assert all(not record.decode_contexts for record in prefill.step_records)
        assert all(not record.prefills for record in decode.step_records)
    for done in (alone, pair):
        assert (np.array(done.first_token_s) > np.array(done.arrival_s)).all()
        assert (np.array(done.finish_s) >= np.array(done.first_token_s)).all()
    computed = [sum(len(s.shape.contexts) for s in done.steps) for done in (alone, pair)]
    assert computed == [int((traffic.output_tokens - 1).sum())] * 2


def test_fit_command(measured_file: Path, tmp_path: Path) -> None:
    profile, plot = tmp_path / "p.json", tmp_path / "p.html"
    done = CliRunner().invoke(cli, ["calibrate", "fit", str(measured_file), "--output", str(profile)])
    assert done.exit_code == 0, done.output
    assert "Whole steps: median error" in done.stdout
    assert "Steps of 4 layers predicted from those of 2" in done.stdout
    data = json.loads(profile.read_text())
    data["step_overhead_s"] = 0.5
    other = tmp_path / "other.json"
    other.write_text(json.dumps(data))
    command = ["calibrate", "fit", str(measured_file), "--output", str(profile), "--compare", str(other)]
    done = CliRunner().invoke(cli, [*command, "--plot", str(plot)])
    assert done.exit_code == 0, done.output
    assert "step_overhead_s" in done.stdout
    assert "dense_gemm.matrix_fraction" not in done.stdout, "the same file gives the same fit"
    assert "fitted roofline" in plot.read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["measure", "--output", "m.jsonl", "--device", "cpu", "--preset", "huge"], "use quick or full"),
        (["measure", "--output", "no/such/m.jsonl"], "there is no directory"),
        (["fit", "none.jsonl", "--output", "p.json"], "none.jsonl does not exist"),
        (["validate", "none.json"], "none.json"),
        (["validate", "none.json", "--loads", "a,b"], "is not a list of shares"),
        (["validate", "none.json", "--form", "both ways"], "use colocated, disaggregated or both"),
    ],
)
def test_bad_input_is_one_sentence(arguments, said, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["calibrate", *arguments])
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.split())

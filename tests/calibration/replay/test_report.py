"""Measure, fit, validate: the whole way on a tiny model, and the command line of it."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from app.cli import cli
from calibration.microbench import models
from calibration.microbench.bench import Bench
from calibration.microbench.fit.profile_fit import fit_machine
from calibration.microbench.measurement import EngineStep
from calibration.microbench.virtual_clock import OneEngine, replay
from calibration.replay.interleaved import as_it_ran, play
from calibration.replay.report import METRICS, compare, median_errors, price, validate
from calibration.replay.subject import FORMS, TrafficError, capacity, subject_of
from calibration.replay.traffic import at_rate, draw_traffic, trace_of
from calibration.replay.twin import HandoverCost, ScaledTimes, simulate
from calibration.replay.virtual_pair import Pair
from runtime.sequence import TokenEvent


def test_the_loop_runs_end_to_end(measured, tiny_preset, this_machine) -> None:
    hardware = fit_machine(measured).hardware
    subject = subject_of(this_machine, tiny_preset, 2, measured)
    traffic = draw_traffic(tiny_preset, 8, seed=3)
    seen: list[tuple[str, int, int]] = []
    reports = validate(subject, hardware, traffic, [2.0], seed=1, progress=lambda *now: seen.append(now))
    assert {stage for stage, *_ in seen} == {"colocated, load 2", "disaggregated, load 2"}
    assert seen[-1] == ("disaggregated, load 2", 16, 16)
    assert [(r.form, r.load) for r in reports] == [(form, 2.0) for form in FORMS]
    for report in reports:
        for side in (report.predicted, report.measured):
            assert tuple(side) == METRICS
            assert all(np.isfinite(value) and value > 0 for value in side.values())
        assert report.step_sum_ratio > 0
    assert tuple(median_errors(reports)) == METRICS
    assert [report.core_share is None for report in reports] == [False, True]
    assert 0 < (reports[0].core_share or 0) <= 1


def test_steps_timed_between_those_of_a_replay_predict_their_sum(measured, tiny_preset, this_machine) -> None:
    """Steps of other requests, one after each of the replay, refit the profile; it has not seen the replay's."""
    subject = subject_of(this_machine, tiny_preset, 4, measured)
    fitted = fit_machine(measured).hardware
    requests = draw_traffic(tiny_preset, 40, seed=5), draw_traffic(tiny_preset, 40, seed=6)
    rate = 0.8 * capacity(requests[0], subject, subject.times(fitted), "colocated")
    traffic, others = (at_rate(one, rate) for one in requests)
    done = play(subject, "colocated", traffic, others)
    times = subject.times(as_it_ran(fitted, subject, done.probes))
    predicted = sum(price(times, step.shape) for step in done.steps)
    assert predicted == pytest.approx(sum(step.duration_s for step in done.steps), rel=0.15)


def test_a_machine_at_another_speed_is_told_from_model_error(measured, tiny_preset, this_machine) -> None:
    """ "Measured" is the simulation itself, 1.6 times as slow: the forecast misses, at that speed nothing does."""
    subject = replace(subject_of(this_machine, tiny_preset, 4, measured), handover=HandoverCost(0.0, 1e30, 0.0, 0.0))
    hardware = fit_machine(measured).hardware
    times = subject.times(hardware)
    for form in FORMS:
        traffic = draw_traffic(tiny_preset, 40, seed=5)
        traffic = at_rate(traffic, 0.9 * capacity(traffic, subject, times, form))
        handover = subject.handover if form == "disaggregated" else None
        slow = simulate(traffic, ScaledTimes(times, 1.6), subject.limits, handover)
        shapes = [EngineStep(((24, 0),), ()), EngineStep((), (30, 9))]
        steps = [(shape, 1.6 * price(times, shape)) for shape in shapes]
        report = compare(form, 0.9, traffic, subject, hardware, slow, steps)
        assert report.step_sum_ratio == pytest.approx(1 / 1.6)
        assert report.error("TPOT p50") < -0.3
        assert [report.error_at_speed(metric) for metric in METRICS] == pytest.approx([0.0] * len(METRICS), abs=1e-6)


def test_requests_that_the_engine_cannot_take_are_refused_before_the_replay(tiny_preset, this_machine) -> None:
    """The scale that is named does help."""
    subject = replace(subject_of(this_machine, tiny_preset, 2), preset=replace(tiny_preset, longest_prompt=1000))
    traffic = draw_traffic(tiny_preset, 5, seed=3)
    subject.check(traffic)
    long = replace(traffic, prompt_tokens=traffic.prompt_tokens * 97)
    with pytest.raises(
        TrafficError, match=r"request \d has \d+ prompt and \d output tokens, .* takes 1024 tog"
    ) as error:
        subject.check(long)
    scale = float(str(error.value).rpartition(" ")[2])
    subject.check(replace(long, prompt_tokens=np.rint(long.prompt_tokens * scale).astype(int)))
    with pytest.raises(TrafficError, match="no TPOT to compare"):
        subject.check(replace(traffic, output_tokens=np.ones_like(traffic.output_tokens)))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("t.csv", "TIMESTAMP,ContextTokens\n", "lacks the column GeneratedTokens"),
        ("t.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-01-01 00:00:00,many,3\n",
         "line 2: ContextTokens 'many' is no number of tokens"),
        ("t.jsonl", '{"timestamp": 0, "input_length": 5}\n', "line 1 lacks 'output_length'"),
        ("t.jsonl", '{"timestamp": 0, "input_length": 900000, "output_length": 5}\n', "the engine takes"),
        ("t.jsonl", '{"timestamp": 0, "input_length": 9, "output_length": 1}\n', "no TPOT to compare"),
        ("t.jsonl", "", "holds no request"),
        ("t.txt", "", "use .csv (Azure) or .jsonl (Mooncake)"),
        ("none.csv", None, "none.csv: No such file"),
    ],
)  # fmt: skip
def test_a_trace_that_cannot_be_replayed_is_one_sentence(name, text, said, measured, tmp_path: Path) -> None:
    profile, trace = tmp_path / "p.json", tmp_path / name
    profile.write_text(fit_machine(measured).to_json())
    if text is not None:
        trace.write_text(text)
    done = CliRunner().invoke(cli, ["calibrate", "validate", str(profile), "--trace", str(trace)])
    assert done.exit_code == 2, done.output
    assert said in " ".join(done.stderr.split())
    assert done.stderr.count("\n") == 1


def test_a_profile_that_cannot_price_the_replay_is_one_sentence(measured, tmp_path: Path) -> None:
    whole = json.loads(fit_machine(measured).to_json())
    less = {key: value for key, value in whole["classes"].items() if key != "dense_gemm"}
    elsewhere = {**whole, "accelerator": "cpu_other_1t", "part": {**whole["part"], "name": "cpu_other_1t"}}
    for data, said in (
        (whole | {"classes": less}, "classes lacks dense_gemm; fit it again"),
        (whole | {"step_overhead_s": "long"}, "step_overhead_s = 'long' should be a valid number"),
        (elsewhere, "the profile is of cpu_other_1t, and this machine is cpu_"),
    ):
        (tmp_path / "p.json").write_text(json.dumps(data))
        done = CliRunner().invoke(cli, ["calibrate", "validate", str(tmp_path / "p.json")])
        assert done.exit_code == 2, done.output
        assert said in " ".join(done.stderr.split())


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


def test_a_pair_that_fails_leaves_no_shared_memory(tiny_preset, this_machine, nano_model) -> None:
    bench = Bench(this_machine, tiny_preset, models.read_config(nano_model))
    trace = trace_of(at_rate(draw_traffic(tiny_preset, 6, seed=2), 1e6))
    mine = f"moeplan-virtual-*-{os.getpid()}-*"
    with contextlib.ExitStack() as stack:
        prefill, decode = (stack.enter_context(contextlib.closing(bench.engine(2))) for _ in range(2))
        pair = Pair(prefill, decode, trace)
        staged: list[int] = []

        def fail() -> list[TokenEvent]:
            staged.append(len(list(Path("/dev/shm").glob(mine))))
            raise RuntimeError("the device is gone")

        decode.step = fail  # type: ignore[method-assign]
        with pytest.raises(RuntimeError, match="the device is gone"):
            replay(pair)
        assert staged[0] > 0
        assert not list(Path("/dev/shm").glob(mine))
        del decode.step
        for engine in (prefill, decode):
            for name in pair.requests.names:
                engine.abort(name)


def test_fit_command(measured_file: Path, tmp_path: Path) -> None:
    profile, plot = tmp_path / "p.json", tmp_path / "p.html"
    done = CliRunner().invoke(cli, ["calibrate", "fit", str(measured_file), "--output", str(profile)])
    assert done.exit_code == 0, done.output
    assert "Whole steps: median error" in done.stdout
    assert "Steps of 4 layers predicted from those of 2" in done.stdout
    data = json.loads(profile.read_text())
    other = tmp_path / "other.json"
    other.write_text(json.dumps(data))
    command = ["calibrate", "fit", str(measured_file), "--output", str(profile), "--compare", str(other)]
    done = CliRunner().invoke(cli, command)
    assert "No figure that both have differs" in done.stdout, "the same file gives the same fit"
    slower = data["classes"]["dense_gemm"]["memory_fraction"] / 2
    changed = data | {"step_overhead_s": 0.5, "classes": {**data["classes"]}}
    changed["classes"]["dense_gemm"] = {**data["classes"]["dense_gemm"], "memory_fraction": slower}
    for missing in ("indexer", "all_to_all"):
        del changed["classes"][missing]
    other.write_text(json.dumps(changed))
    done = CliRunner().invoke(cli, [*command, "--plot", str(plot)])
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["overheads", "of", "a", "step,", "us", "5e+05"] in [line[:6] for line in lines]
    assert not any("link," in line for line in lines), "no link differs"
    (product,) = [line for line in lines if line[:3] == ["dense_gemm", "memory,", "GB/s"]]
    assert product[-1] == "+100.0%"
    assert "Classes only in this: indexer, all_to_all." in done.stdout
    assert not any("sparse_decode" in line[0] for line in lines[lines.index(product) :] if line)
    assert "fitted roofline" in plot.read_text()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not readable JSON"),
        ("[]", "it holds no classes of ops; give a profile"),
        ('{"classes": {}, "accelerator": "h100_sxm"}', "stack is missing"),
        (None, "other.json does not exist; give a profile"),
    ],
)
def test_an_unreadable_profile_to_compare_with_is_one_sentence(text, said, measured_file: Path, tmp_path: Path) -> None:
    """Said before the fit, which then writes nothing."""
    other, profile = tmp_path / "other.json", tmp_path / "p.json"
    if text is not None:
        other.write_text(text)
    command = ["calibrate", "fit", str(measured_file), "--output", str(profile), "--compare", str(other)]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.split())
    assert done.stderr.count("\n") == 1
    assert not profile.exists()


def test_a_fit_of_one_depth_says_that_depths_were_not_checked(measured_file: Path, tmp_path: Path) -> None:
    kept = [line for line in measured_file.read_text().splitlines() if '"layers": 2' not in line]
    file = tmp_path / "m.jsonl"
    file.write_text("\n".join(kept) + "\n")
    done = CliRunner().invoke(cli, ["calibrate", "fit", str(file), "--output", str(tmp_path / "p.json")])
    assert done.exit_code == 0, done.output
    assert "Fewer layers for more: not checked" in done.stdout


def test_fit_names_broken_lines(measured_file: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text(measured_file.read_text() + '{"key": "x"}\n' * 7 + '{"key": "y", "fam')
    done = CliRunner().invoke(cli, ["calibrate", "fit", str(broken), "--output", str(tmp_path / "p.json")])
    assert done.exit_code == 0, done.output
    lines = len(measured_file.read_text().splitlines())
    assert f"Line {lines + 1} left out: lacks family." in done.stdout
    assert "3 more lines left out." in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["measure", "--output", "m.jsonl", "--device", "cpu", "--preset", "huge"], "use quick or full"),
        (["measure", "--output", "no/such/m.jsonl"], "there is no directory"),
        pytest.param(
            ["measure", "--output", "m.jsonl", "--device", "cuda"],
            "this machine has no CUDA device; use --device cpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
        (["fit", "none.jsonl", "--output", "p.json"], "none.jsonl does not exist"),
        (["validate", "none.json"], "none.json does not exist; give a profile"),
        (["validate", "none.json", "--loads", "a,b"], "is not a list of shares"),
        (["validate", "none.json", "--form", "both ways"], "use colocated, disaggregated or both"),
    ],
)
def test_bad_input_is_one_sentence(arguments, said, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["calibrate", *arguments])
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.split())

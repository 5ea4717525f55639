"""What the command line says to input that it cannot use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli import cli

TOO_LONG = 400  # characters of one sentence


def refused(*args: str | Path) -> str:
    """Run a command that must fail on its input; returns its one sentence."""
    result = CliRunner().invoke(cli, [str(a) for a in args])
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("moeplan: ")
    assert len(lines[0]) < TOO_LONG
    return lines[0]


def shell(*args: str | Path, **extra: object) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own."""
    command = [sys.executable, "-m", "app.cli", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **extra)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["bogus"], "bogus"),
        (["--bogus"], "--bogus"),
        (["plan", "--bogus"], "--bogus"),
        (["plan", "one.toml", "two.toml"], "two.toml"),
        (["plan", "--rate"], "--rate"),
        (["plan", "--rate", "-1"], "'--rate': -1 is not a finite rate above 0"),
        (["plan", "--rate", "0"], "--rate"),
        (["plan", "--rate", "nan"], "--rate"),
        (["plan", "--rate", "inf"], "--rate"),
        (["plan", "--rate", "fast"], "--rate"),
        (["plan", "--isl", "0"], "--isl"),
        (["plan", "--isl", "99999999999999999999999"], "--isl"),
        (["plan", "--osl", "1.5"], "--osl"),
        (["plan", "--ttft", "-3"], "--ttft"),
        (["plan", "--tpot", "0"], "--tpot"),
        (["plan", "--seed", "-1"], "--seed"),
        (["plan", "--model", "deepseek-v9"], "deepseek-v9"),
        (["plan", "--gpu", "h2000"], "h200_sxm"),
        (["plan", "--gpu", ""], "accelerator"),
        (["plan", "missing.toml"], "missing.toml does not exist"),
        (["plan", "--trace", "missing.csv"], "missing.csv does not exist"),
        (["plan", "--trace", "missing.csv", "--rate", "3"], "leave out --rate"),
        (["plan", "--json", "no/such/folder/out.json"], "no directory"),
        (["simulate"], "SCENARIO.toml"),
        (["simulate", "missing.toml"], "missing.toml does not exist"),
        (["catalogue", "cats"], "cats"),
        (["catalogue", "gpus", "h2000"], "h200_sxm"),
        (["catalogue", "gpus", "missing.toml"], "missing.toml"),
        (["catalogue", "models", "deepseek-v9"], "deepseek-v9"),
        (["catalogue", "models", "missing.json"], "missing.json"),
        (["app", "--port", "0"], "--port"),
        (["app", "--host", "host.invalid"], "host.invalid"),
    ],
)
def test_bad_arguments_are_named_in_one_sentence(
    args: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused(*args)


@pytest.mark.parametrize("command", ["plan", "simulate"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model = ", "not valid TOML"),
        ("modell = 1\n", "modell"),
        ("slo = 3\n", "slo"),
    ],
)
def test_bad_scenario_files(command: str, text: str, said: str, scenario_file: Callable[..., Path]) -> None:
    assert said in refused(command, scenario_file(extra=text))


@pytest.mark.parametrize("command", ["plan", "simulate"])
def test_directories_and_binaries_are_no_scenarios(command: str, tmp_path: Path) -> None:
    assert str(tmp_path) in refused(command, tmp_path)
    blob = tmp_path / "blob.toml"
    blob.write_bytes(bytes(range(256)))
    assert "blob.toml" in refused(command, blob)


@pytest.mark.parametrize("command", ["plan", "simulate"])
@pytest.mark.parametrize(
    ("changes", "said"),
    [({"model": "deepseek-v9"}, "deepseek-v9"), ({"gpu": "h2000"}, "h200_sxm"), ({"rate": -1}, "rate=-1")],
)
def test_bad_values_in_scenarios(
    command: str, changes: dict[str, object], said: str, scenario_file: Callable[..., Path]
) -> None:
    assert said in refused(command, scenario_file(**changes))


def test_a_cut_that_does_not_divide_says_what_would(scenario_file: Callable[..., Path]) -> None:
    said = refused("simulate", scenario_file(tp=3))
    assert "tp=3 does not divide 32 attention heads" in said
    assert "16 or 32" in said or "16, 32" in said


def test_a_model_that_cannot_fit_says_what_would(scenario_file: Callable[..., Path]) -> None:
    said = refused("simulate", scenario_file(model="deepseek-v4-pro", tp=1))
    assert "GB" in said


def test_simulate_needs_a_deployment(tmp_path: Path) -> None:
    path = tmp_path / "only_traffic.toml"
    path.write_text('model = "qwen3-30b-a3b"\n[workload]\nkind = "open_loop"\nrate = 1\nprompt = 10\noutput = 10\n')
    assert "deployment" in refused("simulate", path)


@pytest.mark.parametrize("command", ["plan", "simulate"])
@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "bad.csv",
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:47,many,5\n",
            "3",
        ),
        ("bad.jsonl", '{"timestamp": 0, "input_length": 10, "output_length": 5}\n{"timestamp": 5}\n', "2"),
        ("empty.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n", "empty.csv"),
        ("empty.jsonl", "", "empty.jsonl"),
    ],
)
def test_bad_traces_are_named_with_their_line(
    command: str, name: str, text: str, said: str, scenario_file: Callable[..., Path], tmp_path: Path
) -> None:
    trace = tmp_path / name
    trace.write_text(text)
    sentence = refused(command, scenario_file(), "--trace", trace)
    assert name in sentence
    assert said in sentence


def test_a_directory_is_no_trace(scenario_file: Callable[..., Path], tmp_path: Path) -> None:
    assert "is a directory" in refused("plan", scenario_file(), "--trace", tmp_path)


@pytest.mark.parametrize(("command", "flag"), [("plan", "--json"), ("simulate", "--json"), ("simulate", "--requests")])
def test_outputs_are_refused_before_the_work(
    command: str, flag: str, scenario_file: Callable[..., Path], tmp_path: Path
) -> None:
    assert "is a directory" in refused(command, scenario_file(), flag, tmp_path)
    assert "no directory" in refused(command, scenario_file(), flag, tmp_path / "no" / "out")


def test_a_full_disk_is_one_sentence(scenario_file: Callable[..., Path]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    assert "No space left" in refused("simulate", scenario_file(), "--json", "/dev/full")


def test_files_without_permission(scenario_file: Callable[..., Path], tmp_path: Path) -> None:
    locked = tmp_path / "locked.json"
    locked.touch(mode=0o400)
    if os.access(locked, os.W_OK):
        pytest.skip("this user may write everywhere")
    assert "permission denied" in refused("simulate", scenario_file(), "--json", locked)


def test_processes_end_with_the_same_codes(tmp_path: Path) -> None:
    """CliRunner skips the entry point: the real thing, once for each way to end."""
    fine = shell("--version", cwd=tmp_path)
    assert (fine.returncode, fine.stderr) == (0, "")
    assert fine.stdout.startswith("moeplan ")
    bad = shell("plan", "--gpu", "h2000", cwd=tmp_path)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.count("\n") == 1
    helped = shell("plan", "--help", cwd=tmp_path)
    assert (helped.returncode, helped.stderr) == (0, "")


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    done = subprocess.run(
        f"set -o pipefail; {sys.executable} -m app.cli catalogue gpus --json | head -n 1",
        shell=True,
        executable="/bin/bash",
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "[\n"
    assert done.stderr == ""


def interrupted(folder: Path, *args: str | Path, when: Callable[[subprocess.Popen[str]], None]) -> str:
    """stderr of a command that gets Ctrl-C as a terminal sends it: to it and to its worker processes."""
    process = subprocess.Popen(
        [sys.executable, "-m", "app.cli", *map(str, args)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # nohup and CI runners may have it ignored
    )
    when(process)
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, "")
    return stderr


def test_interrupting_ends_quietly(tmp_path: Path) -> None:
    """The command waits for a scenario from a pipe that stays open and silent."""
    pipe = tmp_path / "never_written.toml"
    os.mkfifo(pipe)
    writers: list[int] = []
    try:
        stderr = interrupted(tmp_path, "simulate", pipe, when=lambda _: writers.append(os.open(pipe, os.O_WRONLY)))
    finally:
        for writer in writers:
            os.close(writer)
    assert stderr == ""


def children(process: int) -> list[int]:
    """Its child processes; none where it has ended."""
    try:
        return [
            int(child)
            for task in Path(f"/proc/{process}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except FileNotFoundError:
        return []


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds worker processes in /proc")
def test_interrupting_ends_the_worker_processes_quietly(tmp_path: Path) -> None:
    seen: list[int] = []

    def workers_run(process: subprocess.Popen[str]) -> None:
        while process.poll() is None and len(seen) < 2:
            time.sleep(0.02)
            seen[:] = [worker for child in children(process.pid) for worker in children(child)]
        assert process.returncode is None, process.communicate()

    assert interrupted(tmp_path, "plan", "--rate", "200", when=workers_run) == ""
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{worker}").exists() for worker in seen):
        assert time.monotonic() < deadline, "workers outlive the command"
        time.sleep(0.02)

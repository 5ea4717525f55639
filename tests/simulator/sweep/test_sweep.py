"""Sweeps: the same answers wherever they run, nothing lost when workers or the whole sweep are killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.sweeps import die_once, doubled, fails, process_id, row_of

from simulator.sweep import processes
from simulator.sweep.executor import SweepExecutor
from simulator.sweep.store import ResultStore, sweep


@pytest.mark.parametrize("kind", ["serial", "processes"])
def test_results_come_in_the_order_of_tasks(kind: str) -> None:
    assert SweepExecutor(kind).all(doubled, list(range(20))) == [2 * n for n in range(20)]  # type: ignore[arg-type]


def test_processes_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.os, "cpu_count", lambda: 2)
    assert os.getpid() not in SweepExecutor("processes").all(process_id, [0, 1])


def test_a_worker_that_is_killed_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.os, "cpu_count", lambda: 2)
    tasks = [(n, str(tmp_path)) for n in range(8)]
    assert SweepExecutor("processes").all(die_once, tasks) == list(range(8))
    assert (tmp_path / "died").exists()


def test_an_error_of_a_task_is_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.os, "cpu_count", lambda: 2)
    with pytest.raises(ValueError, match="3 is odd"):
        SweepExecutor("processes").all(fails, [2, 3])


def test_a_sweep_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    tasks = {f"run {n}": n for n in range(10)}

    def stop(stage: str, done: int, of: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(row_of, tasks, ResultStore(tmp_path), SweepExecutor("serial"), stop)
    assert len(ResultStore(tmp_path).keys()) == 4
    assert sweep(row_of, tasks, ResultStore(tmp_path), SweepExecutor("serial")) == 6
    assert sweep(row_of, tasks, ResultStore(tmp_path), SweepExecutor("serial")) == 0
    frame = ResultStore(tmp_path).to_frame()
    assert sorted(frame["square"]) == [n * n for n in range(10)]
    assert not list(tmp_path.glob("*.unfinished"))


def test_without_a_cluster_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ValueError, match="needs the --address HOST:PORT"):
        SweepExecutor("ray").all(doubled, [1])


def test_without_ray_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"install it with `pip install 'moeplan\[cluster\]'`"):
        SweepExecutor("ray", "127.0.0.1:6379").all(doubled, [1])


@pytest.mark.parametrize(
    ("address", "problem"), [("here", "is not HOST:PORT"), ("127.0.0.1:1", "no Ray cluster answers there")]
)
def test_a_wrong_address_is_named(address: str, problem: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(ValueError, match=problem):
        SweepExecutor("ray", address).all(doubled, [1])


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def two_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A Ray cluster of two nodes of one core on loopback; ends those processes alone that it started."""
    pytest.importorskip("ray")
    here = Path(__file__).parents[2]
    path = os.pathsep.join([str(here.parent), str(here), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1")
    environment = {**os.environ, "PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0"}
    port = free_port()
    common = ["--block", "--num-cpus", "1", "--object-store-memory", "100000000", "--disable-usage-stats"]
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--node-ip-address", "127.0.0.1", *common]
    heads = [*ray, "--head", "--port", str(port), "--include-dashboard", "false", "--temp-dir", f"/tmp/ray{port}"]
    nodes = []
    try:
        for command in (heads, [*ray, "--address", f"127.0.0.1:{port}"]):
            nodes.append(subprocess.Popen(command, env=environment, start_new_session=True,
                                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))  # fmt: skip
            for _ in range(600):
                with socket.socket() as seen:
                    seen.settimeout(0.1)
                    if seen.connect_ex(("127.0.0.1", port)) == 0:
                        break
        yield f"127.0.0.1:{port}"
    finally:
        for node in nodes[::-1]:
            os.killpg(node.pid, signal.SIGTERM)
        for node in nodes:
            try:
                node.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(node.pid, signal.SIGKILL)
                node.wait()


def test_two_ray_nodes_say_what_one_process_says(two_nodes: str, tmp_path: Path) -> None:
    assert SweepExecutor("ray", two_nodes).all(doubled, list(range(12))) == [2 * n for n in range(12)]
    tasks = [(n, str(tmp_path)) for n in range(6)]
    assert SweepExecutor("ray", two_nodes).all(die_once, tasks) == list(range(6))
    assert (tmp_path / "died").exists()

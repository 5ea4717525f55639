"""The trace file, parsed: steps, KV on its way, faults, restarts, changes of size, stages of requests."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.clusters import FormulaTimes, colocated, disaggregated, make_instance, play

from simulator.des.cluster.recorder import Recorder
from simulator.des.cluster.spec import ClusterSpec
from simulator.des.results.result import SimulationResult
from simulator.des.results.timeline import write_timeline
from simulator.scenario import Autoscale, Faults, PlannedFault, ScheduledCount

MS = 1e-3


class Trace:
    """A written file, by names instead of numbers. Times in seconds."""

    def __init__(self, path: Path) -> None:
        self.events = json.loads(path.read_text())["traceEvents"]
        named = [e for e in self.events if e["ph"] == "M"]
        self.processes = {e["pid"]: e["args"]["name"] for e in named if e["name"] == "process_name"}
        threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in named if e["name"] == "thread_name"}
        self.slices: dict[tuple[str, str], list[tuple[str, float, float]]] = {}
        for e in self.events:
            if e["ph"] == "X":
                assert e["dur"] >= 0
                key = self.processes[e["pid"]], threads[e["pid"], e["tid"]]
                self.slices.setdefault(key, []).append((e["name"], e["ts"] / 1e6, (e["ts"] + e["dur"]) / 1e6))


@pytest.fixture
def written(tmp_path: Path) -> Any:
    def write(spec: ClusterSpec, *load: Any) -> tuple[Trace, Recorder, SimulationResult]:
        recorder = Recorder()
        result = play(spec, *load, recorder=recorder)
        write_timeline(tmp_path / "t.json", {"": (recorder, result.run)})
        return Trace(tmp_path / "t.json"), recorder, result

    return write


def test_steps_stages_and_hand_overs(written: Any) -> None:
    rng = np.random.default_rng(3)
    spec = disaggregated(
        make_instance(FormulaTimes(), max_tokens_per_step=256),
        make_instance(FormulaTimes(per_sequence_s=MS), capacity=4000.0),
        (2, 2),
    )
    trace, recorder, result = written(
        spec, rng.integers(1, 900, 200), rng.integers(1, 40, 200), np.cumsum(rng.exponential(0.05, 200))
    )
    assert sorted(trace.processes.values()) == ["decode", "prefill", "requests"]
    assert set(trace.slices) == {(pool, f"instance {i}") for pool in ("prefill", "decode") for i in (0, 1)}
    assert sum(map(len, trace.slices.values())) == len(recorder.steps)
    for steps in trace.slices.values():  # steps of an instance do not overlap
        spans = sorted((begin, end) for _, begin, end in steps)
        assert all(end <= begin + 1e-9 for (_, end), (begin, _) in pairwise(spans))
    stages = [e for e in trace.events if e.get("cat") == "request" and e["id"] == 7]
    assert [e["ph"] for e in stages] == ["b", "e"] * (len(stages) // 2)
    moments = [e["ts"] for e in stages]
    assert moments == sorted(moments)
    assert moments[-1] == pytest.approx(result.finish_s[7] * 1e6)
    # One arrow for each sequence with more than one token, from a prefill to a decode step, forward in time.
    ends = {ph: {e["id"]: e for e in trace.events if e["ph"] == ph} for ph in ("s", "f")}
    assert set(ends["s"]) == set(ends["f"]) == set(np.flatnonzero(result.output_tokens > 1).tolist())
    log = result.run.log
    for request, begin in ends["s"].items():
        end = ends["f"][request]
        assert (trace.processes[begin["pid"]], begin["tid"]) == ("prefill", log.prefill_instance[request])
        assert (trace.processes[end["pid"]], end["tid"]) == ("decode", log.decode_instance[request])
        assert begin["ts"] < log.first_token_s[request] * 1e6 <= end["ts"]


def test_faults_of_one_instance_that_overlap_lie_on_lanes_of_their_own(written: Any) -> None:
    """Of five brown-outs the second outlasts the first, the third is inside the second, the others follow."""
    spans = [(1.0, 3.0), (2.0, 5.0), (2.5, 1.0), (6.0, 7.0), (7.0, 1.0)]
    events = tuple(
        PlannedFault(kind="slow", pool="colocated", index=0, at_s=at_s, duration_s=duration_s, speed=0.5)
        for at_s, duration_s in spans
    )
    spec = replace(colocated(make_instance(FormulaTimes(per_prompt_token_s=MS))), faults=Faults(events=events))
    trace, _, result = written(spec, [1000] * 10, [1] * 10, np.arange(10) * 3.0)
    assert result.run.end.time_s > 14.0
    lanes = {name: slices for (process, name), slices in trace.slices.items() if process == "faults"}
    assert lanes == {
        "colocated slow 0": [("slow fault", 1.0, 4.0), ("slow fault", 6.0, 13.0)],
        "colocated slow 0 (2)": [("slow fault", 2.0, 7.0), ("slow fault", 7.0, 8.0)],
        "colocated slow 0 (3)": [("slow fault", 2.5, 3.5)],
    }


def test_faults_restarts_brown_outs_and_changes_of_size(written: Any) -> None:
    """A request of 1 s every 2 s. Instance 0 dies inside one at 10.5 s for 4 s and starts for 3 s; it is slow at 30 s.

    Instance 1 is added at 20 s, serves from 23 s and leaves at 27.5 s; the second fault of 0 outlives the run.
    """
    spec = colocated(make_instance(FormulaTimes(per_prompt_token_s=MS)), 2, "round_robin")
    scale = Autoscale(schedule=(ScheduledCount(at_s=20, instances=2), ScheduledCount(at_s=27.5, instances=1)))
    events = (
        PlannedFault(kind="instance", pool="colocated", index=0, at_s=10.5, duration_s=4),
        PlannedFault(kind="slow", pool="colocated", index=0, at_s=30, duration_s=1000, speed=0.5),
    )
    spec = replace(
        spec,
        entry=(replace(spec.entry[0], begins_with=1, startup_s=3.0, autoscale=scale),),
        faults=Faults(events=events, retry_delay_s=0.0),
    )
    trace, recorder, result = written(spec, [1000] * 20, [1] * 20, np.arange(20) * 2.0)
    end_s = result.run.end.time_s
    assert end_s == pytest.approx(40.0)  # the last one begins at 38 s and takes twice as long
    assert trace.slices["colocated: states", "instance 0"] == [
        ("up", 0.0, 10.5),
        ("down", 10.5, pytest.approx(17.5)),
        ("up", pytest.approx(17.5), pytest.approx(end_s)),
    ]
    assert trace.slices["colocated: states", "instance 1"] == [
        ("starting", 20.0, 23.0),
        ("up", 23.0, 27.5),  # it is empty then
    ]
    assert trace.slices["faults", "colocated instance 0"] == [("instance fault", 10.5, 14.5)]
    assert trace.slices["faults", "colocated slow 0"] == [("slow fault", 30.0, pytest.approx(end_s))]
    speeds = {e["name"]: e["args"]["speed"] for e in trace.events if "speed" in e.get("args", {})}
    assert speeds == {"instance fault": 0.0, "slow fault": 0.5}
    cut = [entry for entry in trace.slices["colocated", "instance 0"] if entry[0] == "cut by a fault"]
    assert cut == [("cut by a fault", 10.0, 10.5)]
    whole = sum(end - begin for key in trace.slices if key[0] == "colocated" for _, begin, end in trace.slices[key])
    assert whole == pytest.approx(sum(usage.busy_s for usage in result.run.end.usage["colocated"]))
    assert sum(step.prompt_tokens for step in recorder.steps) == 20 * 1000

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from simulator.des.metrics import write_table
from simulator.des.recorder import Recorder
from simulator.des.run import Cluster
from simulator.des.workload import Requests


@pytest.fixture
def recorded(times: Any, instance: Any, disaggregated: Any) -> Any:
    """A run with and without a recorder."""
    rng = np.random.default_rng(3)
    requests = Requests(rng.integers(1, 900, 200), rng.integers(1, 40, 200), np.cumsum(rng.exponential(0.05, 200)))
    spec = disaggregated(
        instance(times(), max_tokens_per_step=256), instance(times(per_sequence_s=1e-3), capacity=4000.0), (2, 2)
    )
    recorder = Recorder()
    bare = Cluster(spec, requests, np.random.default_rng(0)).run()
    return recorder, Cluster(spec, requests, np.random.default_rng(0), recorder=recorder).run(), bare


def test_recording_changes_nothing_and_the_steps_add_up(recorded: Any) -> None:
    recorder, run, bare = recorded
    assert run.journal.finish_s == bare.journal.finish_s
    assert run.end == bare.end
    steps = recorder.steps
    assert sum(s.prompt_tokens for s in steps) == sum(run.journal.prompt_tokens)  # nothing was preempted
    assert run.journal.preemptions == [0] * 200
    assert sum(s.sequences for s in steps) == sum(o - 1 for o in run.journal.output_tokens)
    for pool in ("prefill", "decode"):
        for i, usage in enumerate(run.end.usage[pool]):
            own = [s.end_s - s.start_s for s in steps if (s.pool, s.instance) == (pool, i)]
            assert sum(own) == pytest.approx(usage.busy_s)
            assert len(own) == usage.steps


def test_series_integrates_to_busy_time_and_ends_empty(recorded: Any, tmp_path: Path) -> None:
    recorder, run, _ = recorded
    table = recorder.series(0.25, {"prefill": np.inf, "decode": 4000.0})
    assert ((table["busy_fraction"] >= -1e-9) & (table["busy_fraction"] <= 1 + 1e-9)).all()
    assert ((table["kv_occupancy"] >= 0) & (table["kv_occupancy"] <= 1)).all()
    for (pool, i), part in table.groupby(["pool", "instance"]):
        assert part["busy_fraction"].sum() * 0.25 == pytest.approx(run.end.usage[pool][i].busy_s)
        assert part["running"].iloc[-1] == part["waiting"].iloc[-1] == 0
        assert np.diff(part["time_s"]) == pytest.approx(0.25)
    write_table(table, tmp_path / "series.csv")
    assert len(pd.read_csv(tmp_path / "series.csv")) == len(table)
    with pytest.raises(ValueError, match="grid_s=0 is not a finite number above 0"):
        recorder.series(0.0)


def test_timeline_is_a_trace_of_steps_and_stages(recorded: Any, tmp_path: Path) -> None:
    recorder, run, _ = recorded
    recorder.write_timeline(tmp_path / "t.json", run.journal)
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    named = {e["pid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
    assert sorted(named.values()) == ["decode", "prefill", "requests"]
    slices = [e for e in events if e["ph"] == "X"]
    assert len(slices) == len(recorder.steps)
    for key in {(e["pid"], e["tid"]) for e in slices}:  # steps of an instance do not overlap
        own = sorted((e["ts"], e["ts"] + e["dur"]) for e in slices if (e["pid"], e["tid"]) == key)
        assert all(end <= start + 1e-3 for (_, end), (start, _) in itertools.pairwise(own))
    stages = [e for e in events if e.get("cat") == "request" and e["id"] == 7]
    assert [e["ph"] for e in stages] == ["b", "e"] * (len(stages) // 2)
    moments = [e["ts"] for e in stages]
    assert moments == sorted(moments)
    assert moments[-1] == pytest.approx(run.journal.finish_s[7] * 1e6)

from typing import Any

import numpy as np
import pytest

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
            own = [s.end_s - s.start_s for s in steps if (s.group, s.instance) == (pool, i)]
            assert sum(own) == pytest.approx(usage.busy_s)
            assert len(own) == usage.steps

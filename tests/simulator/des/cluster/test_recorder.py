from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from support.clusters import FormulaTimes, colocated, disaggregated, make_instance, play

from simulator.des.cluster.cluster import Cluster
from simulator.des.cluster.recorder import Recorder
from simulator.des.results.series import series
from simulator.des.workload.requests import Requests
from simulator.scenario import Transfer


@pytest.fixture
def recorded() -> Any:
    """A run with and without a recorder."""
    rng = np.random.default_rng(3)
    requests = Requests(rng.integers(1, 900, 200), rng.integers(1, 40, 200), np.cumsum(rng.exponential(0.05, 200)))
    spec = disaggregated(
        make_instance(FormulaTimes(), max_tokens_per_step=256),
        make_instance(FormulaTimes(per_sequence_s=1e-3), capacity=4000.0),
        (2, 2),
    )
    recorder = Recorder()
    bare = Cluster(spec, requests, np.random.default_rng(0)).run()
    return recorder, Cluster(spec, requests, np.random.default_rng(0), recorder=recorder).run(), bare


def test_recording_changes_nothing_and_the_steps_add_up(recorded: Any) -> None:
    recorder, run, bare = recorded
    assert run.log.finish_s == bare.log.finish_s
    assert run.end.time_s == bare.end.time_s
    for pool, of_pool in bare.end.usage.items():  # sums of time may round otherwise
        for usage, other in zip(run.end.usage[pool], of_pool, strict=True):
            assert asdict(usage) == pytest.approx(asdict(other), rel=1e-12)
    steps = recorder.steps
    assert sum(s.prompt_tokens for s in steps) == sum(run.log.prompt_tokens)  # nothing was preempted
    assert run.log.preemptions == [0] * 200
    assert sum(s.sequences for s in steps) == sum(o - 1 for o in run.log.output_tokens)
    for pool in ("prefill", "decode"):
        for i, usage in enumerate(run.end.usage[pool]):
            own = [s.end_s - s.start_s for s in steps if (s.group, s.instance) == (pool, i)]
            assert sum(own) == pytest.approx(usage.busy_s)
            assert len(own) == usage.steps


def test_a_series_shows_where_a_request_stands_and_what_is_reserved_for_it() -> None:
    """Sent at 0.5 s, reaches the queue at 1.5 s, prefill till 2.5 s, transfer of 2 s, two steps of 1 s till 6.5 s."""
    spec = disaggregated(
        make_instance(FormulaTimes(per_prompt_token_s=0.01, first_token_extra_s=1.0), nic_bandwidth=50.0),
        make_instance(FormulaTimes(decode_base_s=1.0), nic_bandwidth=100.0),
        transfer=Transfer(efficiency=1.0, handshake_s=0.0, half_rate_bytes=0.0),
        transfer_bytes=float,
    )
    recorder = Recorder(grid_s=1.0)
    result = play(spec, [100], [3], [0.5], recorder=recorder)
    assert result.finish_s[0] == pytest.approx(6.5)
    table = series(recorder, result)
    assert table.groupby("time_s")["unassigned"].first().tolist() == [0, 1, 0, 0, 0, 0, 0, 0]
    prefill, decode = (table[table["pool"] == pool] for pool in ("prefill", "decode"))
    assert prefill["prefilling"].tolist() == [0, 0, 1, 0, 0, 0, 0, 0]
    assert prefill["transferring"].tolist() == [0, 0, 0, 1, 1, 0, 0, 0]
    assert decode["running"].tolist() == [0, 0, 0, 0, 0, 1, 1, 0]
    assert prefill["kv_bytes"].tolist() == [0, 0, 101, 101, 101, 0, 0, 0]
    assert decode["kv_bytes"].tolist() == [0, 0, 0, 101, 101, 101, 102, 0]
    assert (table[["waiting", "cached_bytes"]] == 0).all(axis=None)


@pytest.mark.parametrize("grid_s", [0.01, 3.0])
def test_sampling_changes_nothing(grid_s: float) -> None:
    """Also where arrivals and steps fall on the points of the grid."""
    spec = colocated(make_instance(FormulaTimes(per_prompt_token_s=1e-3)), 2)
    load = ([30, 10, 20] * 20, [1, 5, 9] * 20, np.arange(60) * 0.01)
    sampled = play(spec, *load, recorder=Recorder(grid_s))
    assert sampled.requests.equals(play(spec, *load).requests)

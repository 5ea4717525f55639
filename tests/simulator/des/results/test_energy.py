"""Power over time and energy: levels worked by hand, and conservation through faults and changes of size."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support.clusters import FormulaTimes, colocated, disaggregated, make_instance, play

from hw_profiles.catalog import load
from simulator.des.cluster.power import PowerDraw
from simulator.des.cluster.recorder import Recorder
from simulator.des.cluster.spec import ClusterSpec
from simulator.des.results.request_table import write_table
from simulator.des.results.series import series
from simulator.des.simulate import simulate
from simulator.scenario import Autoscale, Faults, Outages, PlannedFault, PowerKeys, ScheduledCount, parse_scenario

MS = 1e-3
DRAW = PowerDraw(idle_w=100.0, prefill_w=700.0, decode_w=400.0)


def powered(spec: ClusterSpec, draw: PowerDraw | None = DRAW, **fields: Any) -> ClusterSpec:
    """The cluster with pools of known power; fields: of the entry pool."""
    decode = tuple(replace(group, power=draw) for group in spec.decode)
    return replace(spec, entry=(replace(spec.entry[0], power=draw, **fields),), decode=decode)


def test_prefill_decode_and_idle_time_are_charged_with_their_levels() -> None:
    """100 requests, one a second: 0.1 s of prefill and 0.2 s of decode each, on two instances of 2 accelerators.

    The last one arrives at 99 s and ends at 99.3 s: energy 2 x (2 x 99.3 x 100 + 100 x (0.1 x 600 + 0.2 x 300)) J.
    """
    spec = powered(colocated(make_instance(FormulaTimes(per_prompt_token_s=MS, decode_base_s=10 * MS), gpus=2), 2))
    recorder = Recorder(0.1)
    result = play(spec, [100] * 100, [21] * 100, np.arange(100.0), recorder=recorder)
    energy = result.summary().to_json()["energy"]
    joules = 2 * (2 * 99.3 * 100 + 100 * (0.1 * 600 + 0.2 * 300))
    assert energy["kwh"] == energy["pools"]["colocated"]["kwh"] == pytest.approx(joules / 3.6e6)
    # Measured from the first to the last arrival: 99 requests come and go.
    watts = 2 * (2 * 100 + 0.1 * 600 + 0.2 * 300)
    assert energy["power_kw"] == pytest.approx(watts / 1e3)
    assert energy["joule_per_request"] == pytest.approx(watts)
    assert energy["joule_per_token"] == pytest.approx(watts / 121)
    assert energy["joule_per_output_token"] == pytest.approx(watts / 21)
    table = series(recorder, result)
    busy = table[(table["instance"] == 0) & (table["time_s"] < 98.95)]["power_w"].to_numpy()[1:]
    assert busy[:10] == pytest.approx([1400, 800, 800, *[200] * 7])


def test_a_cluster_that_does_nothing_draws_idle_power_all_the_time() -> None:
    """Every prompt is too long for the KV room: three instances of 4 accelerators idle for 50 s."""
    spec = powered(colocated(make_instance(capacity=5.0, gpus=4), 3))
    recorder = Recorder(10.0)
    result = play(spec, [10] * 6, [1] * 6, np.arange(6) * 10.0, recorder=recorder)
    energy = result.summary().to_json()["energy"]
    assert energy["kwh"] == pytest.approx(3 * 4 * 100.0 * 50 / 3.6e6)
    assert energy["power_kw"] == pytest.approx(1.2)
    assert energy["joule_per_token"] is energy["joule_per_request"] is None
    assert series(recorder, result)["power_w"].to_numpy()[1:6] == pytest.approx([400.0] * 5)


@pytest.mark.parametrize("grid_s", [0.25, 1.7])
def test_the_power_series_adds_up_to_the_energy_whatever_breaks(grid_s: float, tmp_path: Path) -> None:
    """A prefill pool that grows and shrinks, faults in both pools, mixed steps where preempted ones are recomputed."""
    rng = np.random.default_rng(5)
    first = make_instance(FormulaTimes(per_prompt_token_s=MS), max_tokens_per_step=256, gpus=2)
    second = make_instance(FormulaTimes(per_sequence_s=10 * MS), capacity=1200.0, ranks=2, gpus=8)
    scale = Autoscale(schedule=(ScheduledCount(at_s=10, instances=3), ScheduledCount(at_s=40, instances=1)))
    spec = powered(disaggregated(first, second, (3, 3)), begins_with=1, startup_s=2.0, autoscale=scale)
    slow = PlannedFault(kind="slow", pool="decode", index=1, at_s=5, duration_s=20, speed=0.25)
    spec = replace(spec, faults=Faults(instance=Outages(mtbf_s=20, mttr_s=2), retries=99, events=(slow,)))
    recorder = Recorder(grid_s)
    result = play(
        spec,
        rng.integers(1, 900, 300),
        rng.integers(1, 90, 300),
        np.cumsum(rng.exponential(0.2, 300)),
        recorder=recorder,
    )
    assert len(result.run.incidents) > 5
    assert result.summary().to_json()["preemptions"] > 0
    table = series(recorder, result)
    for pool, part in table.groupby("pool"):
        joules = result.summary().to_json()["energy"]["pools"][pool]["kwh"] * 3.6e6
        assert part["power_w"].sum() * grid_s == pytest.approx(joules)
    gpus = table["pool"].map({"prefill": 2, "decode": 8})
    assert (table["power_w"] <= gpus * 700 * (1 + 1e-9)).all()
    assert ((table["busy_fraction"] >= -1e-9) & (table["busy_fraction"] <= 1 + 1e-9)).all()
    assert ((table["kv_occupancy"] >= 0) & (table["kv_occupancy"] <= 1)).all()
    for (pool, i), part in table.groupby(["pool", "instance"]):
        assert part["busy_fraction"].sum() * grid_s == pytest.approx(result.run.end.usage[pool][i].busy_s)
        assert part["running"].iloc[-1] == part["waiting"].iloc[-1] == 0
        assert np.diff(part["time_s"]) == pytest.approx(grid_s)
    assert table[(table["time_s"] < 10) & (table["pool"] == "prefill") & (table["instance"] > 0)]["power_w"].max() == 0
    write_table(table, tmp_path / "series.csv")
    assert len(pd.read_csv(tmp_path / "series.csv")) == len(table)


def test_a_grid_must_move_and_be_there() -> None:
    with pytest.raises(ValueError, match="grid_s=0 is not a finite number above 0"):
        Recorder(0.0)
    recorder = Recorder()
    result = play(colocated(make_instance()), [1], [1], [0.0], recorder=recorder)
    with pytest.raises(ValueError, match="give Recorder its grid_s"):
        series(recorder, result)


def test_power_comes_from_the_catalogue_and_its_shares_from_the_scenario() -> None:
    tdp_w = load("h200_sxm").tdp_w
    assert tdp_w == 700.0
    keys = {
        "model": "qwen3-235b-a22b",
        "workload": {"kind": "open_loop", "rate": 1.0, "requests": 20, "prompt": 2000, "output": 20},
        "deployment": {
            "colocated": {"gpu": "h200_sxm", "tp": 8},
            "power": {"idle": 0.5, "prefill": 0.5, "decode": 0.5},
        },
    }
    summary = simulate(parse_scenario(keys)).summary().to_json()
    assert summary["energy"]["kwh"] == pytest.approx(8 * 350.0 * summary["duration_s"] / 3.6e6)
    draw = PowerDraw.of(load("h200_sxm"), PowerKeys())
    assert draw is not None
    assert 0 < draw.idle_w < draw.decode_w < draw.prefill_w <= tdp_w


def test_without_a_tdp_no_energy_is_told() -> None:
    result = play(powered(colocated(make_instance()), None), [1], [1], [0.0])
    assert result.summary().to_json()["energy"] is None

"""What the speed benchmark reports; what it says of speed is not tested."""

import json

import pytest

from benchmarks.des import measure, table


def test_a_run_reports_its_speed_and_the_same_percentiles_each_time() -> None:
    run = measure(300)
    assert run["requests_per_s"] == pytest.approx(300 / run["cpu_s"])
    assert run["peak_mib"] > 0
    assert run["p99"] == measure(300)["p99"]
    assert measure(300, seed=1)["p99"] != run["p99"]


def test_one_run_stands_for_itself_and_several_side_by_side() -> None:
    run = measure(40)
    machine = {"cores": 2}
    assert table([run], machine) == {"machine": machine} | run
    assert json.loads(json.dumps(table([run, run], machine))) == {"machine": machine, "runs": [run, run]}

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.planner.traffic import Traffic, traffic_of
from simulator.scenario import ClosedLoop, Lengths, OpenLoop, ScenarioError, Trace


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 150))
def test_mean_context_is_the_time_average_over_the_decode_steps(prompt: int, output: int, cap: int) -> None:
    """Against a fine numerical average of min(context, cap) while the context grows from prompt to prompt + output."""
    traffic = Traffic(1.0, 1.0, (prompt,), (output,), "")
    contexts = prompt + output * (np.arange(4000) + 0.5) / 4000
    assert traffic.sample.capped(cap) == pytest.approx(float(np.minimum(contexts, cap).mean()), rel=1e-3)
    assert traffic.sample.context[0] == pytest.approx(prompt + output / 2)


def test_long_outputs_weigh_more_because_they_stay_longer() -> None:
    traffic = Traffic(1.0, 1.0, (100, 1000), (10, 90), "")
    assert traffic.sample.context[0] == pytest.approx((105 * 10 + 1045 * 90) / 100)


def test_a_stratified_sample_keeps_the_mean_of_the_distribution() -> None:
    uniform = Lengths(kind="uniform", low=100, high=300)
    traffic = traffic_of(OpenLoop(rate=2.0, prompt=uniform, output=Lengths(kind="exponential", mean=400)), seed=1)
    assert traffic.mean_prompt == pytest.approx(200, rel=0.02)
    assert traffic.mean_output == pytest.approx(400, rel=0.06)


def test_a_closed_loop_has_no_rate_to_plan_for() -> None:
    loop = ClosedLoop(concurrency=4, requests=10, prompt=Lengths(value=10), output=Lengths(value=10))
    with pytest.raises(ScenarioError, match=r"workload.kind='closed_loop' has no rate"):
        traffic_of(loop, seed=0)


def write_azure(path: Path, seconds: list[float]) -> None:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["TIMESTAMP", "ContextTokens", "GeneratedTokens"])
        for i, second in enumerate(seconds):
            stamp = f"2023-11-16 {18 + int(second) // 3600:02d}:{int(second) // 60 % 60:02d}:{second % 60:09.6f}"
            rows.writerow([stamp, 500 + i % 7, 100 + i % 5])


def test_a_trace_is_planned_for_its_busy_minutes(tmp_path: Path) -> None:
    """Twenty minutes at 1/s, two of them at 5/s: the 95th percentile of the minutes sees the peak."""
    seconds = [m * 60 + i * 60 / n for m in range(20) for n in [300 if m in (7, 8) else 60] for i in range(n)]
    write_azure(tmp_path / "t.csv", seconds)
    traffic = traffic_of(Trace(path=tmp_path / "t.csv"), seed=0)
    mean = len(seconds) / seconds[-1]
    assert mean < 1.5
    assert traffic.rate == pytest.approx(5.0, rel=0.05)
    doubled = traffic_of(Trace(path=tmp_path / "t.csv", speed=2.0), seed=0)
    assert doubled.rate > 1.5 * mean
    assert traffic.mean_output == pytest.approx(102, rel=0.01)


def test_a_trace_of_one_instant_is_refused(tmp_path: Path) -> None:
    write_azure(tmp_path / "t.csv", [1.0, 1.0, 1.0])
    with pytest.raises(ScenarioError, match="arrive at one instant"):
        traffic_of(Trace(path=tmp_path / "t.csv"), seed=0)

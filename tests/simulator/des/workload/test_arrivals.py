import numpy as np
import pytest

from simulator.des.workload.arrivals import change_time
from simulator.des.workload.requests import make_requests
from simulator.scenario import Bursts, Diurnal, Lengths, OpenLoop, ScenarioError


def unit_poisson(count: int, seed: int) -> np.ndarray:
    return np.cumsum(np.random.default_rng(seed).exponential(1.0, count))


def test_a_day_is_the_inverse_of_its_integrated_rate() -> None:
    """Integral of rate * (m + s cos(2 pi (t - p) / T)), by hand, gives the ticks back."""
    ticks = unit_poisson(200_000, 1)
    day = Diurnal(trough=0.2, period_s=1000.0, peak_s=250.0)
    t = change_time(ticks, 40.0, day, None, seed=0)
    angle = 2 * np.pi / 1000.0
    integral = 0.6 * t + 0.4 / angle * (np.sin(angle * (t - 250.0)) + np.sin(angle * 250.0))
    np.testing.assert_allclose(40.0 * integral, ticks, rtol=1e-5, atol=0.1)  # a tenth of an arrival
    by_phase = np.histogram(t % 1000.0, bins=4, range=(0, 1000))[0]
    assert by_phase[0] + by_phase[1] > 2 * (by_phase[2] + by_phase[3])  # around the peak at 250 s


def test_growth_compounds_by_the_day() -> None:
    flat = Diurnal(trough=1.0, growth_per_day=1.0)
    t = change_time(np.array([0.0, 86_400.0 / np.log(2)]), 1.0, flat, None, seed=0)
    assert t[1] == pytest.approx(86_400.0, rel=1e-4)  # integral of 2^(t/day) over a day


def test_bursts_disperse_counts_as_a_two_state_modulated_poisson_process() -> None:
    """Mean rate and limiting index of dispersion of counts: 1 + 2 (a - b)^2 r1 r2 / ((r1 + r2)^2 (a r2 + b r1))."""
    bursts = Bursts(quiet=0.2, burst_s=2.0, quiet_s=6.0)
    t = change_time(unit_poisson(800_000, 2), 10.0, None, bursts, seed=5)
    a, b, r1, r2 = 10.0, 2.0, 1 / 2.0, 1 / 6.0
    mean = (a * r2 + b * r1) / (r1 + r2)
    assert len(t) / t[-1] == pytest.approx(mean, rel=0.03)
    window = 200.0  # long beside the spells
    counts = np.histogram(t, bins=np.arange(0.0, t[-1], window))[0]
    index = 1 + 2 * (a - b) ** 2 * r1 * r2 / ((r1 + r2) ** 2 * (a * r2 + b * r1))
    assert np.var(counts) / np.mean(counts) == pytest.approx(index, rel=0.15)


def test_day_and_bursts_together_never_exceed_the_rate_and_repeat_with_the_seed() -> None:
    load = OpenLoop(
        rate=50.0, requests=20_000, prompt=Lengths(value=5), output=Lengths(value=1),
        diurnal=Diurnal(period_s=300.0), bursts=Bursts(burst_s=3.0, quiet_s=9.0),
    )  # fmt: skip
    first, again, other = (make_requests(load, np.random.SeedSequence(s)).arrival_s for s in (1, 1, 2))
    assert first is not None
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert (np.diff(first) >= 0).all()
    per_second = np.histogram(first, bins=np.arange(0, first[-1]))[0]
    assert per_second.max() < 50 + 6 * np.sqrt(50)


def test_a_period_far_below_the_span_is_refused() -> None:
    with pytest.raises(ScenarioError, match=r"diurnal.period_s=0.001 is too short"):
        change_time(np.array([1e6]), 1.0, Diurnal(period_s=1e-3), None, seed=0)


def test_spells_far_below_the_span_are_refused() -> None:
    with pytest.raises(ScenarioError, match=r"bursts.burst_s=0.001 and quiet_s=0.001 are too short"):
        change_time(np.array([1e6]), 1.0, None, Bursts(burst_s=1e-3, quiet_s=1e-3), seed=0)

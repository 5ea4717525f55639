"""Spreads of errors against the normal distribution and against draws; which spread a profile gets."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hw_profiles.catalog import load
from hw_profiles.efficiency import WHOLE_STEPS, Situation
from hw_profiles.profile import HardwareProfile
from simulator.model.architecture import ModelSpec
from simulator.model.engine import NOISE
from simulator.model.latency import DecodeLoad, StepLatency
from simulator.model.parallelism import Parallelism
from simulator.model.presets import load_model
from simulator.uncertainty.spreads import SPREAD_METRICS, Role, Spread, Uncertainty, uncertainty_of

SPREADS = st.builds(
    lambda middle, low, high: Spread(p10=middle - low, p50=middle, p90=middle + high),
    st.floats(-1, 1),
    st.floats(0.01, 2),
    st.floats(0.01, 2),
)
SHARES = st.floats(0.001, 0.999)


def lognormal(sigma: float, median: float = 0.0) -> Spread:
    half = NormalDist().inv_cdf(0.9) * sigma
    return Spread(p10=median - half, p50=median, p90=median + half)


@given(SPREADS, SHARES)
def test_chance_undoes_quantile(spread: Spread, share: float) -> None:
    assert spread.chance_below(spread.quantile(share)) == pytest.approx(share, abs=1e-9)


@given(SPREADS)
def test_the_quantiles_found_are_kept_and_the_median_has_even_chances(spread: Spread) -> None:
    for share, found in ((0.1, spread.p10), (0.5, spread.p50), (0.9, spread.p90)):
        assert spread.quantile(share) == pytest.approx(found)
    assert spread.chance_below(spread.p50) == 0.5


@given(SHARES)
def test_even_halves_are_the_normal_distribution(share: float) -> None:
    expected = NormalDist(0.2, 0.3)
    spread = lognormal(0.3, 0.2)
    assert spread.quantile(share) == pytest.approx(expected.inv_cdf(share))
    assert spread.chance_below(share) == pytest.approx(expected.cdf(share))


def test_bands_hold_four_fifths_of_lognormal_draws() -> None:
    """Measured = predicted x model error x noise of the run, both drawn."""
    rng = np.random.default_rng(0)
    measured = 50.0 * np.exp(rng.normal(0.1, 0.3, 40_000) + rng.normal(0, 0.2, 40_000))
    band = lognormal(0.3, 0.1).with_noise(0.2).band(50.0)
    share = np.mean((measured >= band["p10"]) & (measured <= band["p90"]))
    assert share == pytest.approx(0.8, abs=0.01)
    chance = lognormal(0.3, 0.1).with_noise(0.2).chance_below(math.log(70 / 50))
    assert chance == pytest.approx(np.mean(measured <= 70), abs=0.01)


@given(SPREADS, st.floats(0, 3), st.floats(0, 3))
def test_noise_adds_in_quadrature_and_never_narrows(spread: Spread, first: float, second: float) -> None:
    both = spread.with_noise(first).with_noise(second)
    at_once = spread.with_noise(math.hypot(first, second))
    assert (both.p10, both.p90) == pytest.approx((at_once.p10, at_once.p90))
    assert both.width >= spread.width * (1 - 1e-12)


@given(SPREADS, SHARES)
def test_the_reciprocal_is_above_where_the_figure_is_below(spread: Spread, share: float) -> None:
    assert spread.inverse.quantile(1 - share) == pytest.approx(-spread.quantile(share))


def test_quantiles_out_of_order_are_refused() -> None:
    with pytest.raises(ValidationError, match="do not rise"):
        Spread(p10=0.1, p50=0.0, p90=0.2)


MODEL = load_model("deepseek-r1")
CUT = Parallelism(tp=8)


@pytest.fixture
def fitted() -> HardwareProfile:
    return load("b200_sxm", "sglang")


def known(hardware: HardwareProfile, model: ModelSpec = MODEL, role: Role = "colocated") -> Uncertainty:
    return uncertainty_of(hardware, model, CUT, 0, role)


def test_kind_follows_what_was_measured(fitted: HardwareProfile) -> None:
    assert known(fitted).kind == "known"
    assert known(fitted, replace(MODEL, name="a-model-of-ones-own")).kind == "new model"
    assert known(load("b200_sxm"), replace(MODEL, name="a-model-of-ones-own")).kind == "assumed"
    elsewhere = fitted.efficiency.model_copy(update={"overhead_assumed": True})
    assert known(replace(fitted, efficiency=elsewhere)).kind == "new accelerator"
    apart = [one for one in fitted.efficiency.situations if one.deviations and "form" in one.when]
    model = load_model(apart[0].when["model"])
    role: Role = "colocated" if apart[0].when["form"] == "colocated" else "decode"
    assert known(fitted, model, role).kind == "new combination"


def test_what_is_measured_less_is_known_less(fitted: HardwareProfile) -> None:
    """A model that was never served is less sure than one that was, assumed rates less than those of a fit."""
    width = {
        name: found.spreads["tpot_s"].width
        for name, found in {
            "known": known(fitted),
            "new model": known(fitted, replace(MODEL, name="a-model-of-ones-own")),
            "assumed": known(load("b200_sxm")),
        }.items()
    }
    assert width["known"] < width["new model"] < 2 * width["assumed"]
    assert width["known"] < width["assumed"]


def test_the_same_unknown_is_drawn_alike(fitted: HardwareProfile) -> None:
    other = replace(MODEL, name="a-model-of-ones-own")
    assert known(fitted, other) == known(fitted, other)


def test_draws_of_a_rate_make_draws_of_the_time_that_it_takes(fitted: HardwareProfile) -> None:
    """With everything known but the host time of a kernel, a step's spread is that of the host's share of it."""
    sure = {"held_out_error": {}, "unseen": {}, "noise": dict.fromkeys(NOISE, 1e-6)}
    spread = 0.1
    scores = [NormalDist().inv_cdf((i + 0.5) / 64) for i in range(64)]
    drawn = tuple(round(100 * spread * z) for z in scores)
    there = Situation(when={"model": MODEL.name}, drawn={"kernel_overhead_s": drawn})
    efficiency = fitted.efficiency.model_copy(update={**sure, "situations": (there,), "kernel_overhead_s": 1e-5})
    hardware = replace(fitted, efficiency=efficiency)
    times = StepLatency(MODEL, hardware, CUT)
    context = 32 * 4500
    load_of = DecodeLoad(32, context, tuple(min(context, 32 * cap) for cap in times.caps), 32)
    share = 1e-5 * times.kernels / times.decode_s(load_of)
    found = known(hardware).spreads["tpot_s"]
    half = NormalDist().inv_cdf(0.9) * spread
    assert found.p90 == pytest.approx(math.log1p(share * math.expm1(half)), rel=0.1)
    assert found.p10 == pytest.approx(math.log1p(share * math.expm1(-half)), rel=0.1)


def test_reasons_are_in_words(fitted: HardwareProfile) -> None:
    found = known(fitted)
    assert fitted.display_name == found.accelerator
    assert "measured in colocated serving" in found.reason
    assert str(found.spreads["total_tok_s_per_gpu"].n) in found.reason


def test_a_machine_of_ones_own_brings_its_held_out_error(fitted: HardwareProfile) -> None:
    """Half of the errors of a normal are within its median absolute error; a measurement adds its noise."""
    none = dict.fromkeys(NOISE, 1e-6)
    efficiency = fitted.efficiency.model_copy(
        update={"held_out_error": {WHOLE_STEPS: 0.05}, "origin": "measured", "noise": none}
    )
    found = known(replace(fitted, efficiency=efficiency))
    assert found.kind == "own measurements"
    for metric in SPREAD_METRICS:
        spread = found.spreads[metric]
        inside = spread.chance_below(math.log(1.05)) - spread.chance_below(-math.log(1.05))
        assert inside == pytest.approx(0.5, abs=0.06)

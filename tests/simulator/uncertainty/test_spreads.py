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
from hw_profiles.efficiency import WHOLE_STEPS
from hw_profiles.profile import HardwareProfile
from simulator.uncertainty.spreads import SPREAD_METRICS, Spread, evidence, uncertainty_of

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


def test_the_shipped_file_says_something_of_every_kind() -> None:
    found = evidence()
    for kind in ("known", "new form", "new model", "new engine", "new accelerator", "assumed"):
        for form in ("disaggregated",) if kind == "new form" else ("colocated", "disaggregated"):
            spreads = found.spreads[kind][form]
            assert set(spreads) == set(SPREAD_METRICS)
            assert min(spread.n for spread in spreads.values()) >= 20
            assert set(found.coverage[kind][form]) == set(SPREAD_METRICS)


@pytest.fixture
def fitted() -> HardwareProfile:
    return load("b200_sxm", "sglang")


def test_kind_follows_what_was_measured(fitted: HardwareProfile) -> None:
    assert uncertainty_of(fitted, "colocated").kind == "known"
    assert uncertainty_of(fitted, "colocated", "deepseek-r1").kind == "known"
    assert uncertainty_of(fitted, "colocated", "a-model-of-ones-own").kind == "new model"
    assert uncertainty_of(load("b200_sxm"), "colocated", "a-model-of-ones-own").kind == "assumed"
    assert uncertainty_of(replace(fitted, name="b200_of_ones_own"), "colocated").kind == "new accelerator"
    other = replace(fitted, efficiency=fitted.efficiency.model_copy(update={"stack": "lmdeploy"}))
    assert uncertainty_of(other, "colocated").kind == "new engine"
    colocated_only = [
        (gpu, stack)
        for gpu, stacks in evidence().served.items()
        for stack, forms in stacks.items()
        if forms == ("colocated",)
    ]
    assert uncertainty_of(load(*colocated_only[0]), "disaggregated").kind == "new form"
    assert uncertainty_of(load(*colocated_only[0]), "colocated").kind == "known"


def test_reasons_are_in_words(fitted: HardwareProfile) -> None:
    found = uncertainty_of(fitted, "disaggregated")
    assert fitted.display_name == found.accelerator
    assert "published disaggregated points" in found.reason
    assert str(found.spreads["total_tok_s_per_gpu"].n) in found.reason


def test_a_machine_of_ones_own_brings_its_held_out_error(fitted: HardwareProfile) -> None:
    """Half of the errors of a normal are within its median absolute error."""
    efficiency = fitted.efficiency.model_copy(update={"held_out_error": {WHOLE_STEPS: 0.05}})
    found = uncertainty_of(replace(fitted, efficiency=efficiency), "colocated")
    assert found.kind == "own measurements"
    for metric in SPREAD_METRICS:
        spread = found.spreads[metric]
        inside = spread.chance_below(math.log(1.05)) - spread.chance_below(-math.log(1.05))
        assert inside == pytest.approx(0.5)

from typing import get_args

import pytest

from hw_profiles import catalog
from hw_profiles.schema import Convention

CONVENTIONS = get_args(Convention)


def test_prices_belong_to_parts_and_state_their_day():
    prices = catalog.read_prices(catalog.DATA / "prices.toml")
    assert {price.accelerator for price in prices} <= set(catalog.names())
    assert len({(p.accelerator, p.convention) for p in prices}) == len(prices) >= 40


@pytest.mark.parametrize(
    ("name", "convention", "usd"),
    [
        ("h100_sxm", "hyperscaler_ownership", 1.17),
        ("b300_sxm", "neocloud_ownership", 2.52),
        ("gb300", "rental_3yr", 3.3),
        ("mi355x", "hyperscaler_ownership", 1.5),
        # eleven providers; the sixth of 2.71 3.2 3.99 3.99 4.49 4.5 6.155 6.88 10 10.98 12.29
        ("h100_sxm", "on_demand", 4.5),
        # of four, between 1.85 and 2.59
        ("mi300x", "on_demand", 2.22),
    ],
)
def test_newest_price_of_a_convention(name, convention, usd):
    price = catalog.load(name).usd_per_hour(convention)
    assert price.convention == convention
    assert price.usd_per_hour.value == pytest.approx(usd)
    assert not price.usd_per_hour.assumed


def test_ownership_is_cheaper_than_walking_in():
    for name in ("h100_sxm", "h200_sxm", "b200_sxm", "b300_sxm", "gb200", "gb300", "mi300x", "mi325x", "mi355x"):
        paid = [catalog.load(name).usd_per_hour(c).usd_per_hour.value for c in CONVENTIONS if c != "spot"]
        assert paid == sorted(paid), name


@pytest.mark.parametrize("convention", CONVENTIONS[:3])
def test_a_missing_price_falls_back_and_says_so(convention):
    price = catalog.load("a100").usd_per_hour(convention)  # only on demand is known
    assert price.convention == "on_demand"
    assert price.usd_per_hour.assumed
    assert convention in price.usd_per_hour.note
    assert "on_demand stands in" in price.usd_per_hour.note


def test_ownership_prices_stand_in_for_each_other_first():
    price = catalog.load("rubin").usd_per_hour("neocloud_ownership")
    assert (price.convention, price.usd_per_hour.value) == ("hyperscaler_ownership", 3.57)


def test_a_price_of_ones_own_comes_first(own_part):
    own = catalog.load(own_part())
    assert own.usd_per_hour("rental_3yr").usd_per_hour.value == 1.25
    renamed = catalog.load(own_part('name = "mine"', 'name = "h100_sxm"'))
    assert renamed.usd_per_hour("rental_3yr").usd_per_hour.value == 1.25
    assert renamed.usd_per_hour("neocloud_ownership").usd_per_hour.value == 1.55


def test_no_price_at_all_says_how_to_add_one():
    with pytest.raises(catalog.CatalogError, match=r"tpu_7x has no price.*\[prices\]"):
        catalog.load("tpu_7x").usd_per_hour("on_demand")
    with pytest.raises(catalog.CatalogError, match="'barter'; use one of hyperscaler_ownership"):
        catalog.load("h100").usd_per_hour("barter")


@pytest.mark.parametrize(
    ("figure", "said"),
    [
        ('{ value = -1, unit = "USD/h", source = "list", accessed = 2026-11-01 }', "h100_sxm.on_demand.value = -1"),
        ('{ value = 1, unit = "USD/h", accessed = 2026-11-01 }', "h100_sxm.on_demand.source is missing"),
        ('{ value = 1, unit = "GB", source = "list", accessed = 2026-11-01 }', "'GB' is a capacity"),
        ("1.5", "h100_sxm.on_demand = 1.5 must be a table"),
    ],
)
def test_bad_prices_are_refused_by_key(tmp_path, figure, said):
    path = tmp_path / "prices.toml"
    path.write_text(f"[h100_sxm]\non_demand = {figure}\n")
    with pytest.raises(catalog.CatalogError) as error:
        catalog.read_prices(path)
    assert str(error.value).startswith("prices.toml: ")
    assert said in str(error.value)


def test_a_price_of_ones_own_comes_before_every_other():
    mine = catalog.load("h100").with_own_price(1.2)
    assert {mine.usd_per_hour(c).usd_per_hour.value for c in CONVENTIONS} == {1.2}


def test_capacity_that_may_be_taken_back_is_cheaper():
    for name in ("a100_sxm", "h100_sxm", "h200_sxm", "b200_sxm", "b300_sxm"):
        profile = catalog.load(name)
        spot, listed = (profile.usd_per_hour(c).usd_per_hour for c in ("spot", "on_demand"))
        assert not spot.assumed
        assert spot.value < listed.value

"""What accelerators draw by load, and under a cap."""

import pytest

from hw_profiles import catalog
from hw_profiles.power import BY_ACCELERATOR, power_law


@pytest.mark.parametrize(
    ("name", "rows", "measured"),
    [
        ("b200_sxm", 8.0, 0.57),  # V4-Pro under TensorRT-LLM, 64 in flight on 8 (InferenceX)
        ("b300_sxm", 1 / 8, 0.27),  # one in flight
        ("h200_sxm", 2.0, 0.58),  # SGLang, 16 in flight on 8
        ("mi300x", 8.0, 0.92),  # vLLM, 64 in flight
        ("mi355x", 64.0, 0.64),  # ATOM, 512 in flight
    ],
)
def test_draw_in_decode_is_what_was_measured(name: str, rows: float, measured: float) -> None:
    law = power_law(name, catalog.load(name).accelerator.generation)
    assert not law.assumed
    assert law.decode(rows) == pytest.approx(measured, rel=0.15)


def test_draw_grows_with_rows_between_idling_and_all() -> None:
    law = catalog.load("h200").power_law
    drawn = [law.decode(rows) for rows in (0.0, 1e-9, 0.1, 1.0, 10.0, 1e3, 1e9)]
    assert drawn == sorted(drawn)
    assert (drawn[0], drawn[1], drawn[-1]) == (law.idle, law.idle, 1.0)


def test_parts_that_nobody_measured_say_what_stands_in() -> None:
    for name in catalog.names():
        law = catalog.load(name).power_law
        assert law.assumed == (name not in BY_ACCELERATOR)
        assert ("assumed: as" in law.source) == law.assumed


def test_a_cap_takes_clock_and_power_and_says_so() -> None:
    free = catalog.load("h100")
    capped = free.with_power_cap(400.0)
    assert 0.6 < capped.peaks["fp8"] / free.peaks["fp8"] < 0.85
    assert capped.memory_bandwidth == free.memory_bandwidth
    assert capped.all_in_w == pytest.approx(1370 - 300)
    assert any("cap of 400 of 700 W" in text for text in capped.assumptions)
    assert free.with_power_cap(700.0).peaks == free.peaks
    rates = [free.with_power_cap(float(w)).peaks["bf16"] for w in range(300, 701, 50)]
    assert rates == sorted(rates)


@pytest.mark.parametrize(
    ("name", "cap", "said"), [("h100", 100, "between 280 and the 700 W"), ("tpu_7x", 500, "TDP of tpu_7x is not known")]
)
def test_a_cap_that_cannot_be_is_refused(name: str, cap: float, said: str) -> None:
    with pytest.raises(catalog.CatalogError, match=said):
        catalog.load(name).with_power_cap(cap)

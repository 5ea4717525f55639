from datetime import date

import pytest

from hw_profiles.schema import Sourced, to_si
from hw_profiles.units import human_bytes, human_rate


@pytest.mark.parametrize(
    ("value", "unit", "si"),
    [
        (80, "GB", 80_000_000_000),
        (80, "GiB", 85_899_345_920),
        (189471, "MiB", 198_674_743_296),
        (400, "Gbit/s", 50_000_000_000),
        (3.35, "TB/s", 3_350_000_000_000),
        (1979, "TFLOP/s", 1_979_000_000_000_000),
        (35, "PFLOP/s", 35_000_000_000_000_000),
        (1.37, "kW", 1370),
        (72, "accelerators", 72),
        (2.52, "USD/h", 2.52),
    ],
)
def test_si_values_worked_by_hand(value, unit, si):
    figure = Sourced(value=value, unit=unit, source="by hand", accessed=date(2026, 11, 23))
    assert to_si(figure) == pytest.approx(si, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (human_bytes(0), "0 B"),
        (human_bytes(999), "999 B"),
        (human_bytes(1000), "1 kB"),
        (human_bytes(1.5731e12), "1.573 TB"),
        (human_rate(50e9), "50 GB/s"),
        (human_rate(35e15, "FLOP/s"), "35 PFLOP/s"),
    ],
)
def test_figures_read_naturally(text, shown):
    assert text == shown

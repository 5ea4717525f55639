"""Times and rates as people write them."""

import pytest
import typer
from typer.testing import CliRunner

from app.cli import cli
from app.commands.quantities import requests_per_s, tpot_seconds, ttft_seconds


@pytest.mark.parametrize(
    ("text", "seconds"), [("3", 3.0), ("3s", 3.0), ("3000ms", 3.0), ("3000 MS", 3.0), ("0.05min", 3.0), ("3e6us", 3.0)]
)
def test_units_of_time_are_told_apart(text: str, seconds: float) -> None:
    assert ttft_seconds(text) == pytest.approx(seconds)


def test_a_bare_number_that_can_only_be_milliseconds_asks_back() -> None:
    with pytest.raises(typer.BadParameter, match="3000ms for milliseconds, or 3000s"):
        ttft_seconds("3000")
    with pytest.raises(typer.BadParameter, match="50ms for milliseconds, or 50s"):
        tpot_seconds("50")
    assert ttft_seconds("3000s") == 3000.0
    assert ttft_seconds("120") == 120.0
    assert tpot_seconds("1") == 1.0


@pytest.mark.parametrize("text", ["", "fast", "3 m", "3s s", "0", "-1s", "1e999s", "nan", "inf"])
def test_what_is_no_time_is_refused_with_the_way_to_write_one(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="write it as 3s or 50ms"):
        ttft_seconds(text)


@pytest.mark.parametrize("text", ["", "10/day2", "ten", "0/s", "-1", "10 per s", "1e999"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="write it as 10/s or 600/min"):
        requests_per_s(text)


def test_a_plan_with_units_is_the_plan_without() -> None:
    common = ["plan", "--gpu", "h200", "--max-gpus", "8", "--json", "-"]
    plain = CliRunner().invoke(cli, [*common, "--rate", "10", "--ttft", "3", "--tpot", "0.05"])
    units = CliRunner().invoke(cli, [*common, "--rate", "600/min", "--ttft", "3000ms", "--tpot", "50ms"])
    assert plain.output == units.output
    assert plain.exit_code == units.exit_code

"""Months of demand, spares, money and energy, against numbers worked by hand and against theory."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from math import comb
from pathlib import Path

import pytest

from hw_profiles.catalog import load
from simulator import forecast
from simulator.questions.demand import MonthlyDemand, grown, mean_share, read_demand
from simulator.questions.forecast import Forecast, Generation
from simulator.questions.headroom import headroom, share_up
from simulator.questions.money import HOURS_A_MONTH, ApiPrice, usd_per_hour
from simulator.questions.token_cost import split
from simulator.scenario import Faults, Outages, Scenario, ScenarioError
from simulator.sweep.executor import SweepExecutor

Make = Callable[..., Scenario]
START = date(2027, 1, 1)


def test_growth_of_three_a_year_is_three_after_twelve_months(small: Make) -> None:
    months = grown(small(), "3x/yr", "13mo", START)
    assert months[0].peak_rate == 8.0
    assert months[12].peak_rate == pytest.approx(24.0)
    assert months[12].month == date(2028, 1, 1)


def test_a_day_whose_trough_is_two_fifths_has_a_mean_of_seven_tenths(small: Make) -> None:
    workload = small().one_workload().model_dump() | {"diurnal": {"trough": 0.4}}
    assert mean_share(small(workload=workload)) == pytest.approx(0.7)


def test_demand_from_a_file(small: Make, tmp_path: Path) -> None:
    file = tmp_path / "demand.csv"
    file.write_text("month,peak_requests_per_s,mean_requests_per_s\n2027-01,10,4\n2027-02-15,12,\n", encoding="utf-8")
    assert read_demand(file, small()) == (
        MonthlyDemand(date(2027, 1, 1), 10.0, 4.0),
        MonthlyDemand(date(2027, 2, 1), 12.0, 12.0),
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("month,peak_requests_per_s\n2027-01,0\n", "line 2: peak_requests_per_s=0 is not a rate above 0"),
        ("month,peak_requests_per_s\nsoon,5\n", "month='soon' is not a month"),
        ("month,peak_requests_per_s\n2027-01,5\n2027-03,5\n", "2027-03 does not follow 2027-01"),
        ("month,rate\n2027-01,5\n", "peak_requests_per_s is missing"),
        ("month,peak_requests_per_s,mean_requests_per_s\n2027-01,5,6\n", "is above the peak of 5"),
        ("", "has no rows"),
    ],
)
def test_a_bad_demand_file_is_named(small: Make, tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "demand.csv"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ScenarioError, match=problem):
        read_demand(file, small())


@pytest.mark.parametrize("spare", [0, 1, 2])
def test_instances_up_are_binomial_where_faults_are_independent(small: Make, spare: int) -> None:
    """Each is up a share a = MTBF / (MTBF + MTTR + start) of the time: P(at least n of n + k)."""
    pools = {"prefill": {"gpu": "h200"}, "decode": {"gpu": "h200"}, "startup": {"start_s": 0.0, "load_s": 0.0}}
    faults = Faults(instance=Outages(mtbf_s=90_000.0, mttr_s=10_000.0))
    needed, a = 3, 0.9
    total = needed + spare
    theory = sum(comb(total, up) * a**up * (1 - a) ** (total - up) for up in range(needed, total + 1))
    assert share_up(small(deployment=pools), "prefill", needed, spare, faults) == pytest.approx(theory, abs=0.01)


def test_spares_are_the_fewest_that_reach_the_target(small: Make) -> None:
    pools = {
        "prefill": {"gpu": "h200", "instances": 3}, "decode": {"gpu": "h200", "instances": 3},
        "startup": {"start_s": 0.0, "load_s": 0.0},
        "faults": {"instance": {"mtbf_s": 90_000.0, "mttr_s": 10_000.0}},
    }  # fmt: skip
    scenario = small(deployment=pools)
    found = headroom(scenario, 0.95)
    assert found.source == "faults of the scenario"
    assert found.availability >= 0.95
    for pool, spare in found.spare.items():
        faults = scenario.deployment.faults if scenario.deployment else None
        assert share_up(scenario, pool, 3, spare, faults) >= 0.975 > share_up(scenario, pool, 3, spare - 1, faults)


@pytest.fixture
def two_months(small: Make, serial: SweepExecutor) -> Forecast:
    demand = [MonthlyDemand(START, 8.0, 4.0), MonthlyDemand(date(2027, 2, 1), 16.0, 8.0)]
    api = ApiPrice(0.1, 0.4, 0.05)
    return forecast(small(deployment=None), demand, api=api, executor=serial)


def test_money_is_accelerators_times_hours_times_price(two_months: Forecast) -> None:
    price = load("h200").usd_per_hour("rental_3yr").usd_per_hour.value
    for month in two_months.months:
        assert month.usd["rental_3yr"] == pytest.approx(month.gpus * price * HOURS_A_MONTH)
        assert month.gpus == month.gpus_needed + month.spare_gpus
        assert month.gpus == sum(cohort.gpus + cohort.spare_gpus for cohort in month.cohorts)
    assert two_months.totals["rental_3yr"] == sum(month.usd["rental_3yr"] or 0 for month in two_months.months)
    assert sum(month.bought for month in two_months.months) == two_months.months[-1].gpus


def test_tokens_pay_for_everything_that_is_there(two_months: Forecast) -> None:
    """Input and output tokens of the mean traffic, at their costs, are the month's bill."""
    for month in two_months.months:
        assert month.usd_per_mtok_input is not None
        assert month.usd_per_mtok_output is not None
        a_second = month.mean_rate * (1000 * month.usd_per_mtok_input + 60 * month.usd_per_mtok_output) / 1e6
        assert a_second * 3600 * HOURS_A_MONTH == pytest.approx(month.usd["neocloud_ownership"], rel=0.05)


def test_the_api_bills_the_mean_traffic(two_months: Forecast) -> None:
    for month in two_months.months:
        asked = month.mean_rate * (1000 * 0.1 + 60 * 0.4) / 1e6 * 3600 * HOURS_A_MONTH
        assert month.api_usd == pytest.approx(asked, rel=0.05)
    even = two_months.break_even
    assert even is not None
    last = two_months.months[-1]
    assert even.rate / last.mean_rate == pytest.approx((last.usd["neocloud_ownership"] or 0) / (last.api_usd or 1))


def test_energy_lies_between_idle_and_full_power(two_months: Forecast) -> None:
    part = load("h200")
    assert part.tdp_w is not None
    for month in two_months.months:
        assert month.kwh is not None
        assert month.co2_kg == pytest.approx(month.kwh * 0.373)
        watts = month.kwh * 1e3 / HOURS_A_MONTH / 1.2 / month.gpus
        assert 0.15 * part.tdp_w < watts < (part.all_in_w or 2 * part.tdp_w)


def test_when_demand_falls_what_was_bought_stays_and_what_is_on_demand_goes(small: Make, serial: SweepExecutor) -> None:
    demand = [MonthlyDemand(START, 60.0, 30.0), MonthlyDemand(date(2027, 2, 1), 10.0, 5.0)]
    found = forecast(small(deployment=None), demand, executor=serial)
    first, second = found.months
    assert second.gpus == first.gpus
    assert second.bought == 0
    assert second.usd["rental_3yr"] == first.usd["rental_3yr"]
    assert (second.usd["on_demand"] or 0) < (first.usd["on_demand"] or 0)


def test_growth_goes_to_the_generation_that_has_come(small: Make, serial: SweepExecutor) -> None:
    demand = [MonthlyDemand(START, 8.0, 8.0), MonthlyDemand(date(2027, 2, 1), 24.0, 24.0)]
    later = [Generation("h200"), Generation("b300", since=date(2027, 2, 1))]
    found = forecast(small(deployment=None), demand, generations=later, executor=serial)
    assert [cohort.generation for cohort in found.months[0].cohorts] == ["h200_sxm"]
    shares = {cohort.generation: cohort.peak_rate for cohort in found.months[1].cohorts}
    assert sum(shares.values()) == pytest.approx(24.0)
    assert shares["h200_sxm"] in (8.0, 24.0)  # b300 takes all the growth, if it is the cheaper


def test_nothing_on_sale_is_said(small: Make, serial: SweepExecutor) -> None:
    late = [Generation("h200", since=date(2028, 1, 1))]
    with pytest.raises(ScenarioError, match="nothing can be bought in 2027-01: the first accelerator comes in 2028-01"):
        forecast(small(deployment=None), [MonthlyDemand(START, 8.0, 8.0)], generations=late, executor=serial)


def test_the_price_of_an_api_by_hand() -> None:
    tokens = split(0.0, 0.5, 1000.0, 500.0, 100.0, 0.1)
    assert ApiPrice.of("1,4,0.5").usd_per_s(tokens) == pytest.approx((1000 + 250 + 400) / 1e6)
    with pytest.raises(ScenarioError, match="not understood"):
        ApiPrice.of("cheap")


def test_usd_per_hour_of_a_deployment(small: Make) -> None:
    deployment = small().deployment
    assert deployment is not None
    assert usd_per_hour(deployment, "on_demand") == 2 * load("h200").usd_per_hour("on_demand").usd_per_hour.value


def test_json_and_table_have_a_row_a_month(two_months: Forecast) -> None:
    assert [row["month"] for row in two_months.to_json()["months"]] == ["2027-01", "2027-02"]
    frame = two_months.to_frame()
    assert len(frame) == 2
    assert {"usd_rental_3yr", "usd_per_mtok_cached", "kwh", "layouts"} <= set(frame.columns)
    assert two_months.figure().data

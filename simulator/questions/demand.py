"""Demand over the months to come: from a growth rate, or from a file."""

from __future__ import annotations

import csv
import itertools
import math
import re
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from simulator.scenario import OpenLoop, Scenario, ScenarioError

MONTHS_A_YEAR = 12
MOST_MONTHS = 120  # of a forecast [assumed: nobody knows demand beyond ten years]
PERIODS = {"yr": 12.0, "year": 12.0, "y": 12.0, "quarter": 3.0, "q": 3.0, "mo": 1.0, "month": 1.0, "m": 1.0}  # [months]
SPANS = {"mo": 1, "month": 1, "months": 1, "m": 1, "yr": 12, "year": 12, "years": 12, "y": 12}  # [months]


@dataclass(frozen=True)
class MonthlyDemand:
    """Demand of one month. peak_rate, mean_rate: requests/s."""

    month: date  # its first day
    peak_rate: float
    mean_rate: float


def monthly_growth(text: str) -> float:
    """Factor a month of '3x/yr', '20%/mo', '1.5x/quarter'; a bare '3x' is a year's. Raises ScenarioError.

    >>> round(monthly_growth("3x/yr") ** 12, 9), round(monthly_growth("20%/mo"), 9), monthly_growth("1x/yr")
    (3.0, 1.2, 1.0)
    """
    found = re.fullmatch(r"\s*([+-]?\d+(?:\.\d+)?)\s*(x|%)\s*(?:(?:/|per|a)\s*([a-z]+))?\s*", text.lower())
    if found is None or (found[3] or "yr") not in PERIODS:
        raise ScenarioError(f"growth {text!r} is not understood; write it as 3x/yr or 5%/mo")
    factor = float(found[1]) if found[2] == "x" else 1 + float(found[1]) / 100
    if not 0 < factor < math.inf:
        raise ScenarioError(f"growth {text!r} leaves nothing; write it as 3x/yr or 5%/mo")
    return float(factor ** (1 / PERIODS[found[3] or "yr"]))


def horizon_months(text: str) -> int:
    """Months of '12mo', '2yr', '18'. Raises ScenarioError.

    >>> horizon_months("12mo"), horizon_months("2 years"), horizon_months("18")
    (12, 24, 18)
    """
    found = re.fullmatch(r"\s*(\d+)\s*([a-z]*)\s*", text.lower())
    months = int(found[1]) * SPANS.get(found[2] or "mo", 0) if found else 0
    if not 1 <= months <= MOST_MONTHS:
        raise ScenarioError(f"horizon {text!r} is not between 1 and {MOST_MONTHS} months; write it as 12mo or 2yr")
    return months


def grown(scenario: Scenario, growth: str, horizon: str, start: date) -> tuple[MonthlyDemand, ...]:
    """Months from `start` on; the scenario's rate is the peak of the first, and its day curve says what the mean is."""
    workload = scenario.one_workload()
    if not isinstance(workload, OpenLoop):
        raise ScenarioError(
            f"workload.kind='{workload.kind}' of '{scenario.name}' has no rate that grows; use 'open_loop', or give a "
            "--demand file"
        )
    factor, share = monthly_growth(growth), mean_share(scenario)
    return tuple(
        MonthlyDemand(later(start, i), workload.rate * factor**i, workload.rate * factor**i * share)
        for i in range(horizon_months(horizon))
    )


def mean_share(scenario: Scenario) -> float:
    """Mean over peak of the arrival rate in a day: (1 + trough) / 2 of a cosine; bursts: by the time in them."""
    workload = scenario.workload
    if not isinstance(workload, OpenLoop):
        return 1.0
    share = 1.0
    if workload.diurnal is not None:
        share *= (1 + workload.diurnal.trough) / 2
    if workload.bursts is not None:
        bursts = workload.bursts
        share *= (bursts.burst_s + bursts.quiet * bursts.quiet_s) / (bursts.burst_s + bursts.quiet_s)
    return share


def read_demand(path: Path, scenario: Scenario) -> tuple[MonthlyDemand, ...]:
    """A CSV file with columns month (2027-01 or 2027-01-15), peak_requests_per_s and, where known,
    mean_requests_per_s. Raises ScenarioError naming what is wrong."""
    share = mean_share(scenario)
    found = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for line, row in enumerate(csv.DictReader(file), 2):
                where = f"{path}, line {line}"
                peak = _rate(row, "peak_requests_per_s", where)
                if peak is None:
                    raise ScenarioError(f"{where}: peak_requests_per_s is missing; give the month's highest rate")
                mean = _rate(row, "mean_requests_per_s", where)
                if mean is not None and mean > peak:
                    raise ScenarioError(f"{where}: mean_requests_per_s={mean:g} is above the peak of {peak:g}")
                found.append(
                    MonthlyDemand(_month(row.get("month") or "", where), peak, peak * share if mean is None else mean)
                )
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"demand file {path} cannot be read ({error}); give a CSV file") from None
    if not found:
        raise ScenarioError(f"demand file {path} has no rows; give columns month and peak_requests_per_s")
    if len(found) > MOST_MONTHS:
        raise ScenarioError(f"demand file {path} has {len(found)} months; give {MOST_MONTHS} at most")
    for before, after in itertools.pairwise(found):
        if after.month != later(before.month, 1):
            raise ScenarioError(f"demand file {path}: {after.month:%Y-%m} does not follow {before.month:%Y-%m}")
    return tuple(found)


def later(month: date, months: int) -> date:
    """
    >>> later(date(2026, 11, 1), 3)
    datetime.date(2027, 2, 1)
    """
    whole = month.year * MONTHS_A_YEAR + month.month - 1 + months
    return date(whole // MONTHS_A_YEAR, whole % MONTHS_A_YEAR + 1, 1)


def _rate(row: dict[str, str], name: str, where: str) -> float | None:
    text = (row.get(name) or "").strip()
    if not text:
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise ScenarioError(f"{where}: {name}={text} is not a rate above 0")
    return rate


def _month(text: str, where: str) -> date:
    return month_of(text, f"{where}: month")


def month_of(text: str, what: str) -> date:
    """First day of the month that '2027-01' or a day in it names. Raises ScenarioError."""
    try:
        return date.fromisoformat(f"{text.strip()[:7]}-01")
    except ValueError:
        raise ScenarioError(f"{what}={text!r} is not a month; write it as 2027-01") from None

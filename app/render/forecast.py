"""The report of a forecast."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from app.render.questions import cost_note
from app.render.tables import assumptions_text, number, simple_table
from simulator.questions.forecast import Forecast
from simulator.scenario import Scenario

PER_THOUSAND = 1e-3


def forecast_report(scenario: Scenario, answer: Forecast) -> RenderableType:
    """Verdict, then a row a month, then what it rests on."""
    parts: list[RenderableType] = []
    if answer.months:
        last = answer.months[-1]
        total = answer.totals[answer.convention]
        parts.append(
            Text(
                f"{len(answer.months)} months: {last.gpus} accelerators in the end, {last.spare_gpus} of them spare; "
                f"{number(total, 0, PER_THOUSAND)} thousand USD in all ({answer.convention}).",
                style="bold",
            )
        )
    table = simple_table(
        "Month", "peak\nreq/s", "mean", "GPUs", "spare", "buy", "used", "kUSD", "on\ndemand", "USD/Mtok\ninput",
        "cached", "output", "MWh", "t CO2", "API\nkUSD",
    )  # fmt: skip
    for month in answer.months:
        table.add_row(
            f"{month.month:%Y-%m}",
            number(month.peak_rate, 1),
            number(month.mean_rate, 1),
            str(month.gpus),
            str(month.spare_gpus),
            str(month.bought),
            f"{month.utilisation:.0%}",
            number(month.usd[answer.convention], 0, PER_THOUSAND),
            number(month.usd["on_demand"], 0, PER_THOUSAND),
            number(month.usd_per_mtok_input, 3),
            number(month.usd_per_mtok_cached, 4),
            number(month.usd_per_mtok_output, 3),
            number(month.kwh, 0, PER_THOUSAND),
            number(month.co2_kg, 0, PER_THOUSAND),
            number(month.api_usd, 0, PER_THOUSAND),
        )
    parts.append(table)
    if answer.months:
        for cohort in answer.months[-1].cohorts:
            spare = ", ".join(f"{more} of {pool}" for pool, more in cohort.spare.items())
            parts.append(Text(f"{cohort.generation}: {cohort.layout}; spare instances: {spare}."))
    if (even := answer.break_even) is not None:
        when = "in no month" if even.month is None else f"from {even.month:%Y-%m} on"
        parts.append(
            Text(
                f"Own accelerators cost less than the API {when}; the last month's fleet breaks even at a mean of "
                f"{even.rate:.3g} requests/s. In all {even.usd_own:,.0f} USD against {even.usd_api:,.0f}.",
                style="bold",
            )
        )
    totals = "; ".join(f"{name} {number(usd, 0)}" for name, usd in answer.totals.items())
    said = (
        f"USD over all months by convention: {totals}. Owned and rented accelerators stay when demand falls, on demand "
        f"they go.\nSpares: enough instances are up {answer.availability:.3%} of the time ({answer.fault_source}).\n"
        f"{cost_note(scenario)}"
    )
    return Group(*parts, Text(said, style="dim"), assumptions_text(answer.assumptions))

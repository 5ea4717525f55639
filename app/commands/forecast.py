"""`moeplan forecast`: accelerators and money over the months to come."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from app.commands.options import JsonOutput, SeedInput, above_zero
from app.commands.question_options import (
    AddressInput,
    CsvOutput,
    ExecutorKind,
    HtmlOutput,
    ReplicationsInput,
    ScenarioInput,
    check_outputs,
    deliver,
    executor_of,
)


def forecast(
    scenario: ScenarioInput = None,
    growth: Annotated[str, typer.Option(metavar="GROWTH", help="Of the peak rate: 3x/yr, 5%/mo.")] = "2x/yr",
    horizon: Annotated[str, typer.Option(metavar="SPAN", help="Months to look ahead: 12mo, 2yr.")] = "12mo",
    start: Annotated[
        str | None, typer.Option(metavar="MONTH", help="First month, as 2027-01; left out: this one.")
    ] = None,
    demand: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv", help="Columns month, peak_requests_per_s and mean_requests_per_s, for growth."
        ),
    ] = None,
    generation: Annotated[
        list[str] | None,
        typer.Option(metavar="GPU[@STACK][=MONTH]", help="Accelerator on sale, from a month on; may be repeated."),
    ] = None,
    availability: Annotated[
        float, typer.Option(metavar="SHARE", help="Of the time in which enough instances are up.")
    ] = 0.999,
    api_price: Annotated[
        str | None,
        typer.Option(metavar="IN,OUT[,CACHED]", help="USD per million tokens that an API asks, to compare with."),
    ] = None,
    pue: Annotated[
        float, typer.Option(help="Power of the hall over that of what is in it.", callback=above_zero)
    ] = 1.2,
    co2: Annotated[float, typer.Option(metavar="G/KWH", help="CO2 of the grid's power.", callback=above_zero)] = 373.0,
    replications: ReplicationsInput = 1,
    executor: ExecutorKind = "processes",
    address: AddressInput = None,
    seed: SeedInput = None,
    json_file: JsonOutput = None,
    csv_file: CsvOutput = None,
    html_file: HtmlOutput = None,
) -> None:
    """Say for each month what has to be bought, with spares for faults, and what it costs, draws and emits."""
    from app.output import progress_bar
    from app.render.forecast import forecast_report
    from app.scenarios import default_scenario, with_changes
    from simulator.questions.demand import grown, month_of, read_demand
    from simulator.questions.forecast import Generation
    from simulator.questions.forecast import forecast as ask
    from simulator.questions.money import ApiPrice
    from simulator.questions.sides import usual_stack
    from simulator.scenario import load_scenario

    check_outputs(json_file, csv_file, html_file)
    work = executor_of(executor, address)
    asked = with_changes(load_scenario(scenario) if scenario else default_scenario(), seed=seed)
    first = date.today().replace(day=1) if start is None else month_of(start, "--start")
    months = grown(asked, growth, horizon, first) if demand is None else read_demand(demand, asked)
    on_sale = []
    for text in generation or ():
        name, _, month = text.partition("=")
        gpu, _, stack = name.partition("@")
        on_sale.append(
            Generation(
                gpu, stack or usual_stack(asked, gpu), month_of(month, f"--generation {text}") if month else None
            )
        )
    api = None if api_price is None else ApiPrice.of(api_price)
    with progress_bar() as progress:
        answer = ask(
            asked,
            months,
            generations=on_sale,
            availability=availability,
            api=api,
            pue=pue,
            grams_co2_per_kwh=co2,
            replications=replications,
            executor=work,
            progress=progress,
        )
    deliver(answer, lambda: forecast_report(asked, answer), json_file, csv_file, html_file)

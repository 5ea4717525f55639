"""`moeplan capacity`: the most traffic that a cluster carries."""

from __future__ import annotations

import typer

from app.commands.options import JsonOutput, SeedInput
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
from app.errors import EXIT_NO_ANSWER


def capacity(
    scenario: ScenarioInput = None,
    gains: bool = typer.Option(True, help="Ask as well what one instance more of each pool brings."),
    replications: ReplicationsInput = 3,
    executor: ExecutorKind = "processes",
    address: AddressInput = None,
    seed: SeedInput = None,
    json_file: JsonOutput = None,
    csv_file: CsvOutput = None,
    html_file: HtmlOutput = None,
) -> None:
    """Find the highest rate at which a deployment keeps its limits, and what binds there.

    A scenario without a [deployment] is planned first, and the first design is looked at. Exit code 1: the limits are
    not kept at any rate.
    """
    from app.output import progress_bar
    from app.render.questions import capacity_report
    from app.scenarios import default_scenario, with_changes
    from simulator.deploy.planned import recommended
    from simulator.questions.capacity import capacity as ask
    from simulator.scenario import load_scenario

    check_outputs(json_file, csv_file, html_file)
    work = executor_of(executor, address)
    asked = with_changes(load_scenario(scenario) if scenario else default_scenario(), seed=seed)
    with progress_bar() as progress:
        placed = recommended(asked, progress)
        answer = ask(placed, replications=replications, gains=gains, executor=work, progress=progress)
    deliver(answer, lambda: capacity_report(placed, answer), json_file, csv_file, html_file)
    if answer.rate <= 0:
        raise typer.Exit(EXIT_NO_ANSWER)

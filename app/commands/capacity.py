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
    end,
    executor_of,
    write_csv,
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
    from app.output import STDOUT, check_writable, progress_bar, stdout_console, write_json
    from app.render.questions import capacity_report
    from app.scenarios import default_scenario, with_changes
    from simulator.deploy.planned import recommended
    from simulator.questions.capacity import capacity as ask
    from simulator.scenario import load_scenario

    for path, flag in ((json_file, "--json"), (csv_file, "--csv"), (html_file, "--html")):
        check_writable(path, flag)
    work = executor_of(executor, address)
    asked = with_changes(load_scenario(scenario) if scenario else default_scenario(), seed=seed)
    with progress_bar() as progress:
        placed = recommended(asked, progress)
        answer = ask(placed, replications=replications, gains=gains, executor=work, progress=progress)
    write_json(answer.to_json(), json_file)
    write_csv(answer.to_frame(), csv_file)
    if html_file is not None:
        answer.figure().write_html(html_file, include_plotlyjs=True)
    if STDOUT not in (json_file, csv_file):
        stdout_console().print(capacity_report(placed, answer))
    end(answer.complete)
    if answer.rate <= 0:
        raise typer.Exit(EXIT_NO_ANSWER)

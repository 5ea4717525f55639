"""`moeplan sensitivity`: what cost and chance hang on."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from app.commands.options import JsonOutput, SeedInput
from app.commands.question_options import (
    AddressInput,
    CsvOutput,
    ExecutorKind,
    HtmlOutput,
    ScenarioInput,
    check_outputs,
    deliver,
    executor_of,
)


def sensitivity(
    scenario: ScenarioInput = None,
    samples: Annotated[
        int, typer.Option("--samples", metavar="N", min=0, help="Runs for Sobol indices; 0: the tornado alone.")
    ] = 512,
    vary: Annotated[
        list[str] | None,
        typer.Option(metavar="INPUT=LOW:HIGH", help="Range of factors of one input, for the usual; may be repeated."),
    ] = None,
    executor: ExecutorKind = "processes",
    address: AddressInput = None,
    seed: SeedInput = None,
    json_file: JsonOutput = None,
    csv_file: CsvOutput = None,
    html_file: HtmlOutput = None,
) -> None:
    """Say which of price, traffic, bandwidths and parameters of the fit a deployment's cost and chance hang on.

    A scenario without a [deployment] is planned first, and the first design is looked at.
    """
    from app.output import progress_bar
    from app.render.sensitivity import sensitivity_report
    from app.scenarios import default_scenario, with_changes
    from simulator.deploy.planned import recommended
    from simulator.questions.sensitivity import sensitivity as ask
    from simulator.scenario import load_scenario

    check_outputs(json_file, csv_file, html_file)
    work = executor_of(executor, address)
    asked = with_changes(load_scenario(scenario) if scenario else default_scenario(), seed=seed)
    with progress_bar() as progress:
        placed = recommended(asked, progress)
        answer = ask(placed, samples=samples, ranges=_ranges(vary or []), executor=work, progress=progress)
    deliver(answer, lambda: sensitivity_report(placed, answer), json_file, csv_file, html_file)


def _ranges(texts: list[str]) -> dict[str, tuple[float, float]]:
    found = {}
    for text in texts:
        parts = re.fullmatch(r"\s*([a-z_.]+)\s*=\s*([\d.]+)\s*:\s*([\d.]+)\s*", text)
        try:
            assert parts is not None
            found[parts[1]] = (float(parts[2]), float(parts[3]))
        except (AssertionError, ValueError):
            raise typer.BadParameter(f"--vary {text!r} is not understood; write it as rate=0.5:2") from None
    return found

"""`moeplan frontier`: speed for one user against throughput and cost."""

from __future__ import annotations

from typing import Annotated

import typer

from app.commands.options import JsonOutput, SeedInput, whole_above_zero
from app.commands.question_options import (
    AddressInput,
    CsvOutput,
    ExecutorKind,
    HtmlOutput,
    PointsInput,
    ScenarioInput,
    check_outputs,
    deliver,
    executor_of,
)


def frontier(
    scenario: ScenarioInput = None,
    gpu: Annotated[list[str] | None, typer.Option(help="Accelerator, or accelerator@stack; may be repeated.")] = None,
    model: Annotated[str | None, typer.Option(help="Model preset, or a Hugging Face config.json.")] = None,
    isl: Annotated[int | None, typer.Option(help="Prompt tokens.", callback=whole_above_zero)] = None,
    osl: Annotated[int | None, typer.Option(help="Output tokens.", callback=whole_above_zero)] = None,
    verify: Annotated[int, typer.Option(min=0, help="Points of each curve that are simulated.")] = 4,
    points: PointsInput = None,
    executor: ExecutorKind = "processes",
    address: AddressInput = None,
    seed: SeedInput = None,
    json_file: JsonOutput = None,
    csv_file: CsvOutput = None,
    html_file: HtmlOutput = None,
) -> None:
    """Trade speed for one user against throughput and cost, by accelerator, stack and form of serving."""
    from app.output import progress_bar
    from app.render.questions import frontier_report
    from app.scenarios import default_scenario, with_changes
    from simulator.questions.frontier import frontier as ask
    from simulator.questions.published import published_points
    from simulator.scenario import load_scenario

    check_outputs(json_file, csv_file, html_file)
    work = executor_of(executor, address)
    asked = with_changes(
        load_scenario(scenario) if scenario else default_scenario(), model=model, isl=isl, osl=osl, seed=seed
    )
    seen = () if points is None else published_points(points, asked)
    parts = [(name, stack or None) for name, _, stack in (text.partition("@") for text in gpu or ())]
    with progress_bar() as progress:
        answer = ask(asked, parts, verified=verify, published=seen, executor=work, progress=progress)
    deliver(answer, lambda: frontier_report(asked, answer), json_file, csv_file, html_file)

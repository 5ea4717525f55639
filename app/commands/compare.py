"""`moeplan compare`: designs, accelerators or stacks at equal speed for one user."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from app.commands.options import JsonOutput, SeedInput, above_zero, whole_above_zero
from app.commands.quantities import tpot_seconds
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

if TYPE_CHECKING:
    from simulator.questions.sides import Side
    from simulator.scenario import Scenario

SIDE = "Accelerator (h200, h200@vllm), scenario file with a deployment, or PLAN.json#N."
Text = Annotated[str | None, typer.Option(metavar="SIDE", help="One more side.")]


def compare(
    scenario: ScenarioInput = None,
    a: Annotated[str, typer.Option("--a", metavar="SIDE", help=SIDE)] = "h200",
    b: Annotated[str, typer.Option("--b", metavar="SIDE", help="What is compared with it.")] = "b300",
    c: Text = None,
    d: Text = None,
    form: Annotated[
        Literal["disaggregated", "colocated"] | None,
        typer.Option("--form", help="Of serving, for accelerators; left out: the better of both."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model preset, or a Hugging Face config.json.")] = None,
    isl: Annotated[int | None, typer.Option(help="Prompt tokens.", callback=whole_above_zero)] = None,
    osl: Annotated[int | None, typer.Option(help="Output tokens.", callback=whole_above_zero)] = None,
    tpot: Annotated[
        float | None,
        typer.Option(metavar="TIME", help="Time per output token at which sides are equal: 50ms.", parser=tpot_seconds),
    ] = None,
    speed: Annotated[
        float | None,
        typer.Option("--speed", metavar="TOK/S", help="The same as tokens a second for one user.", callback=above_zero),
    ] = None,
    points: PointsInput = None,
    executor: ExecutorKind = "processes",
    address: AddressInput = None,
    seed: SeedInput = None,
    json_file: JsonOutput = None,
    csv_file: CsvOutput = None,
    html_file: HtmlOutput = None,
) -> None:
    """Compare two to four sides at equal speed for one user and at their peaks, and say why they differ."""
    from app.output import progress_bar
    from app.render.questions import comparison_report
    from app.scenarios import default_scenario, with_changes
    from simulator.questions.compare import compare as ask
    from simulator.questions.published import published_points
    from simulator.scenario import load_scenario

    check_outputs(json_file, csv_file, html_file)
    if speed is not None and tpot is not None:
        raise typer.BadParameter("--speed and --tpot say the same; leave one of them out")
    work = executor_of(executor, address)
    asked = with_changes(
        load_scenario(scenario) if scenario else default_scenario(),
        model=model,
        isl=isl,
        osl=osl,
        tpot_s=tpot,
        seed=seed,
    )
    seen = () if points is None else published_points(points, asked)
    with progress_bar() as progress:
        sides = [_side(text, asked, form) for text in (a, b, c, d) if text is not None]
        equal_at = speed or (1 / tpot if tpot else None)
        answer = ask(asked, sides, tok_s_per_user=equal_at, published=seen, executor=work, progress=progress)
    deliver(answer, lambda: comparison_report(asked, answer), json_file, csv_file, html_file)


def _side(text: str, scenario: Scenario, form: Literal["disaggregated", "colocated"] | None) -> Side:
    from simulator.deploy.planned import read_design
    from simulator.questions.sides import Side, accelerator_side, deployment_side
    from simulator.scenario import load_scenario

    file, _, number = text.partition("#")
    if file.endswith(".json") and number.isdecimal():
        return Side(text, (read_design(Path(file), int(number)).deployment,))
    if text.endswith(".toml"):
        return deployment_side(text, load_scenario(text))
    gpu, _, stack = text.partition("@")
    return accelerator_side(scenario, gpu, stack or None, form)

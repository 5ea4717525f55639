"""`moeplan plan`: which accelerators, how many, how split, at what cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.commands.options import JsonOutput, SeedInput, TraceInput, whole_above_zero
from app.commands.quantities import requests_per_s, tpot_seconds, ttft_seconds
from app.errors import EXIT_NO_ANSWER


def plan(
    scenario: Annotated[
        Path | None,
        typer.Argument(metavar="[SCENARIO.toml]", help="Scenario file; left out: the default that ships."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model preset, or a Hugging Face config.json.")] = None,
    gpu: Annotated[list[str] | None, typer.Option(help="Accelerator to choose from; may be repeated.")] = None,
    rate: Annotated[
        float | None,
        typer.Option(metavar="RATE", help="Requests per second; or 600/min, 10/s.", parser=requests_per_s),
    ] = None,
    trace: TraceInput = None,
    isl: Annotated[int | None, typer.Option(help="Prompt tokens.", callback=whole_above_zero)] = None,
    osl: Annotated[int | None, typer.Option(help="Output tokens.", callback=whole_above_zero)] = None,
    ttft: Annotated[
        float | None,
        typer.Option(metavar="TIME", help="Limit of the time to first token: 3s, 500ms.", parser=ttft_seconds),
    ] = None,
    tpot: Annotated[
        float | None,
        typer.Option(metavar="TIME", help="Limit of the time per output token: 50ms, 0.05.", parser=tpot_seconds),
    ] = None,
    max_gpus: Annotated[
        int | None, typer.Option(help="Accelerators a design may have at most.", callback=whole_above_zero)
    ] = None,
    confidence: Annotated[
        float | None,
        typer.Option(
            metavar="CHANCE",
            help="Chance with which each limit has to hold, errors of the model counted: 0.5 to below 1. "
            "Left out: chances are only shown.",
        ),
    ] = None,
    seed: SeedInput = None,
    json_file: JsonOutput = None,
) -> None:
    """Rank the cluster designs that serve the traffic inside the latency limits.

    Options change what the scenario file says. Exit code 1: no design meets the limits; the answer says which
    limit binds, and by how much.
    """
    from app.output import STDOUT, check_writable, progress_bar, stdout_console, write_json
    from app.render.plan import plan_report
    from app.scenarios import default_scenario, with_changes
    from simulator.scenario import load_scenario

    check_writable(json_file, "--json")
    asked = with_changes(
        load_scenario(scenario) if scenario else default_scenario(),
        model=model,
        gpus=gpu or (),
        rate=rate,
        trace=trace,
        isl=isl,
        osl=osl,
        ttft_s=ttft,
        tpot_s=tpot,
        max_gpus=max_gpus,
        confidence=confidence,
        seed=seed,
    )
    from simulator.planner.search import plan as search

    with progress_bar() as progress:
        answer = search(asked, progress=progress).to_json()
    answer["scenario"] = asked.model_dump(mode="json", exclude_none=True)  # what `export` gives back
    write_json(answer, json_file)
    if json_file != STDOUT:
        console = stdout_console()
        console.print(plan_report(asked, answer, console.width))
    if not any(design["meets_slo"] for design in answer["designs"]):
        raise typer.Exit(EXIT_NO_ANSWER)

"""`moeplan simulate`: replay traffic on one deployment."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from app.options import JsonOutput, SeedInput, TraceInput


def simulate(
    scenario: Annotated[Path, typer.Argument(metavar="SCENARIO.toml", help="Scenario with a [deployment].")],
    trace: TraceInput = None,
    seed: SeedInput = None,
    json_file: JsonOutput = None,
    requests: Annotated[
        Path | None, typer.Option("--requests", metavar="FILE.csv", help="Write one row per request.")
    ] = None,
) -> None:
    """Run a deployment through the discrete-event model, request by request."""
    from app.output import STDOUT, check_writable, progress_bar, stdout_console, write_json
    from app.render_simulation import simulation_report
    from app.scenarios import with_changes
    from simulator.des.scenario import load_scenario

    check_writable(json_file, "--json")
    check_writable(requests, "--requests")
    asked = with_changes(load_scenario(scenario), trace=trace, seed=seed)
    from simulator.des.cluster import simulate as run

    with progress_bar() as progress:
        result = run(asked, progress=partial(progress, "requests"))
    summary = result.summary()
    write_json(summary, json_file)
    if requests is not None:
        result.requests.to_csv(requests, index=False)
    if json_file != STDOUT:
        stdout_console().print(simulation_report(asked, summary))

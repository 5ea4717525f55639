"""`moeplan simulate`: replay traffic on one deployment."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from app.options import JsonOutput, SeedInput, TraceInput, above_zero


def simulate(
    scenario: Annotated[Path, typer.Argument(metavar="SCENARIO.toml", help="Scenario with a deployment table.")],
    trace: TraceInput = None,
    seed: SeedInput = None,
    json_file: JsonOutput = None,
    requests: Annotated[
        Path | None, typer.Option("--requests", metavar="FILE.csv", help="Write one row per request (or FILE.parquet).")
    ] = None,
    timeline: Annotated[
        Path | None,
        typer.Option("--timeline", metavar="FILE.json", help="Write steps and faults, for ui.perfetto.dev."),
    ] = None,
    series: Annotated[
        Path | None, typer.Option("--series", metavar="FILE.csv", help="Write queues, KV and power on a time grid.")
    ] = None,
    grid: Annotated[
        float, typer.Option("--grid", metavar="SECONDS", help="Grid of --series.", callback=above_zero)
    ] = 1.0,
    replications: Annotated[
        int | None,
        typer.Option("--replications", metavar="N", min=2, help="Run up to N seeds; means with 95% intervals."),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            metavar="SHARE",
            help="Stop --replications once the interval of p99 TTFT is this share of its mean.",
            callback=above_zero,
        ),
    ] = None,
) -> None:
    """Run a deployment through the discrete-event model, request by request."""
    from app.output import STDOUT, check_writable, progress_bar, stdout_console, write_json
    from app.render_simulation import simulation_report
    from app.scenarios import with_changes
    from simulator.des.scenario import load_scenario

    check_writable(json_file, "--json")
    check_writable(requests, "--requests")
    check_writable(timeline, "--timeline")
    check_writable(series, "--series")
    asked = with_changes(load_scenario(scenario), trace=trace, seed=seed)
    from simulator.des.bands import of_run, of_runs
    from simulator.des.cluster import simulate as run
    from simulator.des.recorder import Recorder
    from simulator.des.request_table import write_table
    from simulator.des.series import series as time_series
    from simulator.des.timeline import write_timeline

    if replications is not None:
        from app.render_simulation import replication_report
        from simulator.des.replications import replicate

        if any(path is not None for path in (requests, timeline, series)):
            raise typer.BadParameter("--replications keeps no records of single runs; leave the other files out")
        with progress_bar() as progress:
            seen = replicate(asked, runs=replications, tolerance=tolerance, progress=partial(progress, "runs"))
        found = seen.to_json() | {"uncertainty": of_runs(seen, asked)}
        write_json(found, json_file)
        if json_file != STDOUT:
            stdout_console().print(replication_report(found))
        return
    with progress_bar() as progress:
        recorder = Recorder() if timeline is not None or series is not None else None
        result = run(asked, progress=partial(progress, "requests"), recorder=recorder)
    summary = result.summary() | {"uncertainty": of_run(result, asked)}
    write_json(summary, json_file)
    if requests is not None:
        write_table(result.requests, requests)
    if recorder is not None and timeline is not None:
        write_timeline(timeline, recorder, result.run)
    if recorder is not None and series is not None:
        write_table(time_series(recorder, result, grid), series)
    if json_file != STDOUT:
        stdout_console().print(simulation_report(asked, summary))

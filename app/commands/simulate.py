"""`moeplan simulate`: replay traffic on one deployment, or on those of several models that share a cluster."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.commands.options import (
    JsonOutput,
    KvDtype,
    MemoryShare,
    OwnPrice,
    PowerCap,
    Prices,
    SeedInput,
    TraceInput,
    above_zero,
    set_knobs,
)
from app.commands.simulation_files import SimulationFiles
from app.commands.trace_options import BlockTokensInput, ColumnsInput, TimeUnitInput, trace_keys

if TYPE_CHECKING:
    from simulator.scenario import SharedCluster

KNOB_FLAGS = ("--share", "--kv-dtype", "--power-cap", "--usd-per-hour")


def simulate(
    scenario: Annotated[
        Path, typer.Argument(metavar="SCENARIO.toml", help="Scenario with a deployment table, or with models.")
    ],
    trace: TraceInput = None,
    columns: ColumnsInput = None,
    time_unit: TimeUnitInput = None,
    block_tokens: BlockTokensInput = None,
    share: MemoryShare = None,
    kv_dtype: KvDtype = None,
    power_cap: PowerCap = None,
    usd_per_hour: OwnPrice = None,
    prices: Prices = None,
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
    from app.render.simulation import simulation_report
    from app.scenarios import with_changes
    from simulator.scenario import SharedCluster, load_any

    check_writable(json_file, "--json")
    check_writable(requests, "--requests")
    check_writable(timeline, "--timeline")
    check_writable(series, "--series")
    found = load_any(scenario)
    knobs = set_knobs(share, kv_dtype, power_cap, usd_per_hour)
    files = SimulationFiles(requests, timeline, series, grid)
    if replications is not None and files.wanted:
        raise typer.BadParameter("--replications keeps no records of single runs; leave the other files out")
    if isinstance(found, SharedCluster):
        alone: dict[str, object] = {"--trace": trace, "--replications": replications, "--prices": prices}
        alone |= dict(zip(KNOB_FLAGS, (share, kv_dtype, power_cap, usd_per_hour), strict=True))
        for flag, given in alone.items():
            if given is not None:
                raise typer.BadParameter(f"{flag} is for one model, and {scenario} has several; leave it out")
        _simulate_shared(found, seed, json_file, files)
        return
    asked = with_changes(
        found,
        trace=trace,
        trace_keys=trace_keys(columns, time_unit, block_tokens),
        seed=seed,
        prices=prices,
        knobs=knobs,
    )
    from simulator.des.simulate import simulate as run
    from simulator.uncertainty.bands import of_run, of_runs

    if replications is not None:
        from app.render.simulation import replication_report
        from simulator.des.replicate import replicate

        with progress_bar() as progress:
            seen = replicate(asked, runs=replications, tolerance=tolerance, progress=partial(progress, "runs"))
        summary = seen.to_json() | {"uncertainty": of_runs(seen, asked)}
        write_json(summary, json_file)
        if json_file != STDOUT:
            stdout_console().print(replication_report(summary))
        return
    recorder = files.recorder()
    with progress_bar() as progress:
        result = run(asked, progress=partial(progress, "requests"), recorder=recorder)
    summary = result.summary().to_json() | {"uncertainty": of_run(result, asked)}
    write_json(summary, json_file)
    files.write({"": (result, recorder)})
    if json_file != STDOUT:
        stdout_console().print(simulation_report(asked, summary))


def _simulate_shared(asked: SharedCluster, seed: int | None, json_file: Path | None, files: SimulationFiles) -> None:
    """Play several models on one cluster."""
    from app.output import STDOUT, progress_bar, stdout_console, write_json
    from app.render.simulation import shared_report
    from simulator.des.simulate_models import simulate_shared
    from simulator.uncertainty.bands import of_run

    recorders = {served.name: files.recorder() for served in asked.models}
    told = {name: recorder for name, recorder in recorders.items() if recorder is not None}
    with progress_bar() as progress:
        result = simulate_shared(asked, seed=seed, progress=partial(progress, "requests"), recorders=told)
    summary = result.summary().to_json()
    for name, part in result.models.items():
        summary["models"][name]["uncertainty"] = of_run(part.result, part.scenario)
    write_json(summary, json_file)
    files.write({name: (part.result, recorders[name]) for name, part in result.models.items()})
    if json_file != STDOUT:
        stdout_console().print(shared_report({name: part.scenario for name, part in result.models.items()}, summary))

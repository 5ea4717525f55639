"""`moeplan plan`: which accelerators, how many, how split, at what cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    set_knobs,
    whole_above_zero,
)
from app.commands.quantities import draft_depth, requests_per_s, tpot_seconds, ttft_seconds
from app.commands.trace_options import BlockTokensInput, ColumnsInput, TimeUnitInput, trace_keys
from app.errors import EXIT_NO_ANSWER, InputError


def plan(
    scenario: Annotated[
        Path | None,
        typer.Argument(metavar="[SCENARIO.toml]", help="Scenario file; left out: the default that ships."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model preset, or a checkpoint: its folder or config.json.")] = None,
    gpu: Annotated[list[str] | None, typer.Option(help="Accelerator to choose from; may be repeated.")] = None,
    rate: Annotated[
        float | None,
        typer.Option(metavar="RATE", help="Requests per second; or 600/min, 10/s.", parser=requests_per_s),
    ] = None,
    trace: TraceInput = None,
    columns: ColumnsInput = None,
    time_unit: TimeUnitInput = None,
    block_tokens: BlockTokensInput = None,
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
    gpus: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Find the highest rate that N accelerators carry inside the limits.",
            callback=whole_above_zero,
        ),
    ] = None,
    stack: Annotated[
        list[str] | None,
        typer.Option(help="Stack to plan with; may be repeated. Left out: the best of those fitted, or of your own."),
    ] = None,
    form: Annotated[str | None, typer.Option(help="disaggregated, colocated or both.")] = None,
    drafts: Annotated[
        Any,
        typer.Option(metavar="auto|off|N", help="Tokens drafted in a decode step.", parser=draft_depth),
    ] = None,
    share: MemoryShare = None,
    kv_dtype: KvDtype = None,
    power_cap: PowerCap = None,
    usd_per_hour: OwnPrice = None,
    prices: Prices = None,
    seed: SeedInput = None,
    json_file: JsonOutput = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write a line for each design as CSV.")
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write each design there as a scenario that `moeplan simulate` runs."),
    ] = None,
) -> None:
    """Rank the cluster designs that serve the traffic inside the latency limits.

    Options change what the scenario file says. Exit code 1: no design meets the limits; the answer says which
    limit binds, and by how much.
    """
    from app.output import STDOUT, check_writable, progress_bar, stdout_console, write_json
    from app.render.plan import plan_report
    from app.scenarios import FORMS, default_scenario, with_changes
    from simulator.scenario import load_scenario

    check_writable(json_file, "--json")
    check_writable(csv_file, "--csv")
    if form not in (None, "both", *FORMS):
        raise InputError(f"--form {form!r} is not known; use disaggregated, colocated or both")
    if save is not None and save.exists() and not save.is_dir():
        raise InputError(f"--save {save} is a file; name a folder")
    asked = with_changes(
        load_scenario(scenario) if scenario else default_scenario(),
        model=model,
        gpus=gpu or (),
        rate=rate,
        trace=trace,
        trace_keys=trace_keys(columns, time_unit, block_tokens),
        isl=isl,
        osl=osl,
        ttft_s=ttft,
        tpot_s=tpot,
        max_gpus=max_gpus,
        confidence=confidence,
        stacks=stack or (),
        form=form,
        drafts=drafts,
        seed=seed,
        prices=prices,
        knobs=set_knobs(share, kv_dtype, power_cap, usd_per_hour),
    )
    with progress_bar() as progress:
        if gpus is None:
            from simulator.planner.search import plan as search

            found = search(asked, progress=progress)
        else:
            from simulator.planner.capacity import most_traffic

            found = most_traffic(asked, gpus, progress)
    answer = found.to_json()
    answer["scenario"] = asked.model_dump(mode="json", exclude_none=True)  # what `export` gives back
    write_json(answer, json_file)
    if csv_file is not None:
        from app.render.plan_frames import designs_csv

        csv_file.write_text(designs_csv(answer), encoding="utf-8")
    if save is not None:
        from app.commands.plan_files import save_designs

        save_designs(found.scenarios, save)
    if json_file != STDOUT:
        console = stdout_console()
        console.print(plan_report(asked, answer, console.width))
    if not any(design["meets_slo"] for design in answer["designs"]):
        raise typer.Exit(EXIT_NO_ANSWER)

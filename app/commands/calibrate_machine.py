"""`moeplan calibrate measure | fit | validate`: this machine's own profile. Needs the extra `runtime`, read inside."""

from __future__ import annotations

import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from app.commands.options import JsonOutput, TraceInput, above_zero, whole_above_zero
from app.errors import InputError

LOADS = "0.3,0.6,0.9,1.5"  # shares of what the profile says fits [assumed: idle, usual, full, overloaded]
MOST_LOAD = 10  # of those [assumed: beyond it only the queue grows]


def _require_torch() -> None:
    if find_spec("torch") is None:
        raise InputError("this command needs the package `torch`; install the extra: pip install 'moeplan[runtime]'")


def measure(
    output: Annotated[Path, typer.Option("--output", metavar="FILE.jsonl", help="Grows by a line a measurement.")],
    device: Annotated[str, typer.Option(help="cuda or cpu; auto takes a GPU if there is one.")] = "auto",
    preset: Annotated[str, typer.Option(help="quick or full.")] = "quick",
    threads: Annotated[int, typer.Option(callback=whole_above_zero, help="CPU threads.")] = 1,
) -> None:
    """Measure the runtime's ops and steps on this machine. Goes on where a killed run stopped."""
    _require_torch()
    from app.output import check_writable, progress_bar, stdout_console
    from app.render.machine import broken_lines
    from calibration.microbench.device import detect
    from calibration.microbench.measure import measure as run
    from calibration.microbench.preset import preset_of

    check_writable(output, "--output")
    machine = detect(device, threads)
    try:
        with progress_bar() as progress:
            outcome = run(machine, preset_of(machine, preset), output, progress)
    except KeyboardInterrupt:
        typer.echo(f"stopped; the same command goes on with {output}", err=True)
        raise
    console = stdout_console()
    console.print(f"{machine.display_name}: {outcome.measured} items measured, {outcome.resumed} on file before")
    for row in outcome.without:
        console.print(f"skipped, {row.status}: {row.key}")
    if any(row.status == "out of time" for row in outcome.without):
        console.print("the same command again goes on with them")
    for said in broken_lines(outcome.broken):
        console.print(said)
    command = shlex.join(["moeplan", "calibrate", "fit", str(output), "--output", f"{machine.name}@moeplan.json"])
    console.print(f"next: {command}", soft_wrap=True)


def fit(
    measurements: Annotated[Path, typer.Argument(metavar="FILE.jsonl", help="From `calibrate measure`.")],
    output: Annotated[Path, typer.Option("--output", metavar="PROFILE.json", help="The profile to write.")],
    compare: Annotated[Path | None, typer.Option(metavar="OTHER.json", help="Print what differs from it.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Measured points against the fit.")] = None,
    stack: Annotated[str, typer.Option(help="Name of the software stack in the profile.")] = "moeplan",
) -> None:
    """Fit the simulator's own formula to measurements; the profile carries its held-out error."""
    _require_torch()
    from app.output import check_writable, stdout_console
    from app.render.machine import fit_report
    from app.render.own_stack import next_command
    from app.render.profile_comparison import comparison
    from calibration.microbench.fit.profile_fit import fit_machine
    from calibration.microbench.measurement import read
    from hw_profiles import catalog
    from hw_profiles.efficiency_files import read_fit

    check_writable(output, "--output")
    check_writable(plot, "--plot")
    measured = read(measurements)
    other = catalog.fitted(read_fit(compare)) if compare is not None else None
    result = fit_machine(measured, stack)
    output.write_text(result.to_json(), encoding="utf-8")
    console = stdout_console()
    console.print(fit_report(result, measured))
    console.print(next_command(str(output.parent), [result.efficiency.accelerator]), soft_wrap=True)
    if other is not None:
        console.print(comparison(other, result.hardware))
    if plot is not None:
        from app.render.op_parity import op_parity_figure

        op_parity_figure(result.points).write_html(plot, include_plotlyjs=True)


def validate(
    profile: Annotated[Path, typer.Argument(metavar="PROFILE.json", help="From `calibrate fit`.")],
    trace: TraceInput = None,
    preset: Annotated[str, typer.Option(help="Whose model and limits are served: quick or full.")] = "quick",
    layers: Annotated[int, typer.Option(callback=whole_above_zero, help="Layers of the model.")] = 4,
    loads: Annotated[str, typer.Option(help="Arrivals as shares of what the profile says fits.")] = LOADS,
    requests: Annotated[int, typer.Option(callback=whole_above_zero, help="Requests of each replay.")] = 50,
    length_scale: Annotated[float, typer.Option(callback=above_zero, help="Multiplies the trace's tokens.")] = 1.0,
    form: Annotated[str, typer.Option(help="colocated, disaggregated or both.")] = "both",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of arrivals and prompts.")] = 0,
    json_file: JsonOutput = None,
) -> None:
    """Replay a workload through the runtime and through the simulator with the profile; print the difference."""
    _require_torch()
    from dataclasses import asdict

    from app.output import STDOUT, check_writable, progress_bar, stdout_console, write_json
    from app.render.machine import validation_table
    from calibration.microbench.device import detect_for
    from calibration.microbench.preset import preset_of
    from calibration.replay.report import validate as run
    from calibration.replay.subject import FORMS, subject_of
    from calibration.replay.traffic import draw_traffic, read_traffic
    from hw_profiles import catalog

    check_writable(json_file, "--json")
    if form not in ("both", *FORMS):
        raise InputError(f"--form {form!r} is not known; use colocated, disaggregated or both")
    shares = _shares(loads)
    hardware = catalog.load(str(profile) if profile.suffix == ".json" else f"{profile}.json")
    machine = detect_for(hardware.name)
    sweep = preset_of(machine, preset)
    traffic = draw_traffic(sweep, requests, seed) if trace is None else read_traffic(trace, requests, length_scale)
    subject = subject_of(machine, sweep, layers)
    subject.check(traffic)
    forms = FORMS if form == "both" else (form,)
    with progress_bar() as progress:
        reports = run(subject, hardware, traffic, shares, forms, seed, progress)  # type: ignore[arg-type]
    write_json({"machine": machine.to_json(), "reports": [asdict(report) for report in reports]}, json_file)
    if json_file != STDOUT:
        stdout_console().print(validation_table(reports))


def _shares(text: str) -> list[float]:
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = []
    if not shares or not all(0 < share < MOST_LOAD for share in shares):
        raise InputError(f"--loads {text!r} is not a list of shares above 0; write for example {LOADS}")
    return shares

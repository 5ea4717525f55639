"""`moeplan calibrate serving`: a stack of one's own from measured serving points."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from app.commands.options import JsonOutput
from app.commands.setup_options import (
    CommandInput,
    DpInput,
    EngineInput,
    EpInput,
    GpuInput,
    GpusInput,
    ModelInput,
    PointInputs,
    PpInput,
    PrecisionInput,
    TpInput,
    setup_of,
)
from app.errors import InputError


def serving(
    points: PointInputs,
    output: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="Write serving.json and a profile of each stack there, for --profiles."),
    ],
    command: CommandInput = None,
    gpu: GpuInput = None,
    n_gpu: GpusInput = None,
    tp: TpInput = None,
    dp: DpInput = None,
    ep: EpInput = None,
    pp: PpInput = None,
    engine: EngineInput = None,
    model: ModelInput = None,
    precision: PrecisionInput = None,
    json_file: JsonOutput = None,
) -> None:
    """Fit what your engine adds to its kernels to your own serving points; says how well held-out points are predicted.

    Stacks that were fitted into the same folder before stay there.
    """
    from app.output import STDOUT, check_writable, progress_bar, stdout_console, write_json
    from app.render.own_stack import own_report
    from calibration.serving.effects import fit_in
    from calibration.serving.own_stack import TooFewPointsError, fit_own
    from calibration.serving.point_files import read_point_files
    from calibration.serving.predict import prepare
    from calibration.serving.scores import scores_by_metric

    check_writable(json_file, "--json")
    if output.exists() and not output.is_dir():
        raise InputError(f"--output {output} is a file; name a folder")
    setup = setup_of(
        command, gpu=gpu, n_gpu=n_gpu, tp=tp, dp=dp, ep=ep, pp=pp, engine=engine, model=model, precision=precision
    )
    given = read_point_files(points, setup)
    frame = given.frame
    before = fit_in(output)
    with progress_bar() as progress:
        prepared = prepare(frame, progress)
    try:
        own = fit_own(prepared, ", ".join(path.name for path in points), before)
    except TooFewPointsError as error:
        raise InputError(f"{points[0]}: {error}") from None
    try:
        written = own.write(output)
    except OSError as error:
        raise InputError(f"--output {output} cannot be written ({error.strerror}); name a folder of your own") from None
    held_out = None
    if own.held_out is not None:
        held_out = {metric: asdict(found) for metric, found in scores_by_metric(own.held_out).items()}
    answer = {
        "points": len(prepared.points) + len(prepared.unpredicted),
        "fitted": int(own.before["row"].nunique()),
        "left_out": own.left_out,
        "unread": list(given.left_out),
        "before": {metric: asdict(found) for metric, found in scores_by_metric(own.before).items()},
        "held_out": held_out,
        "folder": str(output),
        "files": [path.name for path in written],
    }
    write_json(answer, json_file)
    if json_file != STDOUT:
        stdout_console().print(own_report(answer))

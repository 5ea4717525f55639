"""`moeplan calibrate serving`: a stack of one's own from measured serving points."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from app.commands.options import JsonOutput
from app.errors import InputError


def serving(
    points: Annotated[
        Path, typer.Argument(metavar="POINTS.csv", help="Your measured points; docs/validation.md names the columns.")
    ],
    output: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="Write serving.json and a profile of each stack there, for --profiles."),
    ],
    json_file: JsonOutput = None,
) -> None:
    """Fit what your engine adds to its kernels to your own serving points; says how well held-out points are predicted.

    Stacks that were fitted into the same folder before stay there.
    """
    from app.output import STDOUT, check_writable, progress_bar, stdout_console, write_json
    from app.render.own_stack import own_report
    from calibration.serving.effects import fit_in
    from calibration.serving.own_stack import TooFewPointsError, fit_own
    from calibration.serving.points import read_points
    from calibration.serving.predict import prepare
    from calibration.serving.scores import scores_by_metric

    check_writable(json_file, "--json")
    if output.exists() and not output.is_dir():
        raise InputError(f"--output {output} is a file; name a folder")
    frame = read_points(points)
    before = fit_in(output)
    with progress_bar() as progress:
        prepared = prepare(frame, progress)
    try:
        own = fit_own(prepared, points.name, before)
    except TooFewPointsError as error:
        raise InputError(f"{points}: {error}") from None
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
        "before": {metric: asdict(found) for metric, found in scores_by_metric(own.before).items()},
        "held_out": held_out,
        "folder": str(output),
        "files": [path.name for path in written],
    }
    write_json(answer, json_file)
    if json_file != STDOUT:
        stdout_console().print(own_report(answer))

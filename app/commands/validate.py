"""`moeplan validate`: predictions against measured serving points."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from app.commands.options import JsonOutput


class Predictor(StrEnum):
    """What predicts points."""

    STEADY = "steady"
    DES = "des"


def validate(
    points: Annotated[
        Path, typer.Argument(metavar="POINTS.csv", help="Measured points; docs/validation.md names the columns.")
    ],
    json_file: JsonOutput = None,
    predictions_file: Annotated[
        Path | None,
        typer.Option("--predictions", metavar="FILE.csv", help="Every predicted metric with its p10-p90 band."),
    ] = None,
    by: Annotated[
        Predictor,
        typer.Option(help="steady: in equilibrium, in seconds. des: each point's benchmark is played, in minutes."),
    ] = Predictor.STEADY,
    html: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Parity plot.")] = None,
) -> None:
    """Predict measured serving points one by one, and say how far the predictions are off.

    Points that cannot be predicted are listed with the reason. Stacks that `calibrate serving` has fitted to your own
    points are predicted so with --profiles.
    """
    from app.output import STDOUT, check_writable, progress_bar, stdout_console, write_json
    from app.render.validation import parity_plot, validation_report
    from calibration.serving.by_des.predictions import predictions_by_des
    from calibration.serving.engine_parameters import chosen
    from calibration.serving.points import read_points
    from calibration.serving.predict import predictions, prepare
    from calibration.serving.scores import report

    for path, flag in ((json_file, "--json"), (predictions_file, "--predictions"), (html, "--html")):
        check_writable(path, flag)
    frame = read_points(points)
    fit = chosen()
    with progress_bar() as progress:
        prepared = prepare(frame, progress)
        if by is Predictor.DES:
            prepared, lines = predictions_by_des(prepared, fit, progress)
        else:
            lines = predictions(prepared, fit)
    answer = report(prepared, lines)
    write_json(answer.to_json(), json_file)
    if predictions_file is not None:
        lines.to_csv(predictions_file, index=False, float_format="%.6g")
    if html is not None:
        parity_plot(lines).write_html(html, include_plotlyjs=True)
    if json_file != STDOUT:
        stdout_console().print(validation_report(answer))

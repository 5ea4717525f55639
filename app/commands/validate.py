"""`moeplan validate`: predictions against measured serving points."""

from __future__ import annotations

from enum import StrEnum
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


class Predictor(StrEnum):
    """What predicts points."""

    STEADY = "steady"
    DES = "des"


def validate(
    points: PointInputs,
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
    from calibration.serving.effects import chosen
    from calibration.serving.point_files import read_point_files
    from calibration.serving.predict import predictions, prepare
    from calibration.serving.scores import report

    for path, flag in ((json_file, "--json"), (predictions_file, "--predictions"), (html, "--html")):
        check_writable(path, flag)
    setup = setup_of(
        command, gpu=gpu, n_gpu=n_gpu, tp=tp, dp=dp, ep=ep, pp=pp, engine=engine, model=model, precision=precision
    )
    given = read_point_files(points, setup)
    frame = given.frame
    fit = chosen()
    with progress_bar() as progress:
        prepared = prepare(frame, progress)
        if by is Predictor.DES:
            prepared, lines = predictions_by_des(prepared, fit, progress)
        else:
            lines = predictions(prepared, fit)
    answer = report(prepared, lines)
    write_json(answer.to_json() | {"unread": list(given.left_out)}, json_file)
    if predictions_file is not None:
        lines.to_csv(predictions_file, index=False, float_format="%.6g")
    if html is not None:
        parity_plot(lines).write_html(html, include_plotlyjs=True)
    if json_file != STDOUT:
        console = stdout_console()
        console.print(validation_report(answer))
        for said in given.left_out:
            console.print(f"Left out: {said}")

"""`moeplan import results`: benchmark results as a points file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.commands.options import JsonOutput
from app.commands.setup_options import (
    CommandInput,
    DecodeGpusInput,
    DpInput,
    EngineInput,
    EpInput,
    GpuInput,
    GpusInput,
    ModelInput,
    PointInputs,
    PpInput,
    PrecisionInput,
    PrefillGpusInput,
    TpInput,
    setup_of,
)


def results(
    files: PointInputs,
    output: Annotated[Path, typer.Option(metavar="POINTS.csv", help="Write the points there.")],
    command: CommandInput = None,
    gpu: GpuInput = None,
    n_gpu: GpusInput = None,
    n_prefill_gpu: PrefillGpusInput = None,
    n_decode_gpu: DecodeGpusInput = None,
    tp: TpInput = None,
    dp: DpInput = None,
    ep: EpInput = None,
    pp: PpInput = None,
    engine: EngineInput = None,
    model: ModelInput = None,
    precision: PrecisionInput = None,
    spec_decode: Annotated[
        str | None, typer.Option(metavar="LABEL", help="none, MTP1, EAGLE 3-1-4; else as the launch line says.")
    ] = None,
    date: Annotated[str | None, typer.Option(metavar="YYYY-MM-DD", help="Where results do not say it.")] = None,
    json_file: JsonOutput = None,
) -> None:
    """Read benchmark results into the points that `validate` and `calibrate serving` take.

    A result without what a point needs is listed with what to give, and left out.
    """
    from app.output import STDOUT, check_writable, stdout_console, write_json
    from app.render.points import points_report
    from calibration.serving.point_files import read_result_rows

    check_writable(output, "--output")
    check_writable(json_file, "--json")
    setup = setup_of(
        command, gpu=gpu, n_gpu=n_gpu, n_prefill_gpu=n_prefill_gpu, n_decode_gpu=n_decode_gpu, tp=tp, dp=dp, ep=ep,
        pp=pp, engine=engine, model=model, precision=precision, spec_decode=spec_decode, date=date,
    )  # fmt: skip
    found = read_result_rows(files, setup)
    found.frame.to_csv(output, index=False)
    answer = {
        "points": found.frame.astype(object).where(found.frame.notna(), None).to_dict("records"),
        "left_out": list(found.left_out),
        "output": str(output),
    }
    write_json(answer, json_file)
    if json_file != STDOUT:
        stdout_console().print(points_report(answer))

"""`moeplan calibrate`: efficiency profiles from measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.commands import calibrate_machine as machine_calibration
from app.commands import calibrate_serving as serving_calibration

cli = typer.Typer(no_args_is_help=True, help="Fit the efficiency of a software stack from measurements.")

cli.command("measure")(machine_calibration.measure)
cli.command("fit")(machine_calibration.fit)
cli.command("validate")(machine_calibration.validate)
cli.command("serving")(serving_calibration.serving)


@cli.command("published")
def published(
    system: Annotated[str, typer.Option(help="Accelerator, e.g. b200_sxm.")],
    stack: Annotated[str, typer.Option(help="Software stack: sglang, vllm or trtllm.")],
    tables: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder of CSV op tables; left out: those of the extra `vendor-data`."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write the fitted profile there ('-' for stdout).")
    ] = None,
) -> None:
    """Fit kernel rates from published op tables; says how well held-out rows are predicted and what was thrown out."""
    from app.output import STDOUT, check_writable, stdout_console
    from app.render.op_tables import calibration_report
    from calibration.op_tables.fit_tables import calibrate

    check_writable(output, "--output")
    result = calibrate(system, stack, tables)
    if output == STDOUT:
        typer.echo(result.to_json(), nl=False)
        return
    if output is not None:
        output.write_text(result.to_json(), encoding="utf-8")
    stdout_console().print(calibration_report(result))

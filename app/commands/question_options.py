"""Options that the questions share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from app.errors import EXIT_INTERRUPTED

if TYPE_CHECKING:
    import pandas as pd

    from simulator.sweep.executor import SweepExecutor

ScenarioInput = Annotated[
    Path | None,
    typer.Argument(metavar="[SCENARIO.toml]", help="Scenario file; left out: the default that ships."),
]
CsvOutput = Annotated[
    Path | None, typer.Option("--csv", metavar="FILE", help="Write the table behind the answer; `-` is stdout.")
]
HtmlOutput = Annotated[Path | None, typer.Option("--html", metavar="FILE.html", help="Write the chart.")]
ExecutorKind = Annotated[
    Literal["serial", "processes", "ray"],
    typer.Option("--executor", help="Where runs go: here, on the cores of this machine, on a Ray cluster."),
]
AddressInput = Annotated[
    str | None, typer.Option("--address", metavar="HOST:PORT", help="Of the Ray cluster, for --executor ray.")
]
ReplicationsInput = Annotated[int, typer.Option("--replications", metavar="N", min=1, help="Runs at each load.")]
PointsInput = Annotated[
    Path | None,
    typer.Option("--points", metavar="FILE.csv", help="Measured points to lay over; docs/validation.md names columns."),
]


def executor_of(kind: Literal["serial", "processes", "ray"], address: str | None) -> SweepExecutor:
    from simulator.sweep.executor import SweepExecutor

    if address is not None and kind != "ray":
        raise typer.BadParameter(f"--address is of --executor ray, and --executor is {kind}; leave one of them out")
    return SweepExecutor(kind, address)


def write_csv(frame: pd.DataFrame, path: Path | None) -> None:
    """Write a table to a file, or to stdout for "-"."""
    from app.output import STDOUT

    if path is None:
        return
    if path == STDOUT:
        import sys

        frame.to_csv(sys.stdout, index=False, float_format="%.6g")
    else:
        frame.to_csv(path, index=False, float_format="%.6g")


def end(complete: bool) -> None:
    """Leave with the code of an interrupted command where Ctrl-C cut the answer short."""
    if not complete:
        typer.echo("moeplan: stopped; what was done by then is shown and written", err=True)
        raise typer.Exit(EXIT_INTERRUPTED)

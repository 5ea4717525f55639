"""Options that the questions share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import typer

from app.errors import EXIT_INTERRUPTED

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from rich.console import RenderableType

    from simulator.sweep.executor import SweepExecutor


class Answer(Protocol):
    """What every question answers. complete: False where it was stopped."""

    @property
    def complete(self) -> bool: ...

    def to_json(self) -> dict[str, Any]: ...

    def to_frame(self) -> pd.DataFrame: ...

    def figure(self) -> go.Figure: ...


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


def check_outputs(json_file: Path | None, csv_file: Path | None, html_file: Path | None) -> None:
    """Refuse files that cannot be written before anything is computed."""
    from app.output import check_writable

    for path, flag in ((json_file, "--json"), (csv_file, "--csv"), (html_file, "--html")):
        check_writable(path, flag)


def deliver(
    answer: Answer,
    report: Callable[[], RenderableType],
    json_file: Path | None,
    csv_file: Path | None,
    html_file: Path | None,
) -> None:
    """Write the answer where it was asked for, and show its report unless stdout has a file. Leaves with the code of an
    interrupted command where Ctrl-C cut the answer short."""
    from app.output import STDOUT, stdout_console, write_json

    write_json(answer.to_json(), json_file)
    write_csv(answer.to_frame(), csv_file)
    if html_file is not None:
        answer.figure().write_html(html_file, include_plotlyjs=True)
    if STDOUT not in (json_file, csv_file):
        stdout_console().print(report())
    end(answer.complete)


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
